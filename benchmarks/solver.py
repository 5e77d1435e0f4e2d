"""The GPTQ solver against the published algorithm in plain torch, on matrices of the sizes that models have.

Both get the same random weight and the same H, the statistics of inputs with strong correlations, and solve the whole
layer, factor included; the factor's share is timed apart.  4096 × 11008 is the down projection of a 7 B Llama.  Equal
codes are counted: the two compare rounded sums in another order, so a code on the edge between two may differ, and from
there the row goes another way.

Together means the four bit-widths of a grid in one call, `quantize_grid`, against one bit-width in the same call.  Only
the factor is shared, and the price that operations alone would give is reported beside the measured one; for the shape
that is held to a limit, `solver_parts` says where the time of both calls goes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import published_gptq, solver_parts
from benchmarks.harness import SEED, Claim, Outcome, Seconds, Setup, by_turns, claim_of, clock
from quantizers import LayerStats, Scheme, get_quantizer

BITS, GROUP, GRID = 4, 128, (2, 3, 4, 8)
SHAPES = ((1024, 1024), (2048, 2048), (4096, 4096), (4096, 11008))
TURNS, TURNS_IF_LONG = 3, 2
HELD, LIMIT, TOGETHER = (4096, 4096), 5.0, 1.5
TOKENS = 4096


@dataclass
class Solved:
    """One shape: paired times of (published, ours), of the factors, and of (one, four) bit-widths."""

    shape: tuple[int, int]
    pairs: list[tuple[Seconds, Seconds]]
    factor: Seconds
    grid: list[tuple[Seconds, Seconds]]
    equal: float
    error: tuple[float, float]


def measure(setup: Setup) -> Outcome:
    """All shapes; in a rehearsal, small ones."""
    shapes = ((256, 256), (512, 512)) if setup.quick else SHAPES
    solved = [solve(*shape, repeats=_repeats(shape, setup.quick), device="cpu") for shape in shapes]
    outcome = Outcome(claims=claims_of(solved, HELD, LIMIT))
    held = shapes[-1] if setup.quick else HELD
    outcome.details = {
        f"solver, {BITS} bits, groups of {GROUP}": table_of(solved),
        f"parts of the solver, {held[0]} × {held[1]}": parts_table(*held, repeats=1 if setup.quick else TURNS),
    }
    outcome.details["times"] = [
        {"shape": list(s.shape), "published, ours": _pairs(s.pairs), "one, four": _pairs(s.grid)} for s in solved
    ]
    return outcome


def claims_of(solved: Sequence[Solved], held: tuple[int, int], limit: float) -> list[Claim]:
    """Of each shape the speed and the price of three more bit-widths; limits where they are promised."""
    claims = []
    for s in solved:
        name = f"{s.shape[0]} × {s.shape[1]}"
        mine = {"limit": limit, "sense": "at least"} if s.shape == held else {}
        ratios = [published.wall / ours.wall for published, ours in s.pairs]
        claims.append(claim_of(f"speed: GPTQ of {name}, published algorithm in plain torch / ours", ratios, **mine))
        price = [four.wall / one.wall for one, four in s.grid]
        kept = {"limit": TOGETHER} if s.shape == held else {}
        claims.append(claim_of(f"GPTQ of {name}, four bit-widths together / one alone", price, **kept))
    return claims


def table_of(solved: Sequence[Solved]) -> dict[str, Any]:
    """The claims' numbers side by side."""
    rows = []
    for s in solved:
        published, ours = (statistics.median(pair[i].wall for pair in s.pairs) for i in range(2))
        one, four = (statistics.median(pair[i].wall for pair in s.grid) for i in range(2))
        name = f"{s.shape[0]} × {s.shape[1]}"
        first = [name, published, s.factor.wall, ours, published / ours]
        price = [one, four, four / one, solver_parts.bound(*s.shape, len(GRID))]
        rows.append([*first, *price, s.equal, *s.error, len(s.pairs)])
    return {
        "note": "Wall seconds, medians; error is tr(ΔW·H·ΔWᵀ) / tr(W·H·Wᵀ). By operations: four bit-widths over one if "
        "columns³ / 3 for the factor and rows · columns² for the products of each bit-width are all that counts. One "
        "code that falls the other way changes what all later columns of its row absorb, so in long rows a few such "
        "codes make many others differ; what both sides minimise, the error, is then still the same.",
        "columns": [
            "out × in",
            "published",
            "of it factors",
            "ours",
            "ratio",
            "one bit-width",
            "four together",
            "four / one",
            "four / one by operations",
            "equal codes",
            "error, published",
            "error, ours",
            "turns",
        ],
        "rows": rows,
    }


def parts_table(rows: int, columns: int, *, repeats: int) -> dict[str, Any]:
    """Where the time of one bit-width, and of four together, goes on a random layer [rows, columns], on a CPU."""
    quantizer, (weight, stats) = get_quantizer("gptq"), layer(rows, columns, "cpu")
    sides = [[Scheme(BITS, GROUP)], [Scheme(bits, GROUP) for bits in GRID]]
    one, four = (
        solver_parts.parts_of(lambda schemes=schemes: quantizer.quantize_grid([weight], schemes, stats), repeats)
        for schemes in sides
    )
    return solver_parts.table_of(rows, columns, one, four, len(GRID))


def solve(rows: int, columns: int, *, repeats: int, device: str) -> Solved:
    """Both sides by turns on one random layer [rows, columns], after a small layer that compiles and warms up."""
    small, few = layer(64, 256, device)
    quantizer, scheme = get_quantizer("gptq"), Scheme(BITS, GROUP)
    schemes = [Scheme(bits, GROUP) for bits in GRID]
    quantizer.quantize_grid([small], schemes, few)
    weight, stats = layer(rows, columns, device)
    hessian = stats.hessian

    def published() -> tuple[Tensor, Tensor]:
        return published_gptq.gptq(weight, published_gptq.upper_factor(hessian), BITS, GROUP)

    pairs = by_turns(
        _finished(published, device),
        _finished(lambda: quantizer.quantize_grid([weight], [scheme], stats), device),
        repeats,
        warm_up=False,
    )
    grid = by_turns(
        _finished(lambda: quantizer.quantize_grid([weight], [scheme], stats), device),
        _finished(lambda: quantizer.quantize_grid([weight], schemes, stats), device),
        repeats,
        warm_up=False,
    )
    factor = clock(_finished(lambda: published_gptq.upper_factor(hessian), device))
    mine, (codes, dense) = quantizer.quantize_grid([weight], [scheme], stats)[0][0], published()
    equal = float((mine.codes == codes).float().mean())
    errors = _relative(weight, dense, hessian), _relative(weight, mine.dequantize(), hessian)
    return Solved((rows, columns), pairs, factor, grid, equal, errors)


def _relative(weight: Tensor, new: Tensor, hessian: Tensor) -> float:
    """tr(ΔW·H·ΔWᵀ) / tr(W·H·Wᵀ)."""
    change = new - weight
    return float((change @ hessian).mul_(change).sum() / (weight @ hessian).mul_(weight).sum())


def layer(rows: int, columns: int, device: str) -> tuple[Tensor, LayerStats]:
    """A random weight and the statistics of correlated inputs: a few strong directions, channels of unequal size."""
    generator = torch.Generator().manual_seed(SEED)
    directions = torch.randn(64, columns, generator=generator)
    size = torch.rand(columns, generator=generator) * 2 + 0.1
    stats = LayerStats(columns, device=device)
    for _ in range(0, TOKENS, 1024):
        x = torch.randn(1024, 64, generator=generator) @ directions * 0.1 + torch.randn(
            1024, columns, generator=generator
        )
        stats.update((x * size).to(device))
    return (torch.randn(rows, columns, generator=generator) * 0.02).to(device), stats


def _finished(task: Callable[[], object], device: str) -> Callable[[], object]:
    """The task with whatever it started on a GPU."""

    def whole() -> None:
        task()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return whole


def _repeats(shape: tuple[int, int], quick: bool) -> int:
    return 1 if quick else TURNS_IF_LONG if shape[1] > 8192 else TURNS


def _pairs(pairs: Sequence[tuple[Seconds, Seconds]]) -> list[list[dict[str, float]]]:
    return [[asdict(first), asdict(second)] for first, second in pairs]
