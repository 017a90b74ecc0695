"""GLUE: how its records are encoded, what is cut, and what cannot be."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from neuroada.errors import ConfigError
from neuroada.tasks.glue import encode

from .glue_records import record


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of "a b c d ..." with BERT's frame: [CLS] a [SEP] b [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghij"]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def test_encoding_of_one_sentence(tokenizer):
    encoded = encode([record("a b", label=1), record("c", label=0)], tokenizer, 16)
    assert encoded.truncated == 0
    assert encoded.rows["input_ids"][:] == [[1, 4, 5, 2], [1, 6, 2]]
    assert encoded.rows["attention_mask"][:] == [[1, 1, 1, 1], [1, 1, 1]]
    assert encoded.rows["labels"][:] == [1, 0]
    assert encoded.rows.features["labels"].dtype == "int64"


def test_encoding_of_a_pair_cuts_the_longer_sentence_first_and_counts(tokenizer):
    records = [record("a b c d e f", "g h", 2.0), record("a", "b", 0.5), record("a", "b c d e f g", 1.0)]
    encoded = encode(records, tokenizer, 8)
    assert encoded.truncated == 2
    assert encoded.rows["input_ids"][:] == [
        [1, 4, 5, 6, 2, 10, 11, 2],
        [1, 4, 2, 5, 2],
        [1, 4, 2, 5, 6, 7, 8, 2],
    ]
    assert encoded.rows["token_type_ids"][1] == [0, 0, 0, 1, 1]
    assert [len(row) for row in encoded.rows["attention_mask"]] == [8, 5, 8]
    assert encoded.rows["labels"][:] == [2.0, 0.5, 1.0]
    assert encoded.rows.features["labels"].dtype == "float32"


def test_settings_that_a_tokenizer_file_carries_do_not_cut_or_pad(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 12},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    file.write_text(json.dumps(content))
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert encode([record("a b c d e")], loaded, 16).rows["input_ids"][:] == [[1, 4, 5, 6, 7, 8, 2]]


@pytest.mark.parametrize(
    ("records", "length", "message"),
    [
        ([], 16, r"records to encode: there are none"),
        ([record("a")], 2, r"max_length=2: 2 special tokens leave no room for text\. Give at least 3"),
        ([record("a", "b")], 4, r"max_length=4: 3 special tokens leave no room for text\. Give at least 5"),
        ([record("a")], 65, r"max_length=65: more than the tokenizer's model takes\. Give 64 at most"),
    ],
)
def test_what_cannot_be_encoded(tokenizer, records, length, message):
    with pytest.raises(ConfigError, match=message):
        encode(records, tokenizer, length)
