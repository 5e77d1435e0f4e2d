"""How often is a turn claimed where there is none, and how often is one found?  Simulated curves only.

Flat curves, and curves that fall and saturate: as a power of D and exponentially, each shallow and steep, down to a
plateau or nearly so.  Checkpoints scatter with a lag-1 correlation phi; the losses themselves are exact, so that
nothing but the scatter can be mistaken for a turn.  For information, falls of other shapes, and scatter with long tails
or of a size that changes with D.  Then curves that do turn, the intervals of the place, and whole reports of 24 lines
that share their checkpoints (2 runs, 3 quantizers, 4 bit-widths; scatter correlated by 0.8 within a run).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import SEED, Claim, Outcome, Setup
from ptq_eval.laws.turning.observed import TurningPoint, controlled, rise_test, turning_point
from ptq_eval.laws.turning.significance import SIGNIFICANCE

LENGTHS = (5, 6, 8, 10, 12, 15, 20, 30)
INDEPENDENT, CORRELATED, STRONG = 0.0, 0.5, 0.8
LEAST, MOST, MOST_CORRELATED = 0.03, 0.07, 0.08
CURVES, REPORTS = 400, 300
UNTURNED = 1000
"""Curves that never rise, of each length and correlation: 3 % over all lengths are then known to 0.2 points."""
REPLICATES = 400
"""Of the test's own simulation where power is measured.  Its level is measured with as many as it has: those of one
length are the same for all curves, so with 400 the level at that length is off by a point, on average over lengths by
0.4 points."""
DEPTH = 8.0
"""The rise of the curves that turn, in standard deviations of the scatter."""
BITS, QUANTIZERS, RUNS = (2, 3, 4, 8), 3, 2
SHARED = 0.8
COLUMNS = ["curve", "n", "phi", "claims"]

Mean = Callable[[int], np.ndarray]


def _power_law(size: float, exponent: float) -> Mean:
    return lambda n: size * np.geomspace(1, 100, n) ** -exponent


def _decay(size: float, rate: float) -> Mean:
    return lambda n: size * np.exp(-rate * np.linspace(0, 1, n))


SATURATING: dict[str, Mean] = {
    "power law, shallow": _power_law(5, 0.8),
    "power law, steep": _power_law(100, 1.5),
    "exponential, shallow": _decay(5, 10),
    "exponential, steep": _decay(100, 20),
}
FLAT: dict[str, Mean] = {"flat": lambda n: np.zeros(n)}
OTHER: dict[str, Mean] = {
    "early step": lambda n: np.where(np.linspace(0, 1, n) < 0.3, 20.0, 0.0),
    "late step": lambda n: np.where(np.linspace(0, 1, n) < 0.6, 20.0, 0.0),
    "straight fall, then flat": lambda n: 40 * np.maximum(0.5 - np.linspace(0, 1, n), 0),
    "steep fall, then a slow one": lambda n: 60 * np.exp(-15 * np.linspace(0, 1, n)) - 3 * np.linspace(0, 1, n),
}
Scale = Callable[[int], np.ndarray]
SCATTERS: dict[str, tuple[Scale, bool]] = {
    "larger at first": (lambda n: np.linspace(2, 0.5, n), False),
    "larger at the end": (lambda n: np.linspace(0.5, 2, n), False),
    "Student's t, 3 degrees of freedom": (lambda n: np.ones(n), True),
}


def _two_powers(n: int) -> np.ndarray:
    """A power of D that falls and one that rises, the minimum in the middle and the last loss `DEPTH` above it."""
    fine, t = np.linspace(0, 1, 1001), np.linspace(0, 1, n)
    ratio = 2 * math.exp(-4.5)
    curve = np.exp(-6 * fine) + ratio * np.exp(3 * fine)
    size = DEPTH / (curve[-1] - curve.min())
    return size * (np.exp(-6 * t) + ratio * np.exp(3 * t) - curve.min())


def _bent(fall: float, saturation: float, turn: float = 0.5) -> Mean:
    """A fall of `fall` times `DEPTH` along a parabola, and a rise that saturates."""

    def mean(n: int) -> np.ndarray:
        t = np.linspace(0, 1, n)
        down, up = np.maximum(turn - t, 0) / turn, np.maximum(t - turn, 0) / (1 - turn)
        return DEPTH * (fall * down**2 + np.expm1(-saturation * up) / np.expm1(-saturation))

    return mean


TURNING: dict[str, Mean] = {
    "parabola": lambda n: DEPTH * np.linspace(-1, 1, n) ** 2,
    "V": lambda n: DEPTH * np.abs(np.linspace(-1, 1, n)),
    "steep fall, then a rise": _bent(5, 0.01),
    "steep fall, then a rise that saturates": _bent(5, 4),
    "the same, at a third": _bent(5, 4, 1 / 3),
    "the same, at two thirds": _bent(5, 4, 2 / 3),
    "two powers of D": _two_powers,
}


def measure(setup: Setup) -> Outcome:
    """Claims on curves that never rise, on curves that turn, and in whole reports."""
    curves, unturned, reports = (100, 100, 20) if setup.quick else (CURVES, UNTURNED, REPORTS)
    outcome, rows = Outcome(), []
    for kinds, count, replicates in (
        (FLAT, unturned, None),
        (SATURATING, unturned // 4, None),
        (TURNING, curves // 4, REPLICATES),
    ):
        for kind, mean in kinds.items():
            for phi in (INDEPENDENT, CORRELATED, STRONG):
                rows += [[kind, n, phi, _share(mean(n), phi, count, replicates)] for n in LENGTHS]
    outcome.details["single curves"] = {"columns": COLUMNS, "rows": rows}
    outcome.details["other falls and other scatter"] = {"columns": COLUMNS, "rows": _others(curves // 4)}
    outcome.details["turns of other sizes, n = 10"] = {
        "columns": ["curve", "sigma", "phi", "claims"],
        "rows": [
            [kind, size, phi, _share(size / DEPTH * mean(10), phi, curves // 4)]
            for kind, mean in TURNING.items()
            for size in (3, 5, 12)
            for phi in (INDEPENDENT, CORRELATED)
        ],
    }
    outcome.claims = [*_sizes(rows), *_powers(rows)]
    found = [[n, phi, _detected(n, phi, curves // 2)] for n in LENGTHS for phi in (INDEPENDENT, CORRELATED)]
    outcome.details["rises as large as stated"] = {"columns": ["n", "phi", "claims"], "rows": found}
    shares = [row[2] for row in found if not math.isnan(row[2])]
    text = "rises as large as `detectable_rise` states, share found (stated: 0.8)"
    outcome.claims.append(Claim(text, float(np.mean(shares)), min(shares), max(shares)))
    outcome.claims += [*_places(max(curves // 10, 10), outcome), *_reports(reports, outcome)]
    return outcome


def noise(rng: np.random.Generator, shape: tuple[int, ...], phi: float, *, tailed: bool = False) -> np.ndarray:
    """Scatter of variance 1 with lag-1 correlation `phi` along the last axis; normal, or of Student's t."""
    found = rng.standard_t(3, shape) / math.sqrt(3) if tailed else rng.standard_normal(shape)
    for i in range(1, shape[-1]):
        found[..., i] = phi * found[..., i - 1] + math.sqrt(1 - phi**2) * found[..., i]
    return found


def _turn(loss: np.ndarray, n_boot: int = 0) -> TurningPoint:
    n = len(loss)
    return turning_point(np.geomspace(1e8, 1e10, n), loss, None, errors=np.zeros(n), n_boot=n_boot)


def _claimed(loss: np.ndarray, replicates: int | None = REPLICATES) -> bool:
    inside = 0 < int(np.argmin(loss)) < len(loss) - 1
    options = {} if replicates is None else {"replicates": replicates}
    return inside and rise_test(loss, 0.0, **options)["p_value"] <= SIGNIFICANCE


def _share(mean: np.ndarray, phi: float, count: int, replicates: int | None = REPLICATES) -> float:
    rng = np.random.default_rng([SEED, len(mean), int(100 * phi)])
    return float(np.mean([_claimed(mean + scatter, replicates) for scatter in noise(rng, (count, len(mean)), phi)]))


def _others(count: int) -> list[list[Any]]:
    """Claims on falls of other shapes; and, for flat and saturating curves together, with other scatter."""
    rows: list[list[Any]] = []
    for phi in (INDEPENDENT, CORRELATED):
        rows += [[kind, n, phi, _share(mean(n), phi, count)] for kind, mean in OTHER.items() for n in LENGTHS]
        for kind, (scale, tailed) in SCATTERS.items():
            for n in LENGTHS:
                rng = np.random.default_rng([SEED, n, int(100 * phi), 2])
                claims = [
                    _claimed(mean(n) + scale(n) * scatter)
                    for mean in (*FLAT.values(), *SATURATING.values())
                    for scatter in noise(rng, (count // 4, n), phi, tailed=tailed)
                ]
                rows.append([f"scatter {kind}", n, phi, float(np.mean(claims))])
    return rows


def _places(count: int, outcome: Outcome) -> Iterator[Claim]:
    """How often the interval of a turn that is claimed holds the place of the true minimum."""
    rows: list[list[Any]] = []
    for kind, mean in TURNING.items():
        fine = mean(10_001)
        place = float(np.geomspace(1e8, 1e10, len(fine))[np.argmin(fine)])
        for n in (8, 10, 15, 30):
            for phi in (INDEPENDENT, CORRELATED):
                rng = np.random.default_rng([SEED, n, int(100 * phi), 3])
                found = [_turn(mean(n) + scatter, 200) for scatter in noise(rng, (count, n), phi)]
                inside = [one.place.low <= place <= one.place.high for one in found if one.interior]
                rows.append([kind, n, phi, len(inside), float(np.mean(inside)) if inside else math.nan])
    outcome.details["places"] = {"columns": ["curve", "n", "phi", "turns claimed", "inside"], "rows": rows}
    for phi in (INDEPENDENT, CORRELATED):
        shares = [row[4] for row in rows if row[2] == phi and row[3]]
        yield Claim(
            f"90 % intervals of the place of a turn, phi = {phi:g}: share inside",
            float(np.mean(shares)),
            min(shares),
            max(shares),
            0.87,
            "at least",
        )


def _detected(n: int, phi: float, count: int) -> float:
    """The share found of parabolas that rise by the median of the rises stated for flat curves; NaN if that is none."""
    rng = np.random.default_rng([SEED, n, int(100 * phi), 1])
    stated = np.median([_turn(scatter).detectable_rise for scatter in noise(rng, (count, n), phi)])
    if not math.isfinite(stated):
        return math.nan
    shape = np.square(np.linspace(-1, 1, n))
    return _share(stated * (shape - shape.min()) / np.ptp(shape), phi, count)


def _sizes(rows: Sequence[list[Any]]) -> Iterator[Claim]:
    pooled = {"flat": [*FLAT], "saturating": [*SATURATING], "flat and saturating": [*FLAT, *SATURATING]}
    for name, kinds in pooled.items():
        for phi in (INDEPENDENT, CORRELATED, STRONG):
            own = {
                n: float(np.mean([row[3] for row in rows if row[0] in kinds and row[1:3] == [n, phi]])) for n in LENGTHS
            }
            value, both = float(np.mean([*own.values()])), (min(own.values()), max(own.values()))
            text = f"{name} curves, phi = {phi:g}, n = 5 to 30: turns claimed at 5 %"
            if phi == INDEPENDENT:
                yield Claim(text, value, *both, MOST)
                yield Claim(f"{text} (no fewer than promised)", value, *both, LEAST, "at least")
            else:
                yield Claim(text, value, *both, MOST_CORRELATED if phi == CORRELATED else None)


def _powers(rows: Sequence[list[Any]]) -> Iterator[Claim]:
    for kind in TURNING:
        for few, lengths in ((True, [n for n in LENGTHS if n < 10]), (False, [n for n in LENGTHS if n >= 10])):
            own = [row[3] for row in rows if row[0] == kind and row[1] in lengths and row[2] <= CORRELATED]
            text = f"{kind} of {DEPTH:g} sigma, {'n < 10' if few else 'n = 10 to 30'}, phi = 0 and 0.5: turns found"
            yield Claim(text, float(np.mean(own)), min(own), max(own))


def _reports(count: int, outcome: Outcome) -> Iterator[Claim]:
    """Any false claim in a report of 24 lines, where none turns and where all those of the fewest bits do."""
    rows = []
    for turning in (False, True):
        for n in (8, 15):
            for phi in (INDEPENDENT, CORRELATED):
                rng = np.random.default_rng([SEED, n, int(100 * phi), turning])
                found = [_report(rng, n, phi, turning) for _ in range(count)]
                rows.append([turning, n, phi, *(float(v) for v in np.mean(found, axis=0))])
    outcome.details["reports of 24 lines"] = {
        "columns": ["2 bits turn", "n", "phi", "any false claim", "the same, without control", "turns found"],
        "rows": rows,
    }
    for turning, text in ((False, "no line turns"), (True, "all lines of 2 bits turn")):
        for phi, limit in ((INDEPENDENT, MOST), (CORRELATED, MOST_CORRELATED)):
            own = [row[3] for row in rows if row[0] == turning and row[2] == phi]
            what = f"reports of 24 lines, {text}, phi = {phi:g}: any false claim"
            yield Claim(what, float(np.mean(own)), min(own), max(own), limit)


def _report(rng: np.random.Generator, n: int, phi: float, turning: bool) -> tuple[bool, bool, float]:
    """Whether any line is falsely claimed, with and without control, and the share of the turns that are found."""
    lines = {(run, q, bits): None for run in range(RUNS) for q in range(QUANTIZERS) for bits in BITS}
    common = noise(rng, (RUNS, n), phi)
    points = {}
    for run, q, bits in lines:
        scatter = math.sqrt(SHARED) * common[run] + math.sqrt(1 - SHARED) * noise(rng, (1, n), phi)[0]
        points[run, q, bits] = _turn(scatter + (2 * TURNING["parabola"](n) if turning and bits == min(BITS) else 0.0))
    kept = controlled(points, {name: (name[:2], name[2]) for name in points})
    real = {name for name in lines if turning and name[2] == min(BITS)}
    false = any(kept[name].interior for name in lines if name not in real)
    plain = any(points[name].interior for name in lines if name not in real)
    return false, plain, sum(kept[name].interior for name in real) / max(len(real), 1)
