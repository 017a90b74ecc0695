"""Tokens of prompt and target: what training sees is what generation will see, and no answer is lost."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, PreTrainedTokenizerFast

from neuroada.errors import ConfigError
from neuroada.tasks.completion import IGNORED, Truncation, encode, encode_prompts, leading_tokens
from neuroada.tasks.generative import Example


def pairs(*texts: tuple[str, str]) -> list[Example]:
    return [Example(prompt, target, "", "file:1") for prompt, target in texts]


def split_row(row: dict) -> tuple[list[int], list[int]]:
    """(prompt, target) tokens of an encoded row, by its labels."""
    border = row["labels"].count(IGNORED)
    assert row["labels"][:border] == [IGNORED] * border
    assert row["labels"][border:] == row["input_ids"][border:]
    assert row["attention_mask"] == [1] * len(row["input_ids"])
    return row["input_ids"][:border], row["input_ids"][border:]


@pytest.fixture
def sentencepiece() -> PreTrainedTokenizerFast:
    """Like Llama's first: every text begins with a space and <s>; "\\n" and "▁the" are tokens, and it has <unk>."""
    pieces = ["<unk>", "<s>", "</s>", "\n", "▁", "▁the", "the", *"abcdefghijklmnopqrstuvwxyz.:"]
    inner = Tokenizer(models.Unigram([(piece, -1.0 - len(piece) * 0.01) for piece in pieces], unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def merging() -> PreTrainedTokenizerFast:
    """Bytes, with one merge of two line breaks and one of a space and an a."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("Ġ", "a")]
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, "ĊĊ", "Ġa", "<|end|>"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


def test_the_loss_is_on_the_target_and_its_end(byte_tokenizer):
    rows, report = encode(pairs(("Say x.\n", "x")), byte_tokenizer, 64)
    prompt, target = split_row(rows[0])
    assert byte_tokenizer.decode(prompt) == "Say x.\n"
    assert target == [*byte_tokenizer("x")["input_ids"], byte_tokenizer.eos_token_id]
    assert report == Truncation(samples=1, max_length=64, cut=0, dropped=0)
    assert str(report) == "all 1 samples fit into 64 tokens"


def test_the_loss_is_on_all_of_it_where_asked(byte_tokenizer):
    examples = pairs(("Say x.\n", "x"))
    rows, _ = encode(examples, byte_tokenizer, 64, train_on_prompt=True)
    assert rows[0]["labels"] == rows[0]["input_ids"]
    assert rows[0]["input_ids"] == encode(examples, byte_tokenizer, 64)[0][0]["input_ids"]


def test_an_end_that_is_there_is_not_doubled(byte_tokenizer):
    rows, _ = encode(pairs(("a", "b<|end|>")), byte_tokenizer, 64)
    assert rows[0]["input_ids"].count(byte_tokenizer.eos_token_id) == 1


@pytest.mark.parametrize(
    ("prompt", "target"), [("a\n", "\nb"), ("a ", "a"), ("a", "b"), ("a\n\n", "\n\n b"), ("b", " a")]
)
def test_no_token_straddles_the_border(merging, prompt, target):
    rows, _ = encode(pairs((prompt, target)), merging, 64)
    before, after = split_row(rows[0])
    assert before == encode_prompts([prompt], merging)[0]
    assert merging.decode(before) == prompt
    assert merging.decode(after) == f"{target}<|end|>"


def test_tokens_do_merge_over_that_border_when_tokenised_as_one(merging):
    whole, before = merging("a\n\nb")["input_ids"], merging("a\n")["input_ids"]
    assert whole[: len(before)] != before


@pytest.mark.parametrize("target", ["the cat", "cat", "\nthe", "the\nthe", "a: b."])
@pytest.mark.parametrize("prompt", ["say:\n", "say", "say: ", "say:\n\n"])
def test_sentencepiece_begins_a_target_without_the_space_of_a_text_of_its_own(sentencepiece, prompt, target):
    rows, _ = encode(pairs((prompt, target)), sentencepiece, 64)
    before, after = split_row(rows[0])
    assert before == encode_prompts([prompt], sentencepiece)[0]
    assert after[-1] == sentencepiece.eos_token_id
    assert sentencepiece.decode(before + after, skip_special_tokens=True) == prompt + target


def test_such_a_space_would_be_there_if_the_target_were_tokenised_alone(sentencepiece):
    before = encode_prompts(["say:\n"], sentencepiece)[0]
    alone = sentencepiece("the cat", add_special_tokens=False)["input_ids"]
    assert sentencepiece.decode(before + alone, skip_special_tokens=True) == "say:\n the cat"


def test_prompts_have_the_tokens_before_a_text_and_not_those_behind_it(sentencepiece, byte_tokenizer):
    assert leading_tokens(sentencepiece) == [1]
    assert leading_tokens(byte_tokenizer) == []
    assert encode_prompts(["the"], sentencepiece) == [[1, 5]]
    assert sentencepiece("the")["input_ids"] == [1, 5, 2]


def test_a_template_that_writes_the_first_token_itself_does_not_double_it(sentencepiece):
    inner = sentencepiece.convert_tokens_to_ids("<s>")
    assert encode_prompts(["<s>the"], sentencepiece)[0].count(inner) == 1
    rows, _ = encode(pairs(("<s>the", "a")), sentencepiece, 64)
    assert rows[0]["input_ids"].count(inner) == 1


@pytest.mark.parametrize("max_length", range(4, 14))
def test_a_long_sample_loses_the_left_of_its_prompt_and_none_of_its_target(sentencepiece, max_length):
    prompt, target = "abcdefghi", "xyz"
    body = sentencepiece(prompt, add_special_tokens=False)["input_ids"]
    answer = [*(sentencepiece.convert_tokens_to_ids(c) for c in target), sentencepiece.eos_token_id]
    examples = pairs((prompt, target), ("the", "b"))
    rows, report = encode(examples, sentencepiece, max_length)
    whole = 1 + len(body) + len(answer)
    if max_length < 1 + 1 + len(answer):
        assert (len(rows), report.dropped, report.cut) == (1, 1, 0)
        assert f"1 were left out, their targets alone being longer than {max_length} tokens" in str(report)
        return
    before, after = split_row(rows[0])
    assert after == answer
    assert before == [1, *body[-(max_length - 1 - len(answer)) :]]
    assert len(rows[0]["input_ids"]) == min(max_length, whole)
    assert (report.cut, report.dropped, len(rows)) == (int(max_length < whole), 0, 2)


def test_the_report_counts_over_many_batches(byte_tokenizer):
    examples = pairs(*[("p" * (n % 10 + 1), "t" * (n % 7 + 1)) for n in range(2500)])
    rows, report = encode(examples, byte_tokenizer, 7)
    lengths = [(n % 10 + 1, n % 7 + 2) for n in range(2500)]
    assert report.dropped == sum(target > 6 for _, target in lengths)
    assert report.cut == sum(target <= 6 and prompt + target > 7 for prompt, target in lengths)
    assert len(rows) == 2500 - report.dropped
    assert rows.column_names == ["input_ids", "attention_mask", "labels"]
    assert max(map(len, rows["input_ids"])) == 7


def test_progress_counts_samples(byte_tokenizer):
    done = []
    encode(pairs(*[("p", "t")] * 2500), byte_tokenizer, 7, advance=done.append)
    assert done == [1000, 1000, 500]


def test_nothing_that_fits(byte_tokenizer):
    with pytest.raises(ConfigError, match=r"samples of at most 3 tokens: of 1 samples 0 lost .* Raise the length"):
        encode(pairs(("p", "long")), byte_tokenizer, 3)


def test_a_tokenizer_without_an_end(byte_tokenizer):
    byte_tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"it has no end-of-text token.*Set its eos_token"):
        encode(pairs(("p", "t")), byte_tokenizer, 8)


def test_rows_go_through_the_collator_of_transformers(byte_tokenizer):
    rows, _ = encode(pairs(("a", "bcd"), ("ab", "c")), byte_tokenizer, 16)
    batch = DataCollatorForSeq2Seq(byte_tokenizer)([dict(row) for row in rows])
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 5)
    assert batch["labels"][1].tolist()[-1] == IGNORED


def test_smollm2_sees_the_same_prompt_in_training_and_generation(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    messages = [{"role": "user", "content": "Say x."}]
    chat = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    examples = pairs(("Is it?\n", "the correct answer is true"), (chat, "x"), ("### Response:\n", "\n\nStep 1"))
    rows, _ = encode(examples, tokenizer, 512)
    for row, example, prompt in zip(
        rows, examples, encode_prompts([e.prompt for e in examples], tokenizer), strict=True
    ):
        before, after = split_row(row)
        assert before == prompt
        assert tokenizer.decode(before) == example.prompt
        assert tokenizer.decode(after) == f"{example.target}<|im_end|>"
