"""Which module of both packages imports which, read from the sources; and the order that they must keep to."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import ptq_eval
import quantizers

ROOTS = [Path(package.__file__).parent for package in (ptq_eval, quantizers)]

ORDER = (
    ("quantizers",),
    ("version", "records", "errors", "units", "plugins", "config", "sampling", "early_stop", "runtime"),
    ("models", "backends"),
    ("checkpoints", "corpora", "packing"),
    ("measure", "pretrain"),
    ("adapt",),
    ("results",),
    ("laws",),
    ("theory",),
    ("report",),
    ("jobs", "training"),
    ("ptq_eval",),
    ("cli", "__main__"),
)
"""From bottom to top; none imports one above it.  `ptq_eval` is the `__init__` of the package, which hands on names."""


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of both packages: {dotted name: syntax tree}."""
    found = {}
    for root in ROOTS:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root.parent).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imported(node: ast.AST) -> set[str]:
    """What one import statement names, as dotted names; `from a import b` may mean the module a.b."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative imports hide where a name comes from"
        return {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return set()


def for_type_checking(node: ast.AST) -> bool:
    """Whether the statement is an `if TYPE_CHECKING`."""
    return isinstance(node, ast.If) and getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING"


@cache
def nodes(module: str) -> tuple[ast.AST, ...]:
    """All nodes of a module's syntax tree."""
    return tuple(ast.walk(sources()[module]))


def edges(modules: dict[str, ast.Module]) -> Iterator[tuple[str, str]]:
    """(importer, imported) for every import among `modules`, within functions too, but not for type checking only."""

    for module, tree in modules.items():
        for found in _statements(tree):
            # `from a import b` of a module a.b does not count as an import of a.
            known = {name for name in found if name in modules and name != module}
            yield from ((module, name) for name in known if not any(other.startswith(name + ".") for other in known))


def _statements(tree: ast.AST) -> Iterator[set[str]]:
    """What each import within a tree names; an expression holds none."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.stmt, ast.excepthandler, ast.match_case)) and not for_type_checking(node):
            yield imported(node)
            yield from _statements(node)


def rank(module: str) -> int:
    """The place of a module in `ORDER`.  Raises ValueError for one that has none."""
    package, _, rest = module.partition(".")
    folder = rest.partition(".")[0] if package == "ptq_eval" and rest else package
    for place, folders in enumerate(ORDER):
        if folder in folders:
            return place
    raise ValueError(f"{module} has no place in ORDER")


def upward(modules: dict[str, ast.Module]) -> list[str]:
    """Every import of a higher folder by a lower one, as `importer -> imported`."""
    return sorted({f"{a} -> {b}" for a, b in edges(modules) if rank(a) < rank(b)})


def circles(modules: dict[str, ast.Module]) -> list[list[str]]:
    """The sets of modules that import each other, directly or through others."""
    names = list(modules)
    place = {name: i for i, name in enumerate(names)}
    pairs = [(place[a], place[b]) for a, b in edges(modules)]
    rows, columns = zip(*pairs) if pairs else ((), ())
    graph = coo_array(([1] * len(pairs), (rows, columns)), shape=(len(names), len(names)))
    _, labels = connected_components(graph, directed=True, connection="strong")
    sets = [[name for name, label in zip(names, labels) if label == own] for own in sorted(set(labels.tolist()))]
    return [members for members in sets if len(members) > 1]
