"""Tests of EleutherAI's evaluation harness (lm-eval), which the harness itself runs and scores."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from neuroada.errors import ConfigError, MissingInputError
from neuroada.inputs.tests import Advance, Scored
from neuroada.layers import held
from neuroada.recipe.schema import EvaluationSection
from neuroada.tasks.generation import evaluating
from neuroada.tasks.scores import RESAMPLES, Score

NORMAL = 1.96
"""Standard errors to either side of a value in its 95 % interval: the harness gives those, and no interval."""

FRACTIONS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "em")
"""Metrics of the harness between 0 and 1, where an interval ends."""


@dataclass(frozen=True)
class HarnessTests:
    """Tasks and groups that the harness has loaded. counts: records of each task that are to be answered."""

    tasks: list[Any]
    counts: dict[str, int]
    settings: EvaluationSection
    shots: int | None = None

    @classmethod
    def load(cls, names: Sequence[str], settings: EvaluationSection, shots: int | None = None) -> HarnessTests:
        """Find tasks, groups and tags by name or pattern, or by the path of a task's YAML file, and read their data.

        Of `settings`, records (the first ones of a task, as the harness takes them), batch_size and max_new_tokens
        apply. shots: worked examples before each question; None for each task's own number.

        Raises:
            MissingInputError: lm-eval is not installed, or a task's data are not at hand.
            ConfigError: an unknown task, or two that share one.
        """
        if importlib.util.find_spec("lm_eval") is None:
            found = "package lm_eval, which runs these tasks, is not installed"
            raise MissingInputError(f"harness tasks {', '.join(names)}", found, "pip install 'neuroada[harness]'")
        if settings.sampling != "greedy":
            found = "tasks of the harness bring their own settings"
            raise ConfigError(f"--sampling {settings.sampling}", found, "Leave it out for --harness")
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        from lm_eval.tasks import TaskManager

        files = [name for name in names if Path(name).suffix in {".yaml", ".yml"}]
        manager = TaskManager(include_defaults=len(files) < len(names))
        asked = _matching(names, manager.all_tasks)
        try:
            loaded: Any = manager.load(asked)
        except (KeyError, ValueError, TypeError) as error:  # of the names, or of a file's content
            raise ConfigError(f"harness tasks {', '.join(asked)}", _first_line(error), "Correct the task") from error
        except (OSError, RuntimeError) as error:  # of the data set: not there, or out of reach
            raise MissingInputError(
                f"data of harness tasks {', '.join(asked)}",
                f"{type(error).__name__}: {_first_line(error)}",
                "Check the connection to the hub, or the paths in the task's file",
            ) from error
        groups = loaded.get("groups") or {}
        inside = {name for members in (loaded.get("group_map") or {}).values() for name in members}
        whole = {**groups, **loaded["tasks"]}
        limit = settings.records
        counts = {
            name: len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))
            for name, task in loaded["tasks"].items()
        }
        return cls([each for name, each in whole.items() if name not in inside], counts, settings, shots)

    @property
    def records(self) -> int:
        """Over all tasks."""
        return sum(self.counts.values())

    def score(self, model: nn.Module, processor: Any, advance: Advance) -> Scored:
        """The harness's own metrics, each with an interval of 1.96 of its standard errors to either side.

        Raises:
            ConfigError: the model is no causal language model, or the harness refuses to run a task.
        """
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        if not inner.can_generate():
            found = f"{type(inner).__name__} is no causal language model"
            raise ConfigError("tasks of the harness", found, "Name a run or model that writes text")
        longest = self.settings.max_new_tokens
        with evaluating(model), held(model), contextlib.redirect_stderr(io.StringIO()):  # its bars would break ours
            try:
                results: Any = lm_eval.simple_evaluate(
                    HFLM(pretrained=model, tokenizer=processor, batch_size=self.settings.batch_size),  # type: ignore[arg-type]
                    tasks=self.tasks,
                    num_fewshot=self.shots,
                    limit=self.settings.records,
                    bootstrap_iters=RESAMPLES,
                    gen_kwargs=None if longest is None else {"max_gen_toks": longest},
                )
            except ValueError as error:  # of a task that runs code, or that needs images
                found = _first_line(error)
                raise ConfigError("tasks of the harness", found, "Run them by lm_eval itself") from error
        for name, count in self.counts.items():
            advance(name, count)
        return _scored(results)


def _matching(names: Sequence[str], known: Sequence[str]) -> list[str]:
    from lm_eval.utils import pattern_match

    asked = []
    for name in names:
        if Path(name).suffix in {".yaml", ".yml"}:
            if not Path(name).is_file():
                raise MissingInputError(f"harness task {name}", "no such file", "Give a task's YAML file, or its name")
            asked.append(name)
            continue
        found = pattern_match([name], list(known))
        if not found:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise ConfigError(f"harness task {name!r}", "no such task", f"{hint}`lm_eval ls tasks` lists all")
        asked += found
    return list(dict.fromkeys(asked))


def _scored(results: Mapping[str, Any]) -> Scored:
    scores, notes = [], {}
    tasks = {name: values for name, values in results["results"].items() if name in results["n-samples"]}
    for name, values in {**tasks, **results.get("groups", {})}.items():
        taken = results["n-samples"].get(name)
        count = values.get("sample_len", 0) if taken is None else taken["effective"]
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            scores.append(_score(name, metric, kind, float(value), error, count))
            if not isinstance(error, int | float):
                notes[name] = "no interval: the harness gives no standard error"
    answers = [_answer(name, sample) for name, samples in results.get("samples", {}).items() for sample in samples]
    return Scored(scores, answers, notes)


def _score(name: str, metric: str, kind: str, value: float, error: Any, count: int) -> Score:
    reach = NORMAL * error if isinstance(error, int | float) else 0.0
    low, high = value - reach, value + reach
    if metric in FRACTIONS:
        low, high = max(0.0, low), min(1.0, high)
    return Score(name, metric if kind == "none" else f"{metric} ({kind})", value, low, high, count)


def _answer(name: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """A record's answer; of several choices, the number of the likeliest."""
    given = sample["filtered_resps"]
    if given and all(isinstance(each, tuple | list) for each in given):
        likelihoods = [each[0] for each in given]
        given = likelihoods.index(max(likelihoods))
    elif len(given) == 1:
        given = given[0]
    prompt = sample["arguments"][0][0]
    return {
        "test": name,
        "index": sample["doc_id"],
        "prompt": prompt if isinstance(prompt, str) else "",
        "answer": sample["target"],
        "generated": given,
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
