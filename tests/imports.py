"""The imports of a source tree, file by file: anywhere in a file, type-checking ones included."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path


def module_name(path: Path, root: Path) -> str:
    """The dotted name by which a file under `root` is imported."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(source: str, package: str = "") -> set[str]:
    """Dotted names that a source file of a package imports; `from a import b` names a.b, whatever b is."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def import_graph(root: Path) -> dict[str, set[str]]:
    """By module, the modules under `root` that it imports, and the packages whose __init__ runs for that.

    Its own packages are not among the latter: each file of a package is imported through them.
    """
    paths = {module_name(path, root): path for path in root.rglob("*.py")}
    graph = {}
    for module, path in paths.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names = imported_names(path.read_text(encoding="utf-8"), package)
        reached = {next((part for part in _prefixes(name) if part in paths), None) for name in names} - {None, module}
        packages = {part for name in reached for part in _prefixes(str(name)) if part in paths}
        graph[module] = {str(name) for name in reached} | {
            part for part in packages if part.count(".") > 0 and not f"{module}.".startswith(f"{part}.")
        }
    return graph


def _prefixes(name: str) -> Iterator[str]:
    """a.b.c, a.b, a."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other, each sorted."""
    reach = {module: _reached(module, graph) for module in graph}
    found = {tuple(sorted(other for other in reach[module] if module in reach[other])) for module in graph}
    return [list(group) for group in sorted(found) if group]


def _reached(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    reached, waiting = set(), list(graph[start])
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += graph.get(module, ())
    return reached
