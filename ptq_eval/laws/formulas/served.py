"""Weights, activations and key-value cache rounded after training: the degradation as a function of three precisions.

Two forms, both for one model size, with r = D/N and a part x of weights (w), activations (a) and cache (kv):

    delta = C_post · r^growth · [Π_x (1 − e^{−P_x/gamma_post_x})^{−alpha_post} − 1]                     n_eff_ptq
    delta = [Π_x (1 + kappa·delta_x) − 1]/kappa,   delta_x = C_post_x · r^growth_x · e^{−P_x/gamma_post_x}  product_ptq

The first takes the law of *training* precisions of Kumar et al. (arXiv 2411.04330, eqs. 3 and 4): the loss that rises
where N shrinks to N_eff, A/N^alpha·[(N_eff/N)^−alpha − 1].  For rounding after training its amplitude is fitted and
grows with D, as in their eq. 2, which is the limit for weights alone at many bits, with gamma_post = gamma_post_w.
alpha_post, which sets how the parts multiply beside how far each goes, is given: the paper's alpha.  The second lets
every part follow an eq. 2 of its own, and joins them as factors of N_eff do, with 1/kappa for A/N^alpha; kappa = 0 is
their sum.

A precision of 16 bits or more is full precision, in which a part adds nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np

from ptq_eval.config.plan import FULL_BITS
from ptq_eval.errors import OptionError
from ptq_eval.laws.base import Data, Parameter, Theta, n_distinct
from ptq_eval.laws.findings import Finding, Why, why
from ptq_eval.laws.formulas.chinchilla import Growing
from ptq_eval.laws.formulas.n_eff import PARTS
from ptq_eval.laws.formulas.presets import KUMAR_2024

ALPHA = KUMAR_2024.constants["alpha"]
"""Where alpha_post is kept."""
ONE_PRECISION = 1.0
"""Where gamma_post of a part is kept, in bits, if one precision was measured and its factor takes up the rest."""
_N_STARTS = 4
_STEPS = 80
"""Of a bisection in log D, over 300 powers of ten."""


class Served(Growing):
    """What both forms share: the parts that were rounded, and which precisions of each."""

    response: ClassVar[str] = "delta"
    min_scatter: ClassVar[float] = 0.01
    one_value: ClassVar[tuple[str, ...]] = ("P_w", "P_a", "P_kv")

    def __init__(self, parts: Sequence[str] = tuple(PARTS)) -> None:
        if not parts or set(parts) - set(PARTS) or len(set(parts)) < len(parts):
            raise OptionError("parts of a model, each once", got=repr(tuple(parts)), allowed=", ".join(PARTS))
        self.parts = tuple(parts)
        self.letters = tuple(PARTS[part] for part in self.parts)
        self.columns = ("N", "D", *(f"P_{x}" for x in self.letters))
        self.needs: Mapping[str, int] = {"D/N": 2}

    def variables(self, data: Data) -> dict[str, np.ndarray]:
        """D/N."""
        return {"D/N": data["D"] / data["N"]}

    def objection(self, data: Data) -> Finding | None:
        """As of any law; besides, every part must have been rounded."""
        for x in self.letters:
            if not (data[f"P_{x}"] < FULL_BITS).any():
                return why(Why.TOO_FEW_VALUES, variable=f"P_{x}", distinct=0, needed=1)
        return super().objection(data)

    def gradient(self, theta: Theta, data: Data) -> dict[str, np.ndarray]:
        """Exact derivatives."""
        return self.linearise(theta, data)[1]

    def predict(self, theta: Theta, data: Data) -> np.ndarray:
        """Delta in nats per token."""
        return self.linearise(theta, data)[0]

    def left(self, x: str, theta: Theta, data: Data) -> Any:
        """e^{−P_x/gamma_post_x}, zero in full precision."""
        P = np.asarray(data[f"P_{x}"], float)
        return np.where(P < FULL_BITS, np.exp(-P / theta[f"gamma_post_{x}"]), 0.0)

    def _alone(self, x: str, data: Data) -> np.ndarray:
        """The points [n] with delta > 0 in which this part alone is rounded."""
        others = [data[f"P_{y}"] >= FULL_BITS for y in self.letters if y != x]
        return np.all([data[f"P_{x}"] < FULL_BITS, data["delta"] > 0, *others], axis=0)


class NEffPTQ(Served):
    """delta of the N_eff law with an amplitude that grows with D; see the module.  Columns N, D, and P_w, P_a, P_kv of
    the `parts` (bits when served)."""

    name = "n_eff_ptq"
    equation = "delta = C_post * (D/N)^growth * (prod over x of (1 - exp(-P_x / gamma_post_x))^-alpha_post - 1)"
    source = "the factors of Kumar et al. 2024, arXiv 2411.04330, eqs. 3 and 4, for rounding after training"
    linear = ("C_post",)
    grows = "growth"

    def __init__(self, parts: Sequence[str] = tuple(PARTS), *, alpha: float = ALPHA) -> None:
        """`parts` of weights, activations, kv; `alpha`: of the N_eff law."""
        super().__init__(parts)
        self.parameters = (
            Parameter("C_post", 1e-30, 1e30, "nats per token", log=True),
            Parameter("growth", -3.0, 3.0),
            *(Parameter(f"gamma_post_{x}", 0.05, 20.0, "bits", log=True) for x in self.letters),
            Parameter("alpha_post", alpha, alpha),
        )

    def objection(self, data: Data) -> Finding | None:
        """Besides, one part needs two precisions: otherwise nothing tells the amplitude from the factors."""
        most = {x: n_distinct(P[P < FULL_BITS]) for x in self.letters if len(P := data[f"P_{x}"])}
        if found := super().objection(data):
            return found
        best = max(most, key=lambda x: most[x])
        few = most[best] < 2
        return why(Why.TOO_FEW_VALUES, variable=f"P_{best}", distinct=most[best], needed=2) if few else None

    def linearise(self, theta: Theta, data: Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Prediction and derivatives."""
        logs = {x: -np.log1p(-self.left(x, theta, data)) for x in self.letters}
        total = np.minimum(theta["alpha_post"] * sum(logs.values()), 700.0)
        r = np.log(np.asarray(data["D"] / data["N"], float))
        scale = theta["C_post"] * np.exp(np.clip(theta["growth"] * r, -700.0, 700.0))
        delta = scale * np.expm1(total)
        by = {"C_post": delta / theta["C_post"], "growth": delta * r}
        for x in self.letters:
            u, P = self.left(x, theta, data), data[f"P_{x}"]
            steep = theta["alpha_post"] * u / (1 - u) * P / np.square(theta[f"gamma_post_{x}"])
            by[f"gamma_post_{x}"] = scale * np.exp(total) * steep
        by["alpha_post"] = scale * np.exp(total) * sum(logs.values())
        return delta, by

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """The log-linear solution of the limit of many bits, on points of one part alone; then others around it."""
        alone = {x: self._alone(x, data) for x in self.letters}
        keep = np.any(list(alone.values()), axis=0)
        keep = keep if keep.sum() > len(self.letters) + 2 else data["delta"] > 0
        r = np.log(data["D"] / data["N"])
        bits = [np.where(data[f"P_{x}"] < FULL_BITS, data[f"P_{x}"], 0.0) for x in self.letters]
        design = np.column_stack([np.ones(len(r)), r, *bits])
        found = np.linalg.lstsq(design[keep], np.log(data["delta"][keep]), rcond=None)[0]
        alpha = self.parameters[-1].low
        scale = min(max(found[0] - np.log(alpha), -60.0), 60.0)
        center = {"C_post": float(np.exp(scale)), "growth": float(found[1]), "alpha_post": alpha}
        center |= {f"gamma_post_{x}": _inverse(slope) for x, slope in zip(self.letters, found[2:])}
        return [center, *(_around(center, self.parameters, rng) for _ in range(_N_STARTS))]


class ProductPTQ(Served):
    """delta of parts that each follow eq. 2 of Kumar et al. and multiply as factors of N_eff do; see the module.

    Columns N, D, and P_w, P_a, P_kv of the `parts` (bits when served).
    """

    name = "product_ptq"
    equation = "delta = (prod over x of (1 + kappa * delta_x) - 1) / kappa,  "
    equation += "delta_x = C_post_x * (D/N)^growth_x * exp(-P_x / gamma_post_x)"
    source = "eq. 2 of Kumar et al. 2024, arXiv 2411.04330, for each part, joined as the factors of their eq. 4"

    def __init__(
        self, parts: Sequence[str] = tuple(PARTS), *, kappa: float | None = None, one_precision: Sequence[str] = ()
    ) -> None:
        """`parts` of weights, activations, kv; `kappa` per nat: fitted, or given (0: the parts add); `one_precision`:
        the parts measured at one precision, whose gamma_post is fixed."""
        super().__init__(parts)
        once = {PARTS[part] for part in one_precision}
        of_parts: list[Parameter] = []
        for x in self.letters:
            ends = (ONE_PRECISION, ONE_PRECISION) if x in once else (0.05, 20.0)
            of_parts += [
                Parameter(f"C_post_{x}", 1e-30, 1e30, "nats per token", log=True),
                Parameter(f"growth_{x}", -3.0, 3.0),
                Parameter(f"gamma_post_{x}", *ends, "bits", log=True),
            ]
        low, high = (0.0, 1e3) if kappa is None else (kappa, kappa)
        self.parameters = (*of_parts, Parameter("kappa", low, high, "per nat"))

    def alone(self, x: str, theta: Theta, data: Data) -> Any:
        """delta_x, nats per token."""
        r = np.log(np.asarray(data["D"] / data["N"], float))
        exponent = np.log(theta[f"C_post_{x}"]) + theta[f"growth_{x}"] * r
        return np.exp(np.clip(exponent, -230.0, 230.0)) * self.left(x, theta, data)

    def _joined(self, parts: Mapping[str, Any], kappa: Any) -> tuple[Any, dict[str, Any], Any]:
        """delta, its derivative by each part, and by kappa."""
        delta, by_kappa, by = sum(parts.values()), 0.0, {}
        for order in range(2, len(parts) + 1):
            products = sum(np.prod(np.broadcast_arrays(*some), axis=0) for some in combinations(parts.values(), order))
            delta = delta + kappa ** (order - 1) * products
            by_kappa = by_kappa + (order - 1) * kappa ** (order - 2) * products
        for x in parts:
            by[x] = 1.0
            for y in parts:
                by[x] = by[x] * (1 + kappa * parts[y]) if y != x else by[x]
        return delta, by, by_kappa

    def linearise(self, theta: Theta, data: Data) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Prediction and derivatives."""
        parts = {x: self.alone(x, theta, data) for x in self.letters}
        delta, by_part, by_kappa = self._joined(parts, theta["kappa"])
        r, by = np.log(np.asarray(data["D"] / data["N"], float)), {}
        for x, part in parts.items():
            whole = by_part[x] * part
            by[f"C_post_{x}"] = whole / theta[f"C_post_{x}"]
            by[f"growth_{x}"] = whole * r
            by[f"gamma_post_{x}"] = whole * data[f"P_{x}"] / np.square(theta[f"gamma_post_{x}"])
        by["kappa"] = by_kappa + 0.0 * delta
        return delta, by

    def slope(self, theta: Theta, data: Data) -> Any:
        """The derivative of delta by log D: Σ growth_x·delta_x·Π_y (1 + kappa·delta_y), y other than x."""
        parts = {x: self.alone(x, theta, data) for x in self.letters}
        by = self._joined(parts, theta["kappa"])[1]
        return sum(theta[f"growth_{x}"] * parts[x] * by[x] for x in self.letters)

    def critical_tokens(self, theta: Theta, loss: Theta, data: Data) -> Any:
        """D in tokens where B/D^beta and delta are least: where slope(D) = beta·B/D^beta, by bisection in log D.

        Infinite where delta does not grow; the root is the only one where every growth is positive.
        """
        B, beta = np.asarray(loss["B"], float), np.asarray(loss["beta"], float)
        at = lambda log: self.slope(theta, {**data, "D": np.exp(log)}) - beta * B * np.exp(-beta * log)
        probe = np.broadcast_arrays(at(0.0), B)[0]
        low, high = np.zeros(probe.shape), np.full(probe.shape, 690.0)
        with np.errstate(over="ignore", invalid="ignore"):
            turns = at(high) > 0
            for _ in range(_STEPS):
                middle = (low + high) / 2
                beyond = at(middle) > 0
                low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        return np.where(turns, np.exp(high), np.inf)[()]

    def starts(self, data: Data, rng: np.random.Generator) -> list[dict[str, float]]:
        """Each part by the log-linear solution of its points alone, with several kappa; then others around them."""
        center: dict[str, float] = {}
        r = np.log(data["D"] / data["N"])
        for x in self.letters:
            own = self._alone(x, data)
            rounded = (data[f"P_{x}"] < FULL_BITS) & (data["delta"] > 0)
            keep = own if own.sum() > 3 else rounded
            design = np.column_stack([np.ones(len(r)), r, data[f"P_{x}"]])
            found = np.linalg.lstsq(design[keep], np.log(data["delta"][keep]), rcond=None)[0] if keep.any() else [0] * 3
            center |= {f"growth_{x}": float(np.clip(found[1], -2, 2)), f"gamma_post_{x}": _inverse(found[2])}
            scale = float(np.clip(found[0], -60, 60))
            fixed = next(p for p in self.parameters if p.name == f"gamma_post_{x}")
            if fixed.fixed:
                scale += float(np.mean(data[f"P_{x}"][rounded])) * (found[2] + 1 / fixed.low)
                center[f"gamma_post_{x}"] = fixed.low
            center[f"C_post_{x}"] = float(np.exp(scale))
        last = self.parameters[-1]
        kappas = [last.low] if last.fixed else [0.05, 0.5, 3.0]
        starts = [{**center, "kappa": kappa} for kappa in kappas]
        return [*starts, *(_around(start, self.parameters, rng) for start in starts)]


def _inverse(slope: float) -> float:
    """gamma_post of a slope of log delta along the bits."""
    return float(1 / np.clip(-slope, 0.1, 10.0))


def _around(center: Theta, parameters: Sequence[Parameter], rng: np.random.Generator) -> dict[str, float]:
    found = {}
    for p in parameters:
        step = 0.0 if p.fixed else 0.3 * rng.normal()
        value = center[p.name] * np.exp(step) if p.log else center[p.name] + step
        found[p.name] = float(np.clip(value, p.low, p.high))
    return found


def laws_of(names: Collection[str]) -> tuple[Served, ...]:
    """The laws of three precisions of the parts whose constants are among these names; none without any."""
    parts = tuple(part for part, x in PARTS.items() if f"gamma_post_{x}" in names)
    return (NEffPTQ(parts), ProductPTQ(parts)) if parts else ()
