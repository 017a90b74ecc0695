"""The GLUE sets (Wang et al., 2018): records, halves of the validation set, encoding."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Value
from transformers import PreTrainedTokenizerBase

from neuroada.errors import ConfigError, MissingInputError, near
from neuroada.tasks.classification import Classification, stratified
from neuroada.tasks.records import find_place, load_records

HUB = "nyu-mll/glue"
SEED = 42
"""The halves' fixed seed (NeuroAda, Appendix C.1), whatever the seed of a training."""
LARGE, SELECTION = 5_000, 1_000
"""A validation set of more records than the first gives as many as the second for model selection (Appendix A.3)."""
SCALE = (0.0, 5.0)
"""Range of STS-B's labels."""


@dataclass(frozen=True)
class GlueTask(Classification):
    """One of the sets.

    fields: the one or two sentences of a record.
    validation: the hub's name of the validation split.
    may_be_empty: fields that are empty somewhere in the published set.
    """

    fields: tuple[str, ...] = ("sentence1", "sentence2")
    validation: str = "validation"
    may_be_empty: tuple[str, ...] = ()


_ENTAILMENT = ("entailment", "not_entailment")
_THREE_WAY = ("entailment", "neutral", "contradiction")
TASKS = {
    task.name: task
    for task in (
        GlueTask("cola", ("unacceptable", "acceptable"), "matthews", ("sentence",)),
        GlueTask("sst2", ("negative", "positive"), "accuracy", ("sentence",)),
        GlueTask("mrpc", ("not_equivalent", "equivalent"), "accuracy"),
        GlueTask("stsb", (), "pearson"),
        # records 310,121 and 362,225 of the training set: github.com/huggingface/datasets/issues/277
        GlueTask(
            "qqp",
            ("not_duplicate", "duplicate"),
            "accuracy",
            ("question1", "question2"),
            may_be_empty=("question2",),
        ),
        GlueTask("mnli", _THREE_WAY, "accuracy", ("premise", "hypothesis"), "validation_matched"),
        GlueTask("qnli", _ENTAILMENT, "accuracy", ("question", "sentence")),
        GlueTask("rte", _ENTAILMENT, "accuracy"),
        GlueTask("wnli", ("not_entailment", "entailment"), "accuracy"),
    )
}
PAPER_TASKS = tuple(name for name in TASKS if name != "wnli")


@dataclass(frozen=True)
class GlueData:
    """Records {"sentence1": str, "sentence2": str | None, "label": int, of STS-B float}.

    selection: the part of the validation set that chooses epochs and settings; test: the rest of it.
    """

    task: GlueTask
    source: str
    train: list[dict[str, Any]]
    selection: list[dict[str, Any]]
    test: list[dict[str, Any]]


@dataclass(frozen=True)
class Encoded:
    """Rows of input_ids, attention_mask, labels and what else the tokenizer gives; how many records were cut."""

    rows: Dataset
    truncated: int


def glue_task(name: str) -> GlueTask:
    """The set called `name`.

    Raises:
        ConfigError: there is none; the message lists the known ones.
    """
    if name in TASKS:
        return TASKS[name]
    raise ConfigError(f"GLUE set {name!r}", "no such set", near(name, TASKS))


def load_glue(name: str, data_dir: Path | None, seed: int = SEED, train_records: int | None = None) -> GlueData:
    """Read a set from `data_dir`/glue/`name` or, without a folder, from the hub.

    seed: of the halves and of the subset, so keep it while the seeds of trainings vary.
    train_records: a subset with the whole set's share of each label; None: all; 0: the training set is not read.

    Raises:
        ConfigError: no such set, or more records asked for than there are.
        MissingInputError: a file is not there, or a record is malformed or its label out of range.
    """
    task = glue_task(name)
    validation = _read(task, data_dir, "validation")
    train = [] if train_records == 0 else _read_train(task, data_dir)
    if train_records is not None and not 0 <= train_records <= len(train):
        found = f"its training set has {len(train):,} records"
        raise ConfigError(f"train_records={train_records} of {name}", found, f"Give 0 to {len(train)}, or null for all")
    selection, test = halves(validation, seed)
    source = f"{HUB}, {name}" if data_dir is None else str(data_dir / "glue" / name)
    return GlueData(task, source, subset(train, train_records, seed), selection, test)


def halves(records: Sequence[dict[str, Any]], seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(selection, test): 1,000 records and the rest of a set of more than 5,000, else half and half, at random."""
    count = SELECTION if len(records) > LARGE else len(records) // 2
    chosen = set(random.Random(seed).sample(range(len(records)), count))
    selection = [record for index, record in enumerate(records) if index in chosen]
    return selection, [record for index, record in enumerate(records) if index not in chosen]


def subset(records: Sequence[dict[str, Any]], count: int | None, seed: int) -> list[dict[str, Any]]:
    """`count` records at random with the whole's share of each label, to within one record; in their old order."""
    if count is None:
        return list(records)
    return [records[place] for place in stratified([record["label"] for record in records], count, seed)]


def encode(records: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Tokenise one sentence or a pair; of a pair that is too long the longer sentence is cut first.

    Returns rows of input_ids, attention_mask, and token_type_ids where the tokenizer has them, int64 [at most
    max_length], not padded; and labels, int64 or of STS-B float32.

    Raises:
        ConfigError: no record, or max_length leaves no room for text or is beyond what the model takes.
    """
    if not records:
        raise ConfigError("records to encode", "there are none", "Give at least one")
    firsts = [record["sentence1"] for record in records]
    seconds = [record["sentence2"] for record in records]
    pairs = seconds[0] is not None
    _require_sound_length(max_length, tokenizer, pairs)
    columns = dict(tokenizer(firsts, seconds if pairs else None, verbose=False))
    long = [index for index, ids in enumerate(columns["input_ids"]) if len(ids) > max_length]
    for index in long:
        cut = tokenizer(firsts[index], seconds[index], truncation="longest_first", max_length=max_length)
        for key, values in cut.items():
            columns[key][index] = values
    rows = Dataset.from_dict({**columns, "labels": [record["label"] for record in records]})
    if isinstance(records[0]["label"], float):
        rows = rows.cast_column("labels", Value("float32"))
    return Encoded(rows, len(long))


def _require_sound_length(max_length: int, tokenizer: PreTrainedTokenizerBase, pairs: bool) -> None:
    asked = f"max_length={max_length}"
    special, least = tokenizer.num_special_tokens_to_add(pair=pairs), 1 + pairs
    if max_length < special + least:
        found = f"{special} special tokens leave no room for text"
        raise ConfigError(asked, found, f"Give at least {special + least}")
    if max_length > tokenizer.model_max_length:
        raise ConfigError(asked, "more than the tokenizer's model takes", f"Give {tokenizer.model_max_length} at most")


def _read_train(task: GlueTask, data_dir: Path | None) -> list[dict[str, Any]]:
    """The training set; its validation set has been read, so a missing file is told as just that."""
    if data_dir is None:
        return _read(task, data_dir, "train")
    try:
        find_place(data_dir, _candidates(task, "train"), None)
    except MissingInputError as error:
        do = "Put it there, leave the data folder out to train on the hub's set, or only evaluate (train_records=0)"
        raise MissingInputError(f"training set of {task.name}", error.found, do) from None
    return _read(task, data_dir, "train")


def _read(task: GlueTask, data_dir: Path | None, split: Literal["train", "validation"]) -> list[dict[str, Any]]:
    candidates = _candidates(task, split)
    hub = (HUB, task.name, task.validation if split == "validation" else split)
    fields = {**dict.fromkeys(task.fields, str), "label": int if task.labels else float}
    rows = load_records(data_dir, candidates, fields, hub, task.may_be_empty)
    place = find_place(data_dir, candidates, hub)
    unit = "row" if data_dir is None else "record" if ".json" in Path(place).suffixes else "line"
    return [_record(task, row, f"{place}, {unit} {number}") for number, row in enumerate(rows, start=1)]


def _candidates(task: GlueTask, split: str) -> list[str]:
    """Names of a split's file in a data folder, as there and as on the hub."""
    return [f"glue/{task.name}/{name}" for name in (("train",) if split == "train" else ("dev", task.validation))]


def _record(task: GlueTask, row: Mapping[str, Any], place: str) -> dict[str, Any]:
    label = row["label"]
    low, high = (0, task.outputs - 1) if task.labels else SCALE
    if not low <= label <= high:
        meant = f" ({', '.join(task.labels)})" if task.labels else ""
        raise MissingInputError(place, f"label {label} is out of range", f"Write {low:g} to {high:g}{meant}")
    first, second = (*(row[name] for name in task.fields), None)[:2]
    return {"sentence1": first, "sentence2": second, "label": label if task.labels else float(label)}
