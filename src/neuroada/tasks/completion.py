"""Prompts and targets as tokens: training sees the prompt's tokens that generation will see, and learns the target."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from neuroada.errors import ConfigError
from neuroada.tasks.examples import Example

IGNORED = -100
"""The label that torch's cross entropy leaves out."""

ANCHORS = ("", "\n", ":", "a")
"""Texts after which a target is tokenised in turn, until its tokens continue the prompt's text."""

BATCH = 1_000
"""Samples tokenised at a time; a choice."""

FEATURES = datasets.Features(
    {
        "input_ids": datasets.Sequence(datasets.Value("int32")),
        "attention_mask": datasets.Sequence(datasets.Value("int8")),
        "labels": datasets.Sequence(datasets.Value("int32")),
    }
)


@dataclass(frozen=True)
class Truncation:
    """How many of the samples were longer than `max_length` tokens: prompts cut, and samples left out."""

    samples: int
    max_length: int
    cut: int
    dropped: int
    drop: bool = False

    def __str__(self) -> str:
        if not self.cut and not self.dropped:
            return f"all {self.samples:,} samples fit into {self.max_length:,} tokens"
        return (
            f"of {self.samples:,} samples {self.cut:,} lost the beginning of their prompt and {self.dropped:,} were "
            f"left out, {'' if self.drop else 'their targets alone '}being longer than {self.max_length:,} tokens"
        )


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    train_on_prompt: bool = False,
    drop: bool = False,
    advance: Callable[[int], None] | None = None,
) -> tuple[datasets.Dataset, Truncation]:
    """Rows of prompt, target and end-of-text tokens, T <= max_length each, and what was cut for that.

    `input_ids`, `attention_mask` and `labels` are lists of T integers; labels are -100 on the prompt unless
    `train_on_prompt`. A sample that is too long loses tokens from the left of its prompt, after the tokens that
    begin every text; the target is whole, or the sample is left out. With `drop` it is left out in any case.
    `advance` is called with the number of samples done.

    Raises:
        ConfigError: the tokenizer has no end-of-text token, or no sample is left.
    """
    if tokenizer.eos_token_id is None:
        found = "it has no end-of-text token, so that a model would never learn to stop"
        raise ConfigError(f"tokenizer {tokenizer.name_or_path!r}", found, "Set its eos_token to a token of its own")
    lead, parts, cut = leading_tokens(tokenizer), [], 0
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        rows: dict[str, list] = {name: [] for name in FEATURES}
        for body, target in _pairs(batch, tokenizer):
            body = _without(lead, body)
            if target[-1:] != [tokenizer.eos_token_id]:
                target = [*target, tokenizer.eos_token_id]
            room = max_length - len(lead) - len(target)
            if room < 1 or (drop and len(body) > room):
                continue
            cut += len(body) > room
            prompt = lead + body[-room:]
            rows["input_ids"].append(prompt + target)
            rows["attention_mask"].append([1] * (len(prompt) + len(target)))
            rows["labels"].append((prompt if train_on_prompt else [IGNORED] * len(prompt)) + target)
        parts.append(datasets.Dataset.from_dict(rows, features=FEATURES))
        if advance is not None:
            advance(len(batch))
    kept = sum(map(len, parts))
    report = Truncation(len(examples), max_length, cut, len(examples) - kept, drop)
    if not kept:
        raise ConfigError(f"samples of at most {max_length} tokens", str(report), "Raise the length")
    return datasets.concatenate_datasets(parts), report


def collator(tokenizer: PreTrainedTokenizerBase, model: Any, virtual_tokens: bool = False) -> DataCollatorForSeq2Seq:
    """What makes batches of encoded rows for `model`, which may get virtual tokens before them.

    A tokeniser without a padding token pads with another; labels and mask hide it.
    """
    padding = copy.deepcopy(tokenizer)
    if padding.pad_token_id is None:
        padding.pad_token = padding.unk_token or padding.eos_token
    taken = inspect.signature((model.get_base_model() if hasattr(model, "peft_config") else model).forward).parameters
    if virtual_tokens or not {"position_ids", "logits_to_keep"} <= set(taken):
        return DataCollatorForSeq2Seq(padding)
    padding.padding_side = "left"
    return CompletionCollator(padding)


class CompletionCollator(DataCollatorForSeq2Seq):
    """Batches that end together, so that the model computes logits for their last tokens alone.

    A batch of B rows, the longest of T tokens, has `input_ids`, `attention_mask` and `position_ids` [B, T], padded on
    the left, `labels` [B, N] and `logits_to_keep` [N], the places from before the first label of any row. Places
    instead of their number, because PyTorch multiplies a contiguous selection at once, a slice row by row.
    """

    def __call__(self, features: Sequence[Mapping[str, Any]], return_tensors: str | None = None) -> Any:
        """The batch."""
        batch: Any = super().__call__(features, return_tensors)
        positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        labels = batch["labels"].masked_fill(positions == 0, IGNORED)  # nothing comes before a row's first token
        labelled = (labels != IGNORED).any(dim=0).int()
        first = max(0, int(labelled.argmax()) - 1)
        kept = torch.arange(first, len(labelled))
        return {**batch, "labels": labels[:, first:], "position_ids": positions, "logits_to_keep": kept}


def encode_prompts(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokens of each prompt, those that the tokenizer puts before every text included, those behind it not."""
    lead = leading_tokens(tokenizer)
    return [lead + _without(lead, body) for body in _tokens(list(prompts), tokenizer)]


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before every text."""
    whole, bare = tokenizer("a")["input_ids"], _tokens(["a"], tokenizer)[0]
    starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    return whole[: starts[0]] if starts else []


def _tokens(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def _without(lead: list[int], tokens: list[int]) -> list[int]:
    """The tokens after `lead`, which a chat template may have written already."""
    return tokens[len(lead) :] if lead and tokens[: len(lead)] == lead else tokens


def _pairs(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], list[int]]]:
    """Tokens of each prompt alone and of its target after it, in which no token straddles the border."""
    alone = _tokens([example.prompt for example in examples], tokenizer)
    joint = _tokens([example.prompt + example.target for example in examples], tokenizer)
    return [
        (before, both[len(before) :])
        if both[: len(before)] == before
        else (before, _continuation(before, example.target, tokenizer))
        for before, both, example in zip(alone, joint, examples, strict=True)
    ]


def _continuation(before: list[int], target: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of the target that read as it after those before; SentencePiece begins a text of its own with a space."""

    def text(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    wanted = text(before) + target
    for anchor in ANCHORS:
        head, whole = _tokens([anchor, anchor + target], tokenizer)
        if whole[: len(head)] == head and text(before + whole[len(head) :]) == wanted:
            return whole[len(head) :]
    return _tokens([target], tokenizer)[0]
