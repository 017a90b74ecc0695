"""A recipe's data section, opened: what Trainer reads and what is scored; one function a task."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from peft import TaskType
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from neuroada.errors import ConfigError
from neuroada.inputs.models import Head
from neuroada.inputs.tests import FAMILIES, ClassifierTest, GenerativeTests, ImageTest, Tests
from neuroada.recipe.data import AnyData, ArithmeticData, CommonsenseData, GlueData, ImagesData, InstructData, TextData
from neuroada.recipe.schema import EvaluationSection
from neuroada.tasks import completion, glue, instruct
from neuroada.tasks.classification import Classification, compute_metric, head_settings
from neuroada.tasks.examples import Example, subset
from neuroada.tasks.generation import context_length
from neuroada.tasks.generative import load_train
from neuroada.tasks.images.files import PictureSet, read_folder
from neuroada.tasks.images.pixels import ImageRows, PixelProcessor, augmentation
from neuroada.tasks.images.sets import (
    Counts,
    ImageSet,
    LeftOut,
    find_pictures,
    left_out_text,
    load_images,
    load_tests,
    sizes_text,
)
from neuroada.tasks.text import pack, read_text


@dataclass(frozen=True)
class Data:
    """What Trainer reads.

    sizes: for the header. tokens: of a mean sample, where it has any. metric: of Trainer's evaluations, and its name in
    them, where loss is not all. tests: what is scored before and after training, if anything is. left_out: files that
    are in no part.
    """

    sizes: str
    train: Dataset | ImageRows
    held_out: Dataset | ImageRows
    collator: Any
    tokens: int | None
    metric: Callable[[Any], dict[str, float]] | None = None
    metric_name: str | None = None
    tests: Tests | None = None
    left_out: Sequence[LeftOut] = ()


@dataclass(frozen=True)
class Source:
    """Data that has been read, before there is a model.

    encode: takes the model's tokeniser or image processor, and the model. task_type: PEFT's; none for images, of which
    it has no task. head: that the task needs, if any. labels: that only the data tells, label 0 first.
    """

    name: str
    encode: Callable[[Any, Any], Data]
    task_type: TaskType | None = TaskType.CAUSAL_LM
    head: Head | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class _Settings:
    """What else of a recipe its data depend on, as `open_data` takes it."""

    evaluation: EvaluationSection
    seed: int
    virtual_tokens: bool


def open_data(data: AnyData, evaluation: EvaluationSection, seed: int, virtual_tokens: bool = False) -> Source:
    """Read all that a recipe's data section names.

    evaluation: how its tests are scored. seed: of what is held out, and of the choice of records. virtual_tokens: the
    method puts some before every text.

    Raises:
        MissingInputError, ConfigError: a file or set is missing, empty, or not what it should be.
    """
    return _OPEN[type(data)](data, _Settings(evaluation, seed, virtual_tokens))


def _text(data: TextData, settings: _Settings) -> Source:
    split = read_text(data.text, data.data_dir, data.held_out, settings.seed)

    def encode(tokenizer: PreTrainedTokenizerBase, model: Any) -> Data:
        train: Any = pack(split.train, tokenizer, data.block_length, f"the training part of {split.source}")
        held_out: Any = pack(split.held_out, tokenizer, data.block_length, f"the held-out part of {split.source}")
        if data.held_out_blocks is not None and data.held_out_blocks < len(held_out):
            chosen = random.Random(settings.seed).sample(range(len(held_out)), data.held_out_blocks)
            held_out = held_out.select(chosen)
        _require_context(data.block_length, "data.block_length", model, tokenizer)
        sizes = f"{len(train):,} blocks to train, {len(held_out):,} held out, {data.block_length} tokens each"
        return Data(sizes, train, held_out, default_data_collator, data.block_length)

    return Source(split.source, encode)


def _generative(data: CommonsenseData | ArithmeticData, settings: _Settings) -> Source:
    family = FAMILIES[data.task]
    tests = GenerativeTests.load(family, settings.evaluation, data.data_dir, settings.seed)
    train_set = data.train_set or next(iter(family.train_sets))
    train, held_out = load_train(
        family, train_set, data.data_dir, data.train_records, data.held_out_records, settings.seed
    )
    held_out = subset(held_out, data.held_out_records, settings.seed)
    note = family.train_sets[family.train_name(train_set)].note
    name = f"{train_set} from {data.data_dir or 'the Hugging Face hub'}" + (f" ({note})" if note else "")
    return Source(name, lambda t, model: _completions(data, settings, t, model, train, held_out, tests))


def _instruct(data: InstructData, settings: _Settings) -> Source:
    chats, name = instruct.load(data.file, data.dataset)
    if len(chats) < 2:
        raise ConfigError(f"training on {name}", "it has one record, and one is held out", "Give two or more")
    random.Random(settings.seed).shuffle(chats)
    count = min(data.held_out_records, max(1, len(chats) // 10))
    parts = chats[count:][: data.train_records], chats[:count]

    def encode(tokenizer: PreTrainedTokenizerBase, model: Any) -> Data:
        train, held_out = (instruct.to_examples(part, tokenizer, data.chat) for part in parts)
        return _completions(data, settings, tokenizer, model, train, held_out, None)

    return Source(name, encode)


def _completions(
    data: CommonsenseData | ArithmeticData | InstructData,
    settings: _Settings,
    tokenizer: PreTrainedTokenizerBase,
    model: Any,
    train: list[Example],
    held_out: list[Example],
    tests: Tests | None,
) -> Data:
    drop = data.too_long == "drop"
    encoded, report = completion.encode(train, tokenizer, data.max_length, data.train_on_prompt, drop)
    kept, _ = completion.encode(held_out, tokenizer, data.max_length, data.train_on_prompt, drop)
    loss = "prompt and completion" if data.train_on_prompt else "the completion only"
    sizes = f"{len(encoded):,} samples to train, {len(kept):,} held out, loss on {loss}; {report}"
    collator = completion.collator(tokenizer, model, settings.virtual_tokens)
    lengths = [len(each) for part in (encoded, kept) for each in part["input_ids"]]
    _require_context(max(lengths), "data.max_length", model, tokenizer)
    mean = sum(map(len, encoded["input_ids"])) / len(encoded)
    return Data(sizes, encoded, kept, collator, round(mean), tests=tests)


def _require_context(longest: int, key: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError where a sample is longer than the model was made for."""
    context = context_length(model, tokenizer)
    if context is not None and longest > context:
        found = f"the longest sample has {longest:,} tokens, and the model's context is {context:,}"
        raise ConfigError(f"training on whole samples ({key})", found, f"Set {key} to {context} or less")


def _glue(data: GlueData, settings: _Settings) -> Source:
    found = glue.load_glue(data.name, data.data_dir, train_records=data.train_records)
    tested = subset(found.test, settings.evaluation.records, settings.seed)

    def encode(tokenizer: PreTrainedTokenizerBase, model: Any) -> Data:
        parts = (found.train, found.selection, tested)
        train, selection, test = (glue.encode(part, tokenizer, data.max_length) for part in parts)
        rows = [len(part.rows) for part in (train, selection, test)]
        sizes = f"{rows[0]:,} samples to train, {rows[1]:,} to select by, {rows[2]:,} to test"
        if train.truncated:
            sizes += f"; {train.truncated:,} cut to {data.max_length} tokens"
        mean = sum(map(len, train.rows["input_ids"])) / len(train.rows)
        collator = DataCollatorWithPadding(tokenizer)
        scored = ClassifierTest(found.task, test.rows, collator, settings.evaluation.batch_size)
        metric = compute_metric(found.task)
        return Data(sizes, train.rows, selection.rows, collator, round(mean), metric, found.task.metric, scored)

    return Source(f"GLUE {data.name} from {found.source}", encode, TaskType.SEQ_CLS, Head(head_settings(found.task)))


def _images(data: ImagesData, settings: _Settings) -> Source:
    pictures, name = _pictures(data)
    counts = Counts(data.train_records, data.held_out_records, settings.evaluation.records, settings.seed)
    found = load_images(pictures, name, counts, data.strict)

    def encode(processor: PixelProcessor, model: Any) -> Data:
        height, width = processor.size
        sizes = f"{sizes_text(found)}; {height} x {width} pixels"
        augment = None
        if data.augment:
            augment, by = augmentation(processor.size)
            sizes += f", cropped and mirrored at random by {by} in training"
        train = ImageRows(found.train, found.task.labels, processor, augment, settings.seed)
        selection, test = (ImageRows(part, found.task.labels, processor) for part in (found.selection, found.test))
        scored = _image_test(found, test, settings.evaluation)
        return Data(
            sizes,
            train,
            selection,
            processor.collate,
            tokens=None,
            metric=compute_metric(found.task),
            metric_name=found.task.metric,
            tests=scored,
            left_out=found.left_out,
        )

    head = Head(head_settings(found.task), images=True, size=data.size)
    return Source(f"{name} from {found.source}", encode, None, head, found.task.labels)


def open_tests(data: AnyData, evaluation: EvaluationSection, seed: int, processor: Any) -> Tests | None:
    """The tests of a data section, as `open_data` gives them; what is to train on is not read and need not be there.

    processor: the model's tokenizer or image processor. None: the task has no tests of its own.
    """
    if isinstance(data, CommonsenseData | ArithmeticData):
        return GenerativeTests.load(FAMILIES[data.task], evaluation, data.data_dir, seed)
    if isinstance(data, GlueData):
        found = glue.load_glue(data.name, data.data_dir, train_records=0)
        tested = glue.encode(subset(found.test, evaluation.records, seed), processor, data.max_length)
        return ClassifierTest(found.task, tested.rows, DataCollatorWithPadding(processor), evaluation.batch_size)
    return open_image_test(data, evaluation, seed, processor) if isinstance(data, ImagesData) else None


def open_image_test(data: ImagesData, evaluation: EvaluationSection, seed: int, processor: PixelProcessor) -> ImageTest:
    """The test of pictures, as `open_data` gives it; those to train on are not read and need not be there."""
    pictures, name = _pictures(data, to_test=True)
    found = load_tests(pictures, name, Counts(test=evaluation.records, test_seed=seed), data.strict)
    return _image_test(found, ImageRows(found.test, found.task.labels, processor), evaluation)


def _pictures(data: ImagesData, to_test: bool = False) -> tuple[PictureSet, str]:
    """The set, and its name."""
    if data.folder is not None:
        return read_folder(data.folder, to_test), data.folder.resolve().name
    assert data.name is not None
    return find_pictures(data.name, data.data_dir, data.label, to_test), data.name.rpartition("/")[2]


def _image_test(found: ImageSet, test: ImageRows, evaluation: EvaluationSection) -> ImageTest:
    note = left_out_text(found.untested) if found.untested else ""
    return ImageTest(found.task, test, test.processor.collate, evaluation.batch_size, found.test, note)


def head_of(data: AnyData, labels: Sequence[str] = ()) -> Head | None:
    """The classification head that a data section's task needs, without reading data.

    labels: of a task whose data tells them.
    """
    if isinstance(data, GlueData):
        return Head(head_settings(glue.glue_task(data.name)))
    if isinstance(data, ImagesData):
        return Head(head_settings(Classification("images", tuple(labels), "accuracy")), True, data.size)
    return None


_OPEN: dict[type, Callable[[Any, _Settings], Source]] = {
    TextData: _text,
    CommonsenseData: _generative,
    ArithmeticData: _generative,
    InstructData: _instruct,
    GlueData: _glue,
    ImagesData: _images,
}
