"""A formula of the user's own as a law: `E + A*N**-alpha + B*D**-beta`, or, with its response, `delta = C*D**g`.

Names that are columns are data, all others are constants.  The text is parsed with `ast` and walked here; what is not
arithmetic or one of `FUNCTIONS` and `OF_TWO` is refused, so nothing of it is ever run as code.  One walk gives the
value and the exact derivatives by all constants (forward differentiation), for one set of them or for many at once.

Nothing is known of the constants.  Those in which the formula is linear are computed (variable projection), the others
are drawn: exponents around 0.3 of either sign, the rest over six powers of ten, unless a start or bounds say better.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ptq_eval.errors import ExpressionError, OptionError, did_you_mean
from ptq_eval.laws.base import Data, Law, Parameter, Theta

Dual = tuple[Any, dict[str, Any]]
"""A value, and its derivative by each constant that it depends on."""

FUNCTIONS: Mapping[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "exp": (np.exp, lambda x, y: y),
    "log": (np.log, lambda x, y: 1 / x),
    "log2": (np.log2, lambda x, y: 1 / (x * np.log(2))),
    "log10": (np.log10, lambda x, y: 1 / (x * np.log(10))),
    "sqrt": (np.sqrt, lambda x, y: 0.5 / y),
    "abs": (np.abs, lambda x, y: np.sign(x)),
    "tanh": (np.tanh, lambda x, y: 1 - y * y),
    "log1p": (np.log1p, lambda x, y: 1 / (1 + x)),
    "expm1": (np.expm1, lambda x, y: 1 + y),
}
"""Functions of one argument x: the value y, and the derivative by x from x and y."""
OF_TWO: Mapping[str, Callable[[Any, Any], Any]] = {
    "min": np.less_equal, "minimum": np.less_equal, "max": np.greater_equal, "maximum": np.greater_equal
}  # fmt: skip
"""Functions of two arguments: which of them is the value."""
MAX_LENGTH = 1000
ALLOWED = f"numbers, columns, constants, + - * / **, {' '.join([*FUNCTIONS, *OF_TWO])}"

_WIDE, _EXPONENT = 1e30, 10.0
_LOG_RATIO = 100.0
_DRAWS, _KEPT = 512, 16


class Formula(Law):
    """A formula of the user's own; `columns` and `parameters` follow from its names."""

    name = "formula"
    source = "a formula of the user's own"
    min_scatter = 1e-4
    needs: Mapping[str, int] = {}

    def __init__(
        self,
        text: str,
        is_column: Callable[[str], bool],
        *,
        start: Mapping[str, float] | None = None,
        bounds: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """`is_column` says which names are data.  Raises ExpressionError and OptionError."""
        response, self.tree = parse(text)
        names = list(dict.fromkeys(node.id for node in _names(self.tree)))
        self.columns = tuple(name for name in names if is_column(name))
        constants = [name for name in names if name not in self.columns]
        if not self.columns or not constants:
            lacking = "column of the table" if not self.columns else "constant to be fitted"
            what = f"the formula names no {lacking}"
            raise ExpressionError(what, got=repr(text), remedy="--formula 'E + A*N**-alpha + B*D**-beta'")
        if response in names:
            raise ExpressionError("the formula has its response on both sides", got=response)
        # What other laws declare as a class, this one reads from its text.
        self.response = response  # pyrefly: ignore[read-only]
        self.equation = f"{response} = {_right(text)}"  # pyrefly: ignore[read-only]
        self.signed = (*self.columns, response)
        self.start, self.bounds = dict(start or {}), dict(bounds or {})
        for name in (*self.start, *self.bounds):
            if name not in constants:
                raise OptionError(
                    "the formula has no constant of this name",
                    got=repr(name),
                    allowed=", ".join(constants),
                    remedy=did_you_mean(name, constants),
                )
        self.linear = tuple(_linear(self.tree, constants))  # type: ignore[misc]
        exponents = {node.id for power in _powers(self.tree) for node in _names(power)}
        self.exponents = tuple(name for name in constants if name in exponents)
        self.parameters = tuple(self._parameter(name) for name in constants)

    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """The right side of the formula."""
        return self._values(theta, data, ())[0]

    def gradient(self, theta: Theta, data: Data) -> dict[str, np.ndarray]:
        """Exact derivatives."""
        return self.linearise(theta, data)[1]

    def linearise(self, theta: Theta, data: Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Both, from one walk."""
        names = [p.name for p in self.parameters]
        f, by = self._values(theta, data, names)
        return f, {name: by.get(name, 0.0) + np.zeros_like(f) for name in names}

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """The best of many draws, with the linear constants at their least-squares values.

        Raises ExpressionError where the formula is finite at none of them.
        """
        y, found = data[self.response], []
        for i in range(_DRAWS):
            theta = {p.name: self._draw(p, rng, i) for p in self.parameters}
            with np.errstate(all="ignore"):
                f, theta = self._projected(theta, data)
                misfit = float(np.sum(np.square(y - f)))
            if np.isfinite(misfit):
                found.append((misfit, theta))
        if not found:
            raise ExpressionError(
                "no starting constants were found at which the formula is finite on every row",
                got=repr(self.equation),
                remedy="say where to begin: --start NAME=X, --bounds NAME=LOW:HIGH",
            )
        return [theta for _, theta in sorted(found, key=lambda pair: pair[0])[:_KEPT]]

    def _values(self, theta: Theta, data: Data, names: Iterable[str]) -> Dual:
        with np.errstate(all="ignore"):
            f, by = _Walk(theta, data, frozenset(names)).value(self.tree)
            return f + np.zeros(len(data[self.columns[0]])), by

    def _parameter(self, name: str) -> Parameter:
        wide = _EXPONENT if name in self.exponents and name not in self.linear else _WIDE
        low, high = (float(end) for end in self.bounds.get(name, (-wide, wide)))
        return Parameter(name, low, high, log=low > 0 and high >= _LOG_RATIO * low)

    def _draw(self, p: Parameter, rng: np.random.Generator, i: int) -> float:
        """One value of a constant; the first is its start, if it has one."""
        if p.name in self.start:
            value = self.start[p.name] * (np.exp(0.5 * rng.standard_normal()) if i else 1.0)
        elif p.name in self.bounds and p.high < _WIDE and p.low > -_WIDE:
            ends = np.log([p.low, p.high]) if p.log else np.array([p.low, p.high])
            value = rng.uniform(*ends)
            value = np.exp(value) if p.log else value
        elif p.name in self.exponents:
            value = np.exp(rng.uniform(np.log(0.03), np.log(3.0))) * rng.choice([-1, 1])
        else:
            value = 10 ** rng.uniform(-3, 3) * rng.choice([-1, 1])
        return float(np.clip(value, p.low, p.high))

    def _projected(self, theta: dict[str, float], data: Data) -> tuple[Any, dict[str, float]]:
        """Prediction and constants, with the linear ones computed, scaled so that no column is lost in rounding."""
        f, by = self._values(theta, data, self.linear)
        if not self.linear:
            return f, theta
        design = np.column_stack([by.get(name, 0.0) + np.zeros_like(f) for name in self.linear])
        rest = f - design @ np.array([theta[name] for name in self.linear])
        size = np.linalg.norm(design, axis=0)
        if not np.all(np.isfinite(design)) or not np.all(np.isfinite(rest)) or not np.all(size > 0):
            return f, theta
        values = np.linalg.lstsq(design / size, data[self.response] - rest, rcond=None)[0] / size
        own = {p.name: p for p in self.parameters}
        found = {n: float(np.clip(v, own[n].low, own[n].high)) for n, v in zip(self.linear, values)}
        return rest + design @ np.array([found[name] for name in self.linear]), {**theta, **found}


_NAMED = "where a column's name is not a plain word: --columns 'N=args.N', and N in the formula"


def parse(text: str) -> tuple[str, ast.expr]:
    """The response ("loss" unless the text begins with `NAME =`) and the right side.  Raises ExpressionError."""
    left = _left(text)
    if left and not left.isidentifier():
        raise ExpressionError("the left side of a formula is a name", got=repr(left), remedy="loss = E + A*N**-alpha")
    try:
        if len(text) > MAX_LENGTH:
            raise SyntaxError(f"longer than {MAX_LENGTH} characters")
        tree = ast.parse(_right(text).strip(), mode="eval").body
        _check(tree, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        said = getattr(error, "msg", "") or "it cannot be read"
        remedy = _NAMED if "`" in text else ""
        raise ExpressionError(f"not a formula: {said}", got=repr(text[:80]), allowed=ALLOWED, remedy=remedy) from error
    return left or "loss", tree


def names_in(text: str) -> list[str]:
    """The names of columns and constants on the right side, each once.  Raises ExpressionError."""
    return list(dict.fromkeys(node.id for node in _names(parse(text)[1])))


def _left(text: str) -> str:
    return text.partition("=")[0].strip() if "=" in text else ""


def _right(text: str) -> str:
    return (text.partition("=")[2] if "=" in text else text).strip()


def _check(node: ast.expr, text: str) -> None:
    """Raises ExpressionError for anything but arithmetic."""
    inside: list[ast.expr] = []
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)):
        inside = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        inside = [node.operand]
    elif isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        needed = 1 if name in FUNCTIONS else 2 if name in OF_TWO else 0
        if not needed or len(node.args) != needed or node.keywords:
            why = (
                f"{name} takes {needed} argument{'s' * (needed > 1)}" if needed else f"{name or 'a method'} is unknown"
            )
            known = (*FUNCTIONS, *OF_TWO)
            raise ExpressionError(
                f"not a formula: {why}", got=repr(text), allowed=ALLOWED, remedy=did_you_mean(name, known)
            )
        inside = node.args
    elif not isinstance(node, ast.Name) and not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
        power = isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor)
        remedy = "write ** for a power" if power else _NAMED if isinstance(node, ast.Attribute) else ""
        what = "not a formula: " + ("^ is no power" if power else f"{type(node).__name__} is not arithmetic")
        raise ExpressionError(what, got=repr(text), allowed=ALLOWED, remedy=remedy)
    for part in inside:
        _check(part, text)


def _names(tree: ast.AST) -> Iterable[ast.Name]:
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in functions]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def _powers(tree: ast.AST) -> Iterable[ast.AST]:
    return [n.right for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Pow)]


def _linear(tree: ast.expr, constants: Iterable[str]) -> list[str]:
    """Constants in which the formula is linear taken together, the first of those that are so only one by one."""
    found: list[str] = []
    for name in constants:
        if _degree(tree, {*found, name}) <= 1:
            found.append(name)
    return found


def _degree(node: ast.AST, names: set[str]) -> int:
    """0 where a node has none of `names`, 1 where it is linear in them, more else."""
    if isinstance(node, ast.Name):
        return int(node.id in names)
    if isinstance(node, ast.UnaryOp):
        return _degree(node.operand, names)
    if isinstance(node, ast.Call):
        return 2 * any(_degree(part, names) for part in node.args)
    if isinstance(node, ast.BinOp):
        left, right = _degree(node.left, names), _degree(node.right, names)
        if isinstance(node.op, (ast.Add, ast.Sub)):
            return max(left, right)
        if isinstance(node.op, ast.Mult):
            return left + right
        return left + 2 * right if isinstance(node.op, ast.Div) else 2 * (left + right)
    return 0


class _Walk:
    """One evaluation, with derivatives by `names`."""

    def __init__(self, theta: Theta, data: Data, names: frozenset[str]) -> None:
        self.theta, self.data, self.names = theta, data, names

    def value(self, node: ast.AST) -> Dual:
        if isinstance(node, ast.Constant):
            return np.float64(node.value), {}  # type: ignore[arg-type]
        if isinstance(node, ast.Name):
            if node.id in self.theta:
                return self.theta[node.id], {node.id: 1.0} if node.id in self.names else {}
            return self.data[node.id], {}
        if isinstance(node, ast.UnaryOp):
            x, by = self.value(node.operand)
            return (-x, {name: -d for name, d in by.items()}) if isinstance(node.op, ast.USub) else (x, by)
        if isinstance(node, ast.Call):
            return self._call(node)
        assert isinstance(node, ast.BinOp)
        return self._binary(node.op, self.value(node.left), self.value(node.right))

    def _binary(self, op: ast.operator, left: Dual, right: Dual) -> Dual:
        (x, _), (y, _) = left, right
        if isinstance(op, ast.Add):
            return x + y, _sum(left, 1.0, right, 1.0)
        if isinstance(op, ast.Sub):
            return x - y, _sum(left, 1.0, right, -1.0)
        if isinstance(op, ast.Mult):
            return x * y, _sum(left, y, right, x)
        if isinstance(op, ast.Div):
            return np.divide(x, y), _sum(left, np.divide(1.0, y), right, -np.divide(x, y * y))
        power = np.power(np.asarray(x, float), y)
        by_left = y * np.power(np.asarray(x, float), y - 1) if left[1] else 0.0
        return power, _sum(left, by_left, right, power * np.log(x) if right[1] else 0.0)

    def _call(self, node: ast.Call) -> Dual:
        name = node.func.id  # type: ignore[attr-defined]
        values = [self.value(part) for part in node.args]
        if name in FUNCTIONS:
            function, slope = FUNCTIONS[name]
            x, by = values[0]
            y = function(x)
            return y, {other: slope(x, y) * d for other, d in by.items()}
        left, right = values
        first = OF_TWO[name](left[0], right[0])
        return np.where(first, left[0], right[0]), _sum(left, 1.0 * first, right, 1.0 - first)


def _sum(left: Dual, a: Any, right: Dual, b: Any) -> dict[str, Any]:
    """The derivatives a·left' + b·right'."""
    found = {name: a * d for name, d in left[1].items()}
    for name, d in right[1].items():
        found[name] = found[name] + b * d if name in found else b * d
    return found
