"""The arrow of imports: each part of the package imports only from parts above it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "neuroada"
ORDER = (
    *("errors", "selection", "config", "ops", "layers", "tuners"),
    *("baselines", "tasks", "runs", "measure", "report"),
)
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in ORDER)


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(source: str) -> set[str]:
    """Dotted names that a source file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def imported_parts(source: str) -> set[str]:
    """Parts of the package that a source file imports, anywhere in it."""
    names = imported_names(source)
    return {name.split(".")[1] for name in names if name.startswith("neuroada.")} & set(ORDER)


def reached_from(paths: list[Path]) -> set[Path]:
    """Source files that these need, themselves included, by imports inside the package."""
    reached, waiting = set(), list(paths)
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        for name in imported_names(path.read_text()):
            parts = name.split(".")
            if parts[0] == "neuroada":
                places = [PACKAGE.joinpath(*parts[1:count]) for count in range(2, len(parts) + 1)]
                files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
                waiting += [file for file in files if file.exists()]
    return reached


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_upwards(path):
    allowed = ORDER[: ORDER.index(part(path)) + 1]
    assert imported_parts(path.read_text()) <= set(allowed)


def test_an_arrow_the_wrong_way_is_noticed():
    assert imported_parts("def late():\n    from neuroada.runs.train import run\n") == {"runs"}


def test_reports_name_no_torch_by_any_detour():
    reports = sorted((PACKAGE / "report").rglob("*.py"))
    needed = reached_from(reports)
    assert reports
    assert PACKAGE / "measure" / "record.py" in needed
    imported = {name.split(".")[0] for path in needed for name in imported_names(path.read_text())}
    assert not imported & {"torch", "transformers", "triton", "numba"}


def test_a_torch_that_reports_reach_by_a_detour_is_noticed():
    needed = reached_from([PACKAGE / "measure" / "step.py"])
    assert PACKAGE / "ops" / "sparse_delta" / "torch.py" in needed


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops").rglob("*.py")), ids=lambda path: path.stem)
def test_operations_know_neither_peft_nor_transformers(path):
    tree = ast.parse(path.read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not {module.split(".")[0] for module in modules} & {"peft", "transformers"}


@pytest.mark.parametrize("path", sorted(PACKAGE.parents[0].rglob("*.py")), ids=lambda path: path.stem)
def test_source_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 300
