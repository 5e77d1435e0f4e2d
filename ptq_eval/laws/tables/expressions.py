"""Arithmetic over the columns of a table: `flop/(6*N)`, `1e9*params`, `bits <= 4 and isfinite(loss)`.

An expression is parsed with `ast` and walked here: numbers, names, `+ - * / **`, comparisons, `in`, and/or/not, and the
functions of `FUNCTIONS` and, in a condition, of `TESTS`.  Nothing else is a node that this module knows, so no text of
a command line is ever run as code.  A name in backticks may hold anything: `` `Model Size` ``.  In a condition quoted
text is a value to compare with; elsewhere it names a column too.

Columns are read through a function, so that only those which an expression names are looked up, and the error for
one that is not there is the caller's.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ptq_eval import units
from ptq_eval.errors import ExpressionError
from ptq_eval.laws.tables.labels import label_of

Lookup = Callable[[str], np.ndarray]
"""The values [n] of a name; it raises where there is no such name."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "log": np.log, "log2": np.log2, "log10": np.log10, "exp": np.exp, "sqrt": np.sqrt, "abs": np.abs,
    "isfinite": np.isfinite,
}  # fmt: skip
TESTS: dict[str, Callable[[str, str], bool]] = {
    "startswith": str.startswith, "endswith": str.endswith, "contains": lambda text, part: part in text,
}  # fmt: skip
"""Of a column and quoted text, letter by letter; `isin(column, ...)` takes several values."""
MAX_LENGTH = 1000
"""Characters: an expression is a formula, and a parser is not to be fed a book."""

_ARITHMETIC: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: np.logical_not,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_EQUAL = (ast.Eq, ast.NotEq)
_ALLOWED = f"numbers, columns, + - * / **, comparisons, and or not, {' '.join(FUNCTIONS)}"
_TEXT_ALLOWED = f"{_ALLOWED}, in, isin {' '.join(TESTS)}"
_ALONE = re.compile(r"(?<![=<>!])=(?!=)")
_COUNTS = re.compile(r"`[^`]*`|'[^']*'|\"[^\"]*\"|(?<![\w.])((?:\d[\d_]*\.?\d*|\.\d+)[kmgbt])(?!\w)", re.IGNORECASE)
"""What is quoted, and outside of it a count such as 2M."""
_BACKTICKS = re.compile(r"`([^`]+)`")


def evaluate(text: str, lookup: Lookup, *, condition: bool = False) -> Any:
    """The value of an expression: an array [n], or a number where it names no column.

    `condition`: quoted text is a value, not a column.  Raises ExpressionError for anything but arithmetic, and
    whatever `lookup` raises.
    """
    quoted: list[str] = []

    def place(match: re.Match[str]) -> str:
        quoted.append(match[1])
        return f" _column_{len(quoted) - 1} "

    try:
        if len(text) > MAX_LENGTH:
            raise SyntaxError(f"longer than {MAX_LENGTH} characters")
        tree = ast.parse(_BACKTICKS.sub(place, _counted(text)).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = getattr(error, "msg", "") or "it cannot be read"
        remedy = "write == to compare" if condition and _ALONE.search(text) else ""
        allowed = _TEXT_ALLOWED if condition else _ALLOWED
        raise ExpressionError(f"not an expression: {what}", got=repr(text), allowed=allowed, remedy=remedy) from error
    names = {f"_column_{i}": name for i, name in enumerate(quoted)}
    with np.errstate(all="ignore"):  # what is not finite is found, and named, where the values are checked
        walk = _Walk(text, lambda name: lookup(names.get(name, name)), condition)
        value = walk.value(tree)
    if isinstance(value, list) or (condition and _is_text(value)):
        raise walk.refusal("it is neither true nor false" if condition else "several values where one is needed")
    return value


def _counted(text: str) -> str:
    """`text` with counts such as 2M written as numbers."""
    return _COUNTS.sub(lambda found: str(int(units.read_number(found[1], units.COUNT))) if found[1] else found[0], text)


def names_in(text: str) -> set[str]:
    """The names that an expression uses, without functions; none where it cannot be read."""
    quoted = set(_BACKTICKS.findall(text))
    try:
        tree = ast.parse(_BACKTICKS.sub(" 0 ", _counted(text)).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return quoted
    return quoted | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - {*FUNCTIONS, *TESTS, "isin"}


def in_backticks(text: str, columns: Iterable[str]) -> str:
    """`text` with backticks around the columns in it whose names are not plain words."""
    unusual = sorted((name for name in columns if not name.isidentifier()), key=len, reverse=True)
    if not unusual:
        return text
    found = re.compile("|".join(["`[^`]*`", *(rf"(?<!\w){re.escape(name)}(?!\w)" for name in unusual)]))
    return found.sub(lambda match: match[0] if match[0].startswith("`") else f"`{match[0]}`", text)


class _Walk:
    """One expression on its way through the tree."""

    def __init__(self, text: str, lookup: Lookup, condition: bool) -> None:
        self.text, self.lookup, self.condition = text, lookup, condition

    def value(self, node: ast.AST) -> Any:
        """The value of a node; each kind has a method of its own."""
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise self.refusal(f"{type(node).__name__} is not arithmetic")
        return method(node)

    def refusal(self, why: str) -> ExpressionError:
        allowed = _TEXT_ALLOWED if self.condition else _ALLOWED
        return ExpressionError(f"not an expression: {why}", got=repr(self.text), allowed=allowed)

    def _constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, str):
            return node.value if self.condition else self.lookup(node.value)
        if isinstance(node.value, (int, float)):  # of floats, so that no power grows into a number of a million digits
            return np.float64(node.value)
        raise self.refusal(f"{node.value!r} is not a number")

    def _name(self, node: ast.Name) -> Any:
        return self.lookup(node.id)

    def _attribute(self, node: ast.Attribute) -> Any:
        """A dotted name that is no column, since those that are come in backticks."""
        if not (parts := ast.unparse(node)).replace(".", "_").isidentifier():
            raise self.refusal("Attribute is not arithmetic")
        return self.lookup(parts)

    def _binop(self, node: ast.BinOp) -> Any:
        return self._apply(node.op, self._number(node.left), self._number(node.right))

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        return self._apply(node.op, self._number(node.operand))

    def _boolop(self, node: ast.BoolOp) -> Any:
        found = [self.value(part) for part in node.values]
        if any(isinstance(part, list) or _is_text(part) for part in found):
            raise self.refusal("what `and` and `or` join is true or false")
        parts = [np.asarray(part, bool) for part in found]
        combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return combine.reduce(np.broadcast_arrays(*parts))

    def _compare(self, node: ast.Compare) -> Any:
        sides = [self.value(side) for side in (node.left, *node.comparators)]
        parts = [self._pair(op, a, b) for op, a, b in zip(node.ops, sides, sides[1:])]
        return np.logical_and.reduce(np.broadcast_arrays(*parts))

    def _pair(self, op: ast.cmpop, a: Any, b: Any) -> Any:
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(b, list):
                raise self.refusal("values after `in` need brackets: bits in (3, 4)")
            return _is_in(a, b) ^ isinstance(op, ast.NotIn)
        if isinstance(a, list) or isinstance(b, list):
            raise self.refusal("several values are compared by `in` alone")
        if _is_text(a) == _is_text(b):
            return self._apply(op, *((_labels(a), _labels(b)) if _is_text(a) else (a, b)))
        if not isinstance(op, _EQUAL):
            raise self.refusal("text is neither larger nor smaller than a number")
        return self._apply(op, _labels(a), _labels(b))

    def _tuple(self, node: ast.Tuple | ast.List | ast.Set) -> list[Any]:
        if not self.condition:
            raise self.refusal("several values where one is needed")
        values = [self.value(item) for item in node.elts]
        if any(isinstance(value, list) or np.ndim(value) for value in values):
            raise self.refusal("the values in brackets are numbers and quoted text")
        return values

    _list = _set = _tuple

    def _call(self, node: ast.Call) -> Any:
        if self.condition and not node.keywords and (found := self._test(node)) is not None:
            return found
        name = node.func.id if isinstance(node.func, ast.Name) else "a method"
        if name not in FUNCTIONS or node.keywords or len(node.args) != 1:
            raise self.refusal(f"{name} is not one of the functions, each of one argument")
        return FUNCTIONS[name](self._number(node.args[0]))

    def _test(self, node: ast.Call) -> Any:
        """`isin(x, "a", "b")`, `x.isin(["a", "b"])` and the functions of `TESTS`; None for any other call."""
        if isinstance(node.func, ast.Attribute):
            name, arguments = node.func.attr, [node.func.value, *node.args]
        else:
            name, arguments = getattr(node.func, "id", ""), node.args
        if name not in ("isin", *TESTS) or len(arguments) < 2:
            return None
        first, *others = (self.value(argument) for argument in arguments)
        if name == "isin":
            values = others[0] if len(others) == 1 and isinstance(others[0], list) else others
            if isinstance(first, list) or any(isinstance(value, list) or np.ndim(value) for value in values):
                raise self.refusal('isin takes a column and values, as in isin(format, "BF16", "FP8")')
            return _is_in(first, values)
        if len(others) != 1 or not isinstance(others[0], str) or isinstance(first, list):
            raise self.refusal(f'{name} takes a column and quoted text, as in {name}(format, "FP")')
        return np.array([TESTS[name](str(text), others[0]) for text in np.atleast_1d(_labels(first)).tolist()])

    def _number(self, node: ast.AST) -> Any:
        value = self.value(node)
        if isinstance(value, list):
            raise self.refusal("several values where a number is needed")
        if np.asarray(value).dtype.kind not in "iufb":
            raise self.refusal("text where a number is needed")
        return value

    def _apply(self, op: ast.AST, *values: Any) -> Any:
        function = _ARITHMETIC.get(type(op))
        if function is None:
            raise self.refusal(f"the operator {type(op).__name__} is not arithmetic")
        return function(*values)


def _is_text(value: Any) -> bool:
    return np.asarray(value).dtype.kind not in "iufb"


def _labels(value: Any) -> np.ndarray:
    """A column or a value as text, whole numbers without a decimal point."""
    cells = np.asarray(value)
    return np.array([label_of(cell) for cell in cells.ravel().tolist()], object).reshape(cells.shape)


def _is_in(column: Any, values: list[Any]) -> Any:
    """Which cells are one of the values: as numbers where all are, else as text."""
    texts = _is_text(column) or any(_is_text(value) for value in values)
    cells = _labels(column) if texts else np.asarray(column)
    return np.isin(cells.astype(str) if texts else cells, [label_of(v) if texts else v for v in values])
