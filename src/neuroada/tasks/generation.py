"""Batched generation whose texts do not depend on the batch: padding on the left, masked, positions from the mask."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from neuroada.errors import ConfigError
from neuroada.tasks.completion import encode_prompts, leading_tokens

LONGEST_CONTEXT = 10**8
"""Tokenizers without a limit say 10**30; more than this is none."""


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens; what is drawn depends on the batch, unlike with greedy decoding."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    seed: int = 0


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    batch_size: int,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[str]:
    """What the model writes after each prompt, special tokens left out, in the order of the prompts.

    Greedy without `sampling`, whatever the model's own generation settings say; at any batch size the same texts,
    as far as the dtype's rounding, which depends on the shape of a product, does not decide between near ties.
    Model, tokenizer and their settings are left as they were. Prompts that the context cannot hold besides
    `max_new_tokens` are cut from the left, with a warning that counts them. `advance` is called with the number
    of prompts done.

    Raises:
        ConfigError: the context has no room for a prompt, or the batch size is not positive.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size {batch_size}", "no prompt fits into a batch", "Give 1 or more")
    encoded, cut = fit_prompts(model, tokenizer, prompts, max_new_tokens)
    if cut:
        warnings.warn(
            f"{cut} of {len(prompts)} prompts are longer than the context leaves room for beside {max_new_tokens} "
            "new tokens; their beginnings are cut",
            stacklevel=2,
        )
    config = _config(model, tokenizer, max_new_tokens, sampling)
    order = longest_first([len(tokens) for tokens in encoded])
    texts = [""] * len(encoded)
    write: Any = model.generate
    with ExitStack() as context:
        context.enter_context(evaluating(model))
        context.enter_context(_without_own_settings(model))
        context.enter_context(_seeded(sampling, model.device))
        context.enter_context(torch.inference_mode())
        for start in range(0, len(encoded), batch_size):
            chosen = order[start : start + batch_size]
            ids, mask = _padded([encoded[index] for index in chosen], config.pad_token_id)
            written = write(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
            )
            for index, row in zip(chosen, written[:, ids.shape[1] :].tolist(), strict=True):
                texts[index] = _text(row, config.eos_token_id, tokenizer)
            if advance is not None:
                advance(len(chosen))
    return texts


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Places in the order of their lengths, so that batches are padded little and the first one tells the memory."""
    return sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)


def fit_prompts(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int
) -> tuple[list[list[int]], int]:
    """Tokens of each prompt, cut from the left where the context is too short, and how many were cut."""
    lead, encoded = leading_tokens(tokenizer), encode_prompts(prompts, tokenizer)
    context = context_length(model, tokenizer)
    if context is None:
        return encoded, 0
    room = context - max_new_tokens - len(lead)
    if room < 1:
        found = f"the model's context is {context} tokens"
        raise ConfigError(f"{max_new_tokens} new tokens after a prompt", found, "Generate fewer")
    long = [len(tokens) - len(lead) > room for tokens in encoded]
    fitted = [lead + tokens[-room:] if too_long else tokens for tokens, too_long in zip(encoded, long, strict=True)]
    return fitted, sum(long)


def context_length(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The most tokens that the model was made for, or else its tokenizer; None where neither says."""
    config: Any = model.config
    length = getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
    return length if length and length < LONGEST_CONTEXT else None


def _config(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    sampling: Sampling | None,
) -> GenerationConfig:
    """Everything that generation needs; the end is what the tokenizer or the model calls so."""
    own: Any = _base(model).generation_config
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    ends = sorted({end for end in [*ends, tokenizer.eos_token_id] if end is not None})
    candidates = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, *ends, 0)
    settings: dict[str, Any] = {"do_sample": False, "num_beams": 1}
    if sampling is not None:
        settings = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "num_beams": sampling.num_beams,
        }
        if sampling.num_beams > 1:
            settings["early_stopping"] = True
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=next(token for token in candidates if token is not None),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends or None,
        use_cache=True,
        **settings,
    )


def _padded(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), int64 [rows, longest] each, padded on the left; the mask is 0 there."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _text(tokens: list[int], ends: list[int] | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokens before the first end as text."""
    stop = next((place for place, token in enumerate(tokens) if token in (ends or ())), len(tokens))
    return str(tokenizer.decode(tokens[:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _base(model: PreTrainedModel | PeftModel) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def _without_own_settings(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Empty generation settings on the model, which would otherwise fill what a call leaves open."""
    base = _base(model)
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own mode again at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _seeded(sampling: Sampling | None, device: torch.device) -> Iterator[None]:
    """The seed of the sampling inside, and the generators' own states again at the end."""
    if sampling is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        yield
