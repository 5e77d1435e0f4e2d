"""Training at low precision as training a smaller model: the effective number of parameters of Kumar et al.

    N_eff = N · Π_x f_x(P_x),   f_x(P) = 1 − exp(n_x − P/gamma_x)     x in weights, activations, KV cache   (eq. 4)
    L     = A·N_eff^−alpha + B·D^−beta + E                                                    (eq. 3, for all parts)

(arXiv 2411.04330; the training precisions are the columns "P_w", "P_a" and "P_kv", in bits.)  Only some parts may
have been varied; then the others' factors are omitted, and A absorbs them.

The text of the paper has no offset n.  Its table of constants does, and only with n inside the exponent, and
plus its sign, do these constants give the paper's own conclusions (seven to eight bits as the optimal training
precision; four times the effective parameters at 16 bits as at 4).  Below P = gamma·n nothing is left of the
model: the factor is clipped at zero, and the predicted loss is infinite.  Without offsets n is zero.

`tied` gives all parts one gamma_bar and one n_bar: three parts at one precision then have f(P)³.

Training costs (6/16)·N·D·P, so a bit spent on P is a bit not spent on N.  With h(P) = d log f/d log P, which falls
from at least one to zero, precision is optimal where h(P) = 1 if N, D and P are all free, independently of the
budget, and where h(P) = beta·B·D^−beta/(alpha·A·N_eff^−alpha) if N is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from scipy.optimize import brentq

from ptq_eval.errors import OptionError
from ptq_eval.laws.base import Data, Parameter, Theta, n_distinct
from ptq_eval.laws.findings import Finding, Why, why
from ptq_eval.laws.formulas.chinchilla import N_STARTS, Chinchilla

PARTS: Mapping[str, str] = {"weights": "w", "activations": "a", "kv": "kv"}
"""What may be trained in low precision, and the subscript of its constants."""

COST_PER_BIT = 6 / 16
"""FLOPs at 16 bits that one parameter, one token and one bit of training cost; arXiv 2411.04330, eq. 5."""

BETA = 0.3658
"""Where beta is kept when two values of D cannot determine it: Besiroglu et al., arXiv 2404.10102."""
_N_GUESSES, _BEST = 10, 2
_NO_LOSS = 0.05
"""A gamma at which any precision leaves all parameters."""


def part_factor(P: Any, gamma: Any, n: Any = 0.0) -> Any:
    """The share of the parameters that precision P (bits) leaves: max(0, 1 − exp(n − P/gamma))."""
    return np.maximum(-np.expm1(np.minimum(n - P / gamma, 0.0)), 0.0)


def bits_elasticity(P: float, gammas: Sequence[float], offsets: Sequence[float]) -> float:
    """h(P) = d log f/d log P of f = Π f_x with all parts at P bits; infinite where f is zero."""
    powers = [P / gamma - n for gamma, n in zip(gammas, offsets)]
    if min(powers) <= 0:
        return np.inf
    return float(sum((P / gamma) * np.exp(-u) / -np.expm1(-u) for gamma, u in zip(gammas, powers)))


def precision_with(elasticity: float, gammas: Sequence[float], offsets: Sequence[float]) -> float:
    """The P (bits) with h(P) = `elasticity`; unique, because h falls.  Zero where h is below it for every P."""
    low = max(gamma * n for gamma, n in zip(gammas, offsets))
    low = max(low, 0.0) * (1 + 1e-12) + 1e-9
    if bits_elasticity(low, gammas, offsets) <= elasticity * (1 + 1e-8):
        return 0.0
    high = low + max(gammas)
    while bits_elasticity(high, gammas, offsets) > elasticity:
        high *= 2
    return _root(lambda P: bits_elasticity(P, gammas, offsets) - elasticity, low, high)


@dataclass(frozen=True)
class Capacity:
    """N_eff/N as a function of the training precisions: which parts, with offsets or not, tied or not."""

    equation: ClassVar[str] = "N_eff = N * prod over x of (1 - exp(n_x - P_x / gamma_x))"
    parts: tuple[str, ...] = tuple(PARTS)
    offsets: bool = True
    tied: bool = False

    def __post_init__(self) -> None:
        """Refuse parts that do not exist."""
        if not self.parts or set(self.parts) - set(PARTS) or len(set(self.parts)) < len(self.parts):
            raise OptionError("parts of a model, each once", got=repr(self.parts), allowed=", ".join(PARTS))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold the training precisions."""
        return tuple(f"P_{PARTS[part]}" for part in self.parts)

    @property
    def names(self) -> tuple[tuple[str, str, str], ...]:
        """(column, gamma, n) of each part; n is "" without offsets."""
        of = {part: "bar" if self.tied else PARTS[part] for part in self.parts}
        pairs = zip(self.columns, self.parts)
        return tuple((column, f"gamma_{of[part]}", f"n_{of[part]}" if self.offsets else "") for column, part in pairs)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The constants gamma and n, each once."""
        found = {}
        for _, gamma, n in self.names:
            found[gamma] = Parameter(gamma, 0.05, 20.0, "bits", log=True)
            if n:
                found[n] = Parameter(n, 0.0, 10.0)
        return tuple(found.values())

    def factor(self, theta: Theta, data: Data) -> Any:
        """N_eff/N, between 0 and 1."""
        factors = [part_factor(data[P], theta[gamma], theta[n] if n else 0.0) for P, gamma, n in self.names]
        return np.prod(np.broadcast_arrays(*factors), axis=0)

    def n_eff(self, theta: Theta, data: Data) -> Any:
        """N_eff, in parameters."""
        return data["N"] * self.factor(theta, data)

    def log_gradient(self, theta: Theta, data: Data) -> dict[str, Any]:
        """The derivative of log(N_eff/N) by each constant; meaningless where the factor is zero."""
        found: dict[str, Any] = {}
        for P, gamma, n in self.names:
            u = data[P] / theta[gamma] - (theta[n] if n else 0.0)
            # where the factor is clipped the prediction is infinite or zero, and no derivative is asked for
            odds = 1 / np.expm1(np.clip(u, 1e-300, 700.0))
            found[gamma] = found.get(gamma, 0.0) - odds * data[P] / np.square(theta[gamma])
            if n:
                found[n] = found.get(n, 0.0) - odds
        return found

    def lowest(self, data: Data) -> float:
        """The lowest training precision of any part, in bits."""
        return min(float(data[name].min()) for name in self.columns)

    def guess(self, lowest: float, rng: np.random.Generator) -> dict[str, float]:
        """Constants drawn at random that leave some parameters at `lowest` bits."""
        return {
            p.name: float(lowest * rng.uniform(0.15, 0.95) if p.log else rng.uniform(0.0, 0.9)) for p in self.parameters
        }

    def elasticity_constants(self, theta: Theta) -> tuple[list[float], list[float]]:
        """The gammas and offsets of the parts, for `bits_elasticity` and `precision_with`."""
        gammas = [float(theta[gamma]) for _, gamma, _ in self.names]
        return gammas, [float(theta[n]) if n else 0.0 for _, _, n in self.names]

    def at(self, P: Any) -> dict[str, Any]:
        """The columns of all parts at one precision P."""
        return dict.fromkeys(self.columns, P)


class NEff(Chinchilla):
    """L = E + A/N_eff^alpha + B/D^beta; Kumar et al., arXiv 2411.04330, eqs. 3 and 4.

    Columns N, D and, for each of `parts`, P_w, P_a, P_kv (training precision in bits).  All parts by default.
    """

    name = "n_eff"
    equation = f"L = E + A / N_eff^alpha + B / D^beta,  {Capacity.equation}"
    source = "Kumar et al. 2024, arXiv 2411.04330, eqs. 3 and 4; offsets as in Table 2"

    def __init__(self, parts: Sequence[str] = tuple(PARTS), *, offsets: bool = True, tied: bool = False) -> None:
        """`parts` of weights, activations, kv; `offsets` n on or off; `tied`: one gamma and n for all parts."""
        self.capacity = Capacity(tuple(parts), offsets, tied)
        self.columns = (*Chinchilla.columns, *self.capacity.columns)
        self.parameters = (*Chinchilla.parameters, *self.capacity.parameters)
        distinct = dict.fromkeys(["P"] if tied else self.capacity.columns, 3 if offsets else 2)
        self.needs = {**Chinchilla.needs, **distinct}

    def variables(self, data: Data) -> dict[str, np.ndarray]:
        """N, D and the precisions; tied parts have one together, P."""
        together = np.concatenate([data[name] for name in self.capacity.columns])
        return {name: together if name == "P" else data[name] for name in self.needs}

    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """Loss in nats per token; infinite where a precision leaves no effective parameters."""
        with np.errstate(divide="ignore"):
            return super().predict(theta, {**data, "N": self.capacity.n_eff(theta, data)})

    def linearise(self, theta: Theta, data: Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Prediction and exact derivatives; not finite where a precision leaves no effective parameters."""
        with np.errstate(divide="ignore", invalid="ignore"):
            f, by = super().linearise(theta, {**data, "N": self.capacity.n_eff(theta, data)})
            falls = -theta["alpha"] * theta["A"] * by["A"]
            return f, by | {name: falls * d for name, d in self.capacity.log_gradient(theta, data).items()}

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """Guesses of gamma and n that leave every point some parameters, each with its best Chinchilla laws."""
        return self.starts_above(self.capacity.lowest(data), data, rng)

    def starts_above(self, lowest: float, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """The same, for gammas and offsets that leave some parameters at `lowest` bits, whatever is in `data`."""
        found = []
        for _ in range(_N_GUESSES):
            theta = self.capacity.guess(lowest, rng)
            N = self.capacity.n_eff(theta, data)
            chinchilla = super().starts({**data, "N": N}, rng)
            found += [{**law, **theta} for law in (*chinchilla[:_BEST], *chinchilla[N_STARTS:][:_BEST])]
        return found

    def held(self, data: Data) -> dict[str, tuple[float, Finding]]:
        """What few D or few precisions leave open.

        With one D the term B/D^beta is a part of E: B is zero.  Two determine B at a known beta.  One precision of a
        part is a factor of A, as if it left all parameters; two determine gamma without the offset n.
        """
        found: dict[str, tuple[float, Finding]] = {}
        few = {x: n_distinct(values) for x, values in self.variables(data).items()}
        why_few = {x: why(Why.TOO_FEW_VALUES, variable=x, distinct=few[x], needed=self.needs[x]) for x in few}
        if few["D"] < self.needs["D"]:
            found["beta"] = BETA, why_few["D"]
            if few["D"] == 1:
                found["B"] = 0.0, why_few["D"]
        for P, gamma, n in self.capacity.names:
            x = "P" if self.capacity.tied else P
            if few[x] < self.needs[x] and n:
                found[n] = 0.0, why_few[x]
            if few[x] == 1:
                found[gamma] = _NO_LOSS, why_few[x]
        return found

    def optimal_precision(self, theta: Theta) -> float:
        """The training precision of all parts (bits) that is optimal at any budget; arXiv 2411.04330, sec. 4.3.2.

        For k tied parts x = P/gamma solves k·x = e^{x − n} − 1.  Zero where fewer bits are always better: one part
        without an offset.
        """
        return precision_with(1.0, *self.capacity.elasticity_constants(theta))

    def compute_optimal(  # pyrefly: ignore[bad-override]  # a product of N and D has no cost here
        self, theta: Theta, cost: Any, P: Any = 16.0
    ) -> tuple[Any, Any]:
        """The N and D of least loss with (6/16)·N·D·P = `cost` FLOPs and all parts at P bits.

        Chinchilla's closed form with A·f(P)^−alpha for A: the exponents of cost and P are equal and opposite but for f.
        """
        f = self.capacity.factor(theta, self.capacity.at(P))
        smaller = {**theta, "A": theta["A"] * f ** -theta["alpha"]}
        return super().compute_optimal(smaller, cost / (COST_PER_BIT * P))

    def optimal_precision_at(self, theta: Theta, N: float, cost: float) -> float:
        """The training precision of all parts (bits) of least loss for `cost` FLOPs at a given N.

        It grows like beta·gamma·log(cost): what one bit more saves of A·N_eff^−alpha must be worth its tokens.
        """
        constants = self.capacity.elasticity_constants(theta)
        start = max(gamma * n for gamma, n in zip(*constants))
        widest = start + 600 * max(constants[0])  # beyond it e^(−P/gamma) leaves the range of floats

        def excess(logarithm: float) -> float:
            """log of h(P)·alpha·A·N_eff^−alpha over beta·B·D^−beta: falls with P."""
            P = float(np.exp(logarithm))
            log_f = np.log(self.capacity.factor(theta, self.capacity.at(P)))
            log_D = np.log(cost / (COST_PER_BIT * N)) - logarithm
            gain = np.log(bits_elasticity(P, *constants) * theta["alpha"] * theta["A"])
            gain -= theta["alpha"] * (np.log(N) + log_f)
            return float(gain - np.log(theta["beta"] * theta["B"]) + theta["beta"] * log_D)

        low, high = np.log(max(start * (1 + 1e-9), 1e-6)), np.log(widest)
        return float(np.exp(_root(excess, low, high) if excess(low) > 0 else low))


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function is zero; it is positive at `low` and negative at `high`, either may be infinite."""
    return float(cast(float, brentq(falling, low, high, xtol=1e-10)))
