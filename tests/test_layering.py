"""The plan of the source: the order of packages, no circles, files and folders that stay readable."""

import ast
import re
from pathlib import Path

import pytest

from imports import circles, import_graph, imported_names

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "neuroada"
GRAPH = import_graph(SOURCE)
ORDER = (
    *("errors", "config", "selection", "ops", "layers", "tuners", "baselines", "tasks"),
    *("recipe", "run_folder", "inputs", "evaluation", "training", "planning", "tuning", "measure", "report"),
)
WHOLE_RECIPE = {
    "measure.studies.run.run_fields": "records what a run was",
    "measure.studies.study.train_cell": "trains it",
    "tuning.search._folder": "finds a run of it",
    "tuning.trial.holds": "finds a run of it",
    "tuning.trial.train_here": "trains it",
    "tuning.trial.train_in_fresh_process": "trains it",
    "tuning.trial._train_for": "trains it",
    "run_folder.card.write_card": "describes what was trained",
    "run_folder.complete.complete_summary": "compares it with the one a run was begun with",
    "recipe.loading.to_yaml": "writes it",
    "evaluation.evaluate._named": "takes what its tests need",
    "evaluation.loading._of_run": "opens what it trained",
    "training.train.train": "follows it",
    "training.train._chosen": "takes what the choice needs",
    "training.prepared.prepare": "opens all that it names",
    "training.fit.fit": "fits, evaluates and reports as it says",
    "training.header.header": "describes it",
    "training.save.save": "writes the card",
}
"""Functions that take a recipe, and what they do that is about all of it."""


def part(module: str) -> str:
    return module.split(".")[1]


def layered() -> list[str]:
    return sorted(module for module in GRAPH if module.count(".") >= 1 and module.startswith("neuroada."))


@pytest.mark.parametrize("module", layered())
def test_imports_point_upwards(module: str):
    below = ORDER[ORDER.index(part(module)) + 1 :]
    assert {name for name in GRAPH[module] if name.count(".") and part(name) in below} == set()


def test_there_is_no_circle_between_files():
    assert circles(GRAPH) == []


def test_a_circle_is_found_under_type_checking_too(tmp_path: Path):
    package = tmp_path / "package" / "inner"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from package.inner.deep import thing\n")
    (package / "deep.py").write_text("thing = 1\n")
    (package.parent / "one.py").write_text("def late():\n    from package import two\n")
    (package.parent / "two.py").write_text("if TYPE_CHECKING:\n    from package.one import late\n")
    assert circles(import_graph(tmp_path)) == [["package.one", "package.two"]]


def test_a_circle_through_a_packages_init_is_found(tmp_path: Path):
    package = tmp_path / "package" / "inner"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .deep import thing\n")
    (package / "deep.py").write_text("from ..outer import thing\n")
    (package / "other.py").write_text("")
    (package.parent / "outer.py").write_text("from package.inner import other\n")
    assert circles(import_graph(tmp_path)) == [["package.inner", "package.inner.deep", "package.outer"]]


def test_every_package_has_its_place_in_the_order():
    packages = {path.stem for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} | {"errors"}
    assert packages == set(ORDER)


def test_the_architecture_page_says_a_sentence_of_every_package():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+)(?:/|\.py)` \| (.+?) \|", text, re.MULTILINE)
    assert tuple(name for name, _ in rows) == ORDER
    assert all(sentence for _, sentence in rows)
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.py)`", text):
        assert (PACKAGE / path).exists() or (SOURCE / path).exists() or (ROOT / path).exists(), path


def reached_from(modules: list[str]) -> set[str]:
    reached, waiting = set(), list(modules)
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += GRAPH[module]
    return reached


def outside(modules: set[str]) -> set[str]:
    """Names of packages that these modules import from elsewhere."""
    found = set()
    for module in modules:
        path = SOURCE.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        found |= {name.split(".")[0] for name in imported_names(path.read_text(encoding="utf-8"))}
    return found


def test_reports_name_no_torch_by_any_detour():
    reports = [module for module in GRAPH if module.startswith("neuroada.report")]
    needed = reached_from(reports)
    assert "neuroada.measure.record" in needed
    assert not outside(needed) & {"torch", "transformers", "triton", "numba"}


def test_a_torch_that_reports_reach_by_a_detour_is_noticed():
    assert "torch" in outside(reached_from(["neuroada.measure.benchmarks.step"]))


@pytest.mark.parametrize("place", ["selection", "ops"])
def test_tensor_code_knows_neither_peft_nor_transformers(place: str):
    assert not outside({module for module in GRAPH if module.startswith(f"neuroada.{place}")}) & {
        "peft",
        "transformers",
    }


def functions_of_recipes() -> set[str]:
    """Functions of the package that are given a whole recipe, by module and name."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                given = [ast.unparse(each.annotation) for each in node.args.args if each.annotation is not None]
                if any(re.search(r"\bRecipe\b", annotation) for annotation in given):
                    found.add(f"{module}.{node.name}")
    return found


def test_only_functions_about_all_of_a_recipe_take_one():
    assert functions_of_recipes() == set(WHOLE_RECIPE)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_source_files_stay_readable(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize(
    "folder",
    sorted({path.parent for path in SOURCE.rglob("*.py")}),
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_folders_stay_readable(folder: Path):
    files = list(folder.glob("*.py"))
    assert len(files) <= 20
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 2_700
