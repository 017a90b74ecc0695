"""The published results: that they were copied without slips, and what the sources themselves got wrong."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from neuroada.errors import ConfigError
from neuroada.report.paper.published import (
    TASKS,
    Found,
    PublishedRow,
    averages_agree,
    find,
    model_key,
    published,
    read_published,
)

ALL = find()
DISAGREE = {
    ("NeuroAda paper", "Table 2", "LLaMA-7B", "SMT"),
    ("NeuroAda paper", "Table 3", "LLaMA-7B", "NeuroAda k=20"),
    ("NeuroAda paper", "Table 3", "LLaMA-13B", "NeuroAda k=20"),
    ("NeuroAda paper", "Table 3", "LLaMA-13B", "DiReFT"),
    ("NeuroAda paper", "Table 4", "RoBERTa-base", "Adapter (FFN)"),
    ("README of the published code", "Commonsense reasoning", "LLaMA-7B", "NeuroAda k=1"),
    ("NEAT paper", "Table 2", "Llama-2-7B", "full fine-tuning"),
    ("NEAT paper", "Table 6", "ViT-base", "nonlinear LoRA"),
    ("NEAT paper", "Table 6", "ViT-base", "multiplicative LoRA"),
}
"""Rows whose printed average is not the mean of the printed scores."""

LAYERS = {
    "LLaMA-7B": (32, [4096] * 4 + [11008, 11008, 4096], 6_738_415_616),
    "LLaMA-13B": (40, [5120] * 4 + [13824, 13824, 5120], 13_015_864_320),
    "Llama-2-7B": (32, [4096] * 4 + [11008, 11008, 4096], 6_738_415_616),
    "Llama-3-8B": (32, [4096, 1024, 1024, 4096, 14336, 14336, 4096], 8_030_261_248),
}
"""Layers, neurons of the seven projections of each, and parameters."""


def name(found: Found) -> tuple[str, str, str, str]:
    return found.table.source, found.table.table, found.table.model, found.row.label


def only(model: str, family: str, source: str, label: str) -> PublishedRow:
    rows = [row for table, row in find(model, family) if table.source == source and row.label == label]
    assert len(rows) == 1
    return rows[0]


def test_printed_averages_are_the_means_of_the_scores_but_for_the_known_ones():
    assert {name(found) for found in ALL if not averages_agree(found.row)} == DISAGREE


def test_a_row_whose_average_disagrees_says_so():
    assert [name(found) for found in ALL if not averages_agree(found.row) and not found.row.note] == []


@pytest.mark.parametrize(
    ("average", "decimals", "agrees"),
    [(50.0, 1, True), (50.1, 1, True), (50.2, 1, False), (50.01, 2, True), (50.02, 2, False), (49.8, 1, False)],
)
def test_an_average_agrees_within_the_rounding_of_what_is_printed(average: float, decimals: int, agrees: bool):
    row = PublishedRow(method="lora", scores={"boolq": 40.0, "piqa": 60.0}, average=average, decimals=decimals)
    assert row.mean == 50.0
    assert averages_agree(row) is agrees


def test_every_table_of_results_is_there():
    tables = Counter((table.source, table.table, len(table.rows)) for table in published().tables)
    assert tables == Counter(
        {
            **{("NeuroAda paper", "Table 2", rows): count for rows, count in ((1, 1), (11, 2), (8, 2))},
            **{("NeuroAda paper", "Table 3", rows): count for rows, count in ((1, 1), (10, 1), (8, 1), (3, 2))},
            ("NeuroAda paper", "Table 4", 10): 1,
            ("README of the published code", "Commonsense reasoning", 2): 4,
            ("README of the published code", "Arithmetic reasoning", 2): 4,
            ("NEAT paper", "Table 1", 4): 2,
            ("NEAT paper", "Table 2", 5): 1,
            ("NEAT paper", "Table 3", 11): 1,
            ("NEAT paper", "Table 4", 5): 1,
            ("NEAT paper", "Table 5", 2): 1,
            ("NEAT paper", "Table 6", 3): 1,
        }
    )


def test_cells_are_empty_only_where_the_sources_leave_them_empty():
    empty = {(found.table.table, found.table.family) for found in ALL if len(found.row.scores) < len(found.table.tasks)}
    assert empty == {("Table 3", "arithmetic"), ("Table 4", "glue")}
    assert set(only("RoBERTa-base", "glue", "NeuroAda paper", "Adapter (FFN)").scores) == set(TASKS["glue"]) - {
        "mrpc",
        "cola",
    }


def test_no_row_stands_twice():
    rows = Counter((*name(found), found.row.trained_percent) for found in ALL)
    assert [row for row, count in rows.items() if count > 1] == []


def test_spreads_belong_to_the_scores_of_table_4():
    with_spread = [found for found in ALL if found.row.spread]
    assert {found.table.table for found in with_spread} == {"Table 4"}
    assert len(with_spread) == 10
    assert all(found.row.spread.keys() == found.row.scores.keys() for found in with_spread)


@pytest.mark.parametrize("model", LAYERS)
def test_published_shares_are_those_of_k_in_all_seven_projections(model: str):
    layers, neurons, parameters = LAYERS[model]
    rows = [row for _, row in find(model, method="neuroada")]
    assert {row.settings["k"] for row in rows} == {1, 20}
    for row in rows:
        share = 100 * row.settings["k"] * layers * sum(neurons) / parameters
        assert row.trained_percent == pytest.approx(share, abs=0.0005)


@pytest.mark.parametrize(("percent", "k"), [(0.0297, 1), (0.2674, 9)])
def test_published_glue_shares_are_those_of_k_in_the_attention_of_roberta(percent: float, k: int):
    assert percent in {row.trained_percent for _, row in find("RoBERTa-base", "glue", "neuroada")}
    assert 100 * k * 12 * 4 * 768 / 124_055_040 == pytest.approx(percent, abs=0.00005)


def test_readme_and_paper_differ_in_one_cell():
    different = []
    for paper in find(method="neuroada"):
        if paper.table.source != "NeuroAda paper" or paper.table.family == "glue":
            continue
        readme = only(paper.table.model, paper.table.family, "README of the published code", paper.row.label)
        different += [
            (paper.table.model, paper.row.label, task, score, readme.scores[task])
            for task, score in paper.row.scores.items()
            if score != readme.scores[task]
        ]
    assert different == [("LLaMA-7B", "NeuroAda k=1", "openbookqa", 80.4, 84.0)]


def test_rows_that_both_papers_took_from_the_same_place_differ_in_one_cell():
    different = []
    for ours in find(method=None):
        if ours.table.source != "NEAT paper" or ours.row.method in ("neat", "neuroada"):
            continue
        for theirs in find(ours.table.model, ours.table.family, ours.row.method):
            if theirs.table.source != "NeuroAda paper" or theirs.row.settings or ours.table.tasks[-1] == "MATH":
                continue
            different += [
                (ours.row.label, task, theirs.row.scores[task], score)
                for task, score in ours.row.scores.items()
                if theirs.row.scores.get(task, score) != score
            ]
    assert different == [("BitFit", "mrpc", 88.1, 88.0)]


@pytest.mark.parametrize(
    "model", ["LLaMA-7B", "llama-7b", "yahma/llama-7b-hf", "huggyllama/llama-7b", "/models/llama-7b-hf/"]
)
def test_a_model_is_found_by_its_names(model: str):
    assert {found.table.model for found in find(model)} == {"LLaMA-7B"}


def test_every_bundled_model_that_a_table_is_of_finds_it():
    assert {found.table.model for found in find("google/vit-base-patch16-224-in21k")} == {"ViT-base"}
    assert {found.table.model for found in find("FacebookAI/roberta-base")} == {"RoBERTa-base"}
    assert find("facebook/dinov2-small") == []


def test_model_names_are_not_mixed_up():
    assert model_key("meta-llama/Meta-Llama-3-8B") == model_key("NousResearch/Meta-Llama-3-8B") == "llama-3-8b"
    assert model_key("meta-llama/Llama-2-7b-hf") == model_key("Llama-2-7B")
    assert find("meta-llama/Meta-Llama-3-8B-Instruct") == []
    assert find("somebody/llama-7b-hf", "glue") == []


def test_find_narrows_by_family_and_method():
    rows = find("Llama-3-8B", "arithmetic", "neuroada")
    assert [(found.table.source, found.row.settings["k"], found.row.average) for found in rows] == [
        ("NeuroAda paper", 1, 63.5),
        ("README of the published code", 20, 73.2),
        ("README of the published code", 1, 76.5),
    ]
    assert find(method="no such method") == []


def test_settings_name_known_methods_tasks_and_models():
    models = {table.model for table in published().tables}
    for each in published().settings:
        assert each.model in models
        assert each.method in {"neuroada", "neat"}
        tasks = [chosen.where["task"] for chosen in each.chosen if "task" in chosen.where]
        assert set(tasks) <= set(TASKS[each.family])
        assert len(set(tasks)) == len(tasks)
        assert all(set(values) <= set(each.search[key]) for key, values in each.marked.items())


def test_scripts_chose_what_the_tables_mark():
    scripts = {each.family: each for each in published().settings if each.source.startswith("Launch scripts")}
    searched = {each.family: each for each in published().settings if each.table in ("Table 5", "Table 6")}
    assert set(scripts) == set(searched) == {"commonsense", "arithmetic"}
    for family, script in scripts.items():
        rates = {chosen.values["learning_rate"] for chosen in script.chosen}
        assert rates == set(searched[family].marked["learning_rate"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["boolq", "piqua"]}, r"no task 'piqua'. Did you mean 'piqa'\?"),
        ({"tasks": ["boolq"]}, r"lora: 2 scores for 1 tasks"),
        ({"family": "commonsens"}, r"family: Input should be 'commonsense'"),
        ({"rows": [{"method": "lorra", "scores": [1, 2], "average": 1.5}]}, r"no such method. Did you mean 'lora'\?"),
        (
            {"rows": [{"method": "lora", "scores": [1, 200], "average": 1.5}]},
            r"piqa: Input should be less than or equal",
        ),
        ({"rows": [{"method": "lora", "scores": [1, 2], "avrage": 1.5}]}, r"average: Field required"),
        ({"rows": []}, r"rows: Tuple should have at least 1 item"),
    ],
)
def test_a_slip_in_a_file_is_an_error(tmp_path: Path, change: dict, message: str):
    rows = [{"method": "lora", "trained_percent": 0.8, "scores": [70, 80], "average": 75.0}]
    table = {
        "source": "s",
        "table": "t",
        "family": "commonsense",
        "model": "m",
        "tasks": ["boolq", "piqa"],
        "rows": rows,
    }
    path = tmp_path / "published-mine.yaml"
    path.write_text(yaml.safe_dump({"tables": [table]}))
    assert read_published(path).tables[0].rows[0].scores == {"boolq": 70, "piqa": 80}
    path.write_text(yaml.safe_dump({"tables": [table | change]}))
    with pytest.raises(ConfigError, match=message):
        read_published(path)


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_a_share_is_above_0_and_at_most_100(percent: float):
    with pytest.raises(ValueError, match="trained_percent"):
        PublishedRow(method="lora", trained_percent=percent, scores={"boolq": 70}, average=70)


def test_a_file_that_is_no_yaml_is_an_error(tmp_path: Path):
    path = tmp_path / "published-mine.yaml"
    path.write_text("tables: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_published(path)
