"""Did it do anything?  Signs that a measurement is not of what its name says, noted while it is made.

None of them is a failure: the number stays, and its record carries the doubts (`records.Doubt`) with their facts.

**The weights** of each layer are compared with those before and with rounding to nearest (RTN) under the same scheme,
on `ROWS` rows; all rows where these look suspicious, or where the format has a scale for the whole matrix.  A method
that is not rounding and gives its weights has had no effect; weights that are what they were, although rounding would
change them, were not quantized; an error much larger than rounding's (`MAX_ERROR`) is no rounding at all, and a much
smaller one (`MIN_ERROR`) needs more bits.

**The statistics** of a layer rest on as many tokens as reached it: with fewer than it has inputs, H is singular, and
what a method makes of it is decided by the damping.

**The loss.**  To second order KL(full precision ‖ quantized) is ½ εᵀFε in the error ε of the weights
(`theory.curvature`), so the model with a part t·ε of the error has t² of the divergence.  The ratio of the divergence
to 16 times that of the model with ¼ ε, on the same few windows, is 1 where the second order holds.
At 2, 3, 4 and 8 bits and in four formats, with groups and without, over three sizes of models, it was between 0.8 and
1.75; models with permuted, negated or shifted weights had ratios of 0.1 to 0.35 (docs/log.md).  `BAND` is wider than
the former.  Weights of a narrow type hold a quarter of an error only where that is large beside their own rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.scoring import Scores
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.records import Doubt
from quantizers import LayerStats, QuantizationError, Quantizer, Scheme, gaussian_mse, get_quantizer

UNCHANGED = 2e-3
"""Relative change below which a weight counts as unchanged: 8 bits move it by more, a change to bfloat16 by less."""
EQUALITY = 0.05
"""Distance of weights from rounded ones, as a share of the error of rounding, below which they count as the same:
scales that a package stores in 16 bits move them by less at 4 bits and below."""
MAX_ERROR = 50.0
"""Above this, a layer's squared error relative to rounding's cannot come from quantizing.  GPTQ, which accepts larger
errors of weights for smaller ones of outputs, reached 12 in single layers of the embedded trajectories."""
MIN_ERROR = 0.03
"""Below this, a layer's squared error relative to rounding's needs more bits than the scheme has: three bits more have
1/64.  The best choice of ranges alone reaches 0.27: rows of 4,096 heavy-tailed weights, 3 bits (docs/log.md)."""
BAND = (0.4, 2.5)
"""Plausible ratios of the divergence to its second order."""
SAME_WEIGHTS = 2e-3
"""Relative distance of weights that count as the same after a forward pass or a reload; a change of type is less: to
bfloat16 it is 1.2e-3."""
ROWS = 16
PART = 0.25
PROBE_SHARE, MOST_PROBES = 64, 4
"""One window of so many is scored again for the second order, at most so many of them."""
_SMALLEST = 1e-5
"""Divergence, nats per token, below which float32 arithmetic decides its ratio."""
_HELD = 0.1
"""Relative error of weights of a narrow type from which on a part of it can be held in that type."""


def unchanged(own: Tensor, weight: Tensor, scheme: Scheme) -> bool:
    """Whether a layer is what it was, although rounding it to nearest would change it; [out, in] each."""
    if distance(weight, own) > UNCHANGED:
        return False
    rounded = _rounded(own, scheme)
    return rounded is None or distance(rounded, own) > UNCHANGED


def distance(one: Tensor, other: Tensor) -> float:
    """Relative to the norm of the `other`."""
    return float((one - other).norm() / other.norm().clamp_min(torch.finfo(torch.float32).tiny))


@cache
def _rounding() -> Quantizer:
    """RTN; looking up an installed plug-in takes milliseconds."""
    return get_quantizer("rtn")


def _rounded(own: Tensor, scheme: Scheme) -> Tensor | None:
    try:
        return _rounding().quantize(own, scheme).dequantize()
    except (ValueError, QuantizationError):
        return None


@dataclass
class Witness:
    """What is noted of one variant while its layers are quantized.  `compared`: whether equality with RTN is a sign;
    `rounding`: whether they come from RTN, where there is nothing to compare."""

    compared: bool = True
    rounding: bool = False
    layers: int = 0
    alike: list[str] = field(default_factory=list)
    still: list[str] = field(default_factory=list)
    large: dict[str, float] = field(default_factory=dict)
    small: dict[str, float] = field(default_factory=dict)
    few: dict[str, tuple[int, int]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)

    def weight(self, name: str, own: Tensor, new: Tensor, scheme: Scheme) -> None:
        """Note how a layer's `new` weight [out, in] is related to its `own` and to the rounded one."""
        self.layers += 1
        if self.rounding:
            return
        step = max(1, len(own) // ROWS) if scheme.format == "int" else 1
        seen = _compared(own[::step], new[::step], scheme)
        if step > 1 and (seen.alike or seen.still or seen.of_rounding < MIN_ERROR):
            seen = _compared(own, new, scheme)
        if seen.alike and self.compared:
            self.alike.append(name)
        if seen.still:
            self.still.append(name)
        elif seen.of_rounding < MIN_ERROR:
            self.small[name] = seen.of_rounding
        if seen.of_usual > MAX_ERROR:
            self.large[name] = seen.of_usual

    def statistics(self, names: Sequence[str], stats: LayerStats) -> None:
        """Note what the statistics of a group of layers rest on."""
        if stats.n_tokens == 0 or not bool(stats.mean_abs.any()):
            self.empty += names
        else:
            self.tokens(dict.fromkeys(names, stats.in_features), stats.n_tokens)

    def tokens(self, inputs: Mapping[str, int], tokens: int) -> None:
        """Note layers, by name with their number of inputs, whose statistics rest on fewer tokens."""
        self.few |= {name: (tokens, columns) for name, columns in inputs.items() if tokens < columns}

    def noted(self, name: str) -> dict[str, Any]:
        """What is noted of one layer, as JSON; `restore` is the inverse."""
        lists = {which: True for which in ("alike", "still", "empty") if name in getattr(self, which)}
        facts = {
            which: getattr(self, which)[name] for which in ("large", "small", "few") if name in getattr(self, which)
        }
        return {**lists, **facts}

    def restore(self, name: str, noted: Mapping[str, Any]) -> None:
        """Note what an earlier process noted of a layer."""
        for which, value in noted.items():
            if value is True:
                getattr(self, which).append(name)
            else:
                getattr(self, which)[name] = value

    def doubts(self) -> list[dict[str, Any]]:
        """What gives reason to doubt, for the record."""
        found = []
        if self.alike and len(self.alike) == self.layers:  # AWQ's search chooses no scaling in single layers, rightly
            found.append(self._of(Doubt.LIKE_ROUNDING, self.alike))
        if self.still:
            found.append(self._of(Doubt.UNCHANGED, self.still))
        if self.large:
            found.append({**self._of(Doubt.LARGE_ERROR, list(self.large)), "ratio": max(self.large.values())})
        if self.small:
            found.append({**self._of(Doubt.SMALL_ERROR, list(self.small)), "ratio": min(self.small.values())})
        if self.empty:
            found.append(self._of(Doubt.NO_STATISTICS, self.empty))
        if self.few:
            tokens, inputs = min(self.few.values(), key=lambda pair: pair[0] / pair[1])
            found.append({**self._of(Doubt.FEW_TOKENS, list(self.few)), "tokens": tokens, "inputs": inputs})
        return found

    def _of(self, kind: Doubt, layers: Sequence[str]) -> dict[str, Any]:
        return {"kind": kind.value, "layers": len(layers), "of": max(self.layers, len(layers)), "first": layers[0]}


class _Seen(NamedTuple):
    """Of some rows: like rounding; unchanged although rounding is not; squared error relative to rounding's.

    `of_usual`: that error of rounding counts as at least what Gaussian weights of this size would have, as weights that
    are on the grid already have next to none, and on any other grid much more.  `of_rounding`: 1 for such weights.
    """

    alike: bool
    still: bool
    of_usual: float
    of_rounding: float


def _compared(own: Tensor, new: Tensor, scheme: Scheme) -> _Seen:
    own, new = own.float(), new.to(own.device).float()
    rounded = _rounded(own, scheme)
    if rounded is None:
        return _Seen(False, distance(new, own) <= UNCHANGED, 0.0, 1.0)
    rounding, mine = float((rounded - own).square().sum()), float((new - own).square().sum())
    usual = max(rounding, gaussian_mse(scheme) * float(own.square().sum()))
    moves = distance(rounded, own) > UNCHANGED
    still = moves and distance(new, own) <= UNCHANGED
    alike = rounding > 0 and float((new - rounded).square().sum()) <= EQUALITY**2 * rounding
    return _Seen(alike, still, mine / usual if usual > 0 else 0.0, mine / rounding if moves else 1.0)


def of_backend(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Doubts from what a backend's worker found of its own model: `after_forward` and `after_reload`, distances."""
    kinds = {"after_forward": Doubt.MOVES, "after_reload": Doubt.RELOADS_DIFFERENTLY}
    return [
        {"kind": kind.value, "distance": facts[name]}
        for name, kind in kinds.items()
        if (facts.get(name) or 0.0) > SAME_WEIGHTS
    ]


def of_rounded(layers: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The doubt of a variant of `count` layers; the method could only round these to nearest."""
    if not layers:
        return []
    return [{"kind": Doubt.ROUNDED.value, "layers": len(layers), "of": count, "first": layers[0]}]


def of_losses(nll: Sequence[float], full: Sequence[float]) -> list[dict[str, Any]]:
    """The doubt of a variant whose losses are, window by window, exactly those in full precision."""
    if not nll or list(nll) != list(full):
        return []
    return [{"kind": Doubt.NO_EFFECT.value, "windows": len(nll)}]


class Plausibility:
    """Scores variants with a part of their error on a few windows of an evaluator, which must see these windows."""

    def __init__(self, model: LanguageModel, evaluator: Evaluator) -> None:
        count = len(evaluator.order)
        wanted = min(MOST_PROBES, max(1, count // PROBE_SHARE))
        self.model = model
        self.windows = evaluator.order[:wanted] if evaluator.rule else [i * count // wanted for i in range(wanted)]
        self._evaluator = Evaluator(model, _in_order(evaluator)[self.windows])
        self._evaluator.budget = float("inf")  # these few windows' full-precision outputs are kept

    @torch.inference_mode()
    def ratio(self, weights: Mapping[str, Tensor], windows: Sequence[int], scores: Scores) -> float | None:
        """The divergence over its second order; None where arithmetic would decide it.

        `weights` are moved to the part of their error that is scored, and no longer the variant's afterwards, unless
        they are on disk.  `scores` of the variant on `windows`.
        """
        error = size = 0.0
        moved: dict[str, Tensor] = {}
        for name, weight in weights.items():
            own = self.model.weight(name).to(weight.device)
            if weight.dtype is not torch.float32:
                error += float((weight - own).float().square().sum())
                size += float(own.float().square().sum())
            moved[name] = weight.lerp_(own, 1 - PART)
        if error < _HELD**2 * size:
            return None
        _, part = self._evaluator.score([moved])[0]
        tokens = len(self.windows) * (self._evaluator.ids.shape[1] - 1)
        places = {window: place for place, window in enumerate(windows)}
        whole = sum(scores.kl[places[window]] for window in self.windows) / tokens
        second = sum(part.kl) / tokens / PART**2
        return whole / second if min(whole, second) > _SMALLEST else None


def of_ratio(ratio: float | None) -> list[dict[str, Any]]:
    """The doubt of a ratio outside the band."""
    if ratio is None or BAND[0] <= ratio <= BAND[1]:
        return []
    return [{"kind": Doubt.IMPLAUSIBLE.value, "ratio": ratio}]


def _in_order(evaluator: Evaluator) -> Tensor:
    """The windows of an evaluator in their original order, [n, time]."""
    ids = torch.empty_like(evaluator.ids)
    ids[evaluator.order] = evaluator.ids
    return ids
