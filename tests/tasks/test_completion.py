"""Tokens of prompt and target: what training sees is what generation will see, and no answer is lost."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from neuroada.errors import ConfigError
from neuroada.tasks.completion import (
    IGNORED,
    CompletionCollator,
    Truncation,
    collator,
    encode,
    encode_prompts,
    leading_tokens,
)
from neuroada.tasks.examples import Example


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


def test_samples_that_are_too_long_can_be_left_out(byte_tokenizer):
    rows, report = encode(pairs(("a long prompt", "x"), ("ab", "x"), ("abc", "x")), byte_tokenizer, 5, drop=True)
    assert [byte_tokenizer.decode(row["input_ids"][:-1]) for row in rows] == ["abx", "abcx"]
    assert str(report) == (
        "of 3 samples 0 lost the beginning of their prompt and 1 were left out, being longer than 5 tokens"
    )


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


def small(kind: str, tiny_llama: LlamaForCausalLM) -> torch.nn.Module:
    """A random model with positions by rotation, or with learned ones."""
    if kind == "llama":
        return tiny_llama.eval()
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()


def loss_and_gradient(model: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), model.get_input_embeddings().weight.grad.clone()


@pytest.mark.parametrize("whole", [False, True], ids=["completion", "prompt and completion"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_logits_for_completions_alone_give_the_same_loss_and_gradients(kind, whole, byte_tokenizer, tiny_llama):
    model = small(kind, tiny_llama).double()
    rows, _ = encode(
        pairs(("a long question", "yes"), ("b", "no, never"), ("", "all")), byte_tokenizer, 32, train_on_prompt=whole
    )
    make = collator(byte_tokenizer, model)
    assert isinstance(make, CompletionCollator)
    batch = make([dict(row) for row in rows])
    longest = max(map(len, rows["input_ids"]))
    kept = longest if whole else len("no, never") + 2
    assert batch["logits_to_keep"].tolist() == list(range(longest))[-kept:]
    assert model(**{**batch, "labels": None}).logits.shape[1] == batch["labels"].shape[1] == kept
    padded = DataCollatorForSeq2Seq(byte_tokenizer)([dict(row) for row in rows])
    (found, gradient), (expected, reference) = (loss_and_gradient(model, each) for each in (batch, padded))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)  # transformers takes the loss in float32
    torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-8)
    shifted = {**batch, "labels": batch["labels"].roll(1, dims=1)}
    assert not torch.isclose(loss_and_gradient(model, shifted)[0], expected, rtol=1e-3)


def test_a_tokenizer_is_left_as_it_was(byte_tokenizer, tiny_llama):
    byte_tokenizer.pad_token, side = None, byte_tokenizer.padding_side
    batch = collator(byte_tokenizer, tiny_llama)([{"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [-100, 6]}])
    assert batch["labels"].tolist() == [[-100, 6]]
    assert (byte_tokenizer.pad_token, byte_tokenizer.padding_side) == (None, side)


def test_models_without_positions_and_virtual_tokens_get_all_logits(byte_tokenizer, tiny_llama):
    mamba = MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=2))
    for make in (collator(byte_tokenizer, mamba), collator(byte_tokenizer, tiny_llama, virtual_tokens=True)):
        batch = make([dict(row) for row in encode(pairs(("ab", "c"), ("a", "b")), byte_tokenizer, 8)[0]])
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
        assert batch["labels"].shape == batch["input_ids"].shape
        assert batch["attention_mask"].tolist()[1][-1] == 0


def test_smollm2_computes_logits_for_few_of_its_tokens(smollm2):
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    examples = pairs(("Is it so or is it not? Say true or false.\n", "the correct answer is true"), ("1 + 1 =", " 2"))
    rows, _ = encode(examples, tokenizer, 64)
    batches = [
        make([dict(row) for row in rows]) for make in (collator(tokenizer, model), DataCollatorForSeq2Seq(tokenizer))
    ]
    assert len(batches[0]["logits_to_keep"]) == 7
    assert batches[1]["labels"].shape[1] > 15
    with torch.inference_mode():
        found, expected = (model(**batch).loss for batch in batches)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


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
