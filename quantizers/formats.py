"""The number formats beside plain integers: one declared table, each row with its source.

A format says how many bits a code has and which levels the codes mean, how many columns share a scale (`block`; None
where that is free), which rule sets the scale, and how many bits all scales take.  Rounding itself is defined once, in
`grid.py`, for all of them; the rules are in `scales.py`, the levels in `levels.py`.

The integer grids "int" of a free number of bits are not in the table: asymmetric ones, and the symmetric half-step grid
of the GPTQ authors (`grid.py`).  The three other public definitions of "symmetric b-bit" are here, by name.

Not done: i-quants and trellis codes, which code several weights together; NVFP4's transposed tiles; the
8-bit second quantization of bitsandbytes' scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quantizers import levels, scales
from quantizers.levels import Levels
from quantizers.scales import KQuant, Params

Rule = Callable[[Tensor, Tensor, Levels, Tensor | None], Params]
"""rule(low, high, levels, outer): from the range of every group."""
Search = Callable[[Tensor, Levels, Tensor | None], Params]
"""search(groups, levels, outer): from all weights of every group."""

CLIP_NORM, CLIP_GRID, CLIP_STEPS = 2.4, 100, 80
"""The clipping search of the GPTQ authors' code: 80 ranges from 1.00 to 0.21 of the full one, error |Δw|^2.4."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One number format.  Exactly one of `rule` and `search` sets the scales.

    `blocks` are the group sizes allowed, the first being the default; empty where any is.  `scale_bits` are those of a
    group's scale (and minimum), `outer_bits` those of a block of `outer_block` columns, `tensor_bits` of a tensor.
    `tensor_top` is what the largest weight of a tensor becomes in units of a two-level format's tensor scale.
    `packed` columns are stored as one piece, so that a row that ends within it takes the whole; 0 where the last group
    of a row may be shorter.
    `affine` formats subtract a minimum, so a zero weight need not stay zero.  `stored` names the type of the scales.
    """

    name: str
    bits: int
    levels: Callable[[], Levels]
    rule: Rule | None = None
    search: Search | None = None
    blocks: tuple[int, ...] = ()
    scale_bits: int = 16
    outer_block: int = 0
    outer_bits: int = 0
    tensor_bits: int = 0
    tensor_top: float = 0.0
    packed: int = 0
    affine: bool = False
    stored: str = "float32"
    summary: str = ""
    source: str = ""

    @property
    def whole_rows(self) -> bool:
        """Whether scales are set from whole blocks of groups, so that a method must set them beforehand."""
        return self.outer_block > 0

    def outer(self, weight: Tensor) -> Tensor:
        """The scale of a whole layer `weight` [rows, columns] as [rows, 1, 1], of a format that has one."""
        return scales.tensor_scale(weight, self.tensor_top)

    def params(self, groups: Tensor, outer: Tensor | None = None, mse: bool = False) -> Params:
        """Scales of `groups` [rows, groups, size] in float32; with `mse`, of the shrunken range of least |Δw|^2.4."""
        own = self.levels().to(groups.device)
        if self.search is not None:
            return self.search(groups, own, outer)
        assert self.rule is not None
        low, high = groups.amin(-1), groups.amax(-1)
        if not self.affine:
            low, high = low.clamp(max=0), high.clamp(min=0)
        best = self.rule(low, high, own, outer)
        least = torch.full_like(low, torch.inf)
        for step in range(CLIP_STEPS if mse else 0):
            shrink = 1 - step / CLIP_GRID
            tried = self.rule(shrink * low, shrink * high, own, outer)
            error = self.weights(self.codes(groups, tried), tried).sub_(groups).abs_().pow_(CLIP_NORM).sum(-1)
            better = error < least
            least = torch.where(better, error, least)
            scale, zero = (torch.where(better, new, old) for new, old in zip(tried[:2], best[:2]))
            best = Params(scale, zero, outer)
        return best

    def codes(self, groups: Tensor, params: Params) -> Tensor:
        """The codes [rows, groups, size] nearest to `groups`, uint8."""
        return scales.codes(groups, self.levels().to(groups.device), params)

    def rounded(self, groups: Tensor, params: Params) -> Tensor:
        """What the nearest codes represent, `weights` of `codes`, float32."""
        return scales.rounded(groups, self.levels().to(groups.device), params)

    def weights(self, codes: Tensor, params: Params) -> Tensor:
        """The weights of `codes` [rows, groups, size], float32."""
        return scales.represent(codes, self.levels().to(codes.device), params)

    def bits_stored(self, rows: int, columns: int, group_size: int) -> int:
        """Bits of a packed layer [rows, columns], all scales included, and the whole of a last block."""
        columns += -columns % self.packed if self.packed else 0
        per_row = self.bits * columns + self.scale_bits * math.ceil(columns / group_size)
        per_row += self.outer_bits * math.ceil(columns / self.outer_block) if self.outer_block else 0
        return rows * per_row + self.tensor_bits


def _floats() -> list[Format]:
    """Floating-point levels under a scale for every group of free size."""
    shapes = {
        "fp8_e4m3": (4, 3, "nan", "OCP 8-bit Floating Point Specification (OFP8) 1.0"),
        "fp8_e5m2": (5, 2, "ieee", "OCP 8-bit Floating Point Specification (OFP8) 1.0"),
        "fp6_e2m3": (2, 3, "none", "OCP Microscaling Formats (MX) 1.0, section 5.3.2"),
        "fp6_e3m2": (3, 2, "none", "OCP Microscaling Formats (MX) 1.0, section 5.3.2"),
        "fp4_e2m1": (2, 1, "none", "OCP Microscaling Formats (MX) 1.0, section 5.3.3"),
    }
    found = []
    for name, (exponent, mantissa, special, source) in shapes.items():
        bits, own = 1 + exponent + mantissa, partial(levels.floating, exponent, mantissa, special)
        title = name.upper().replace("_", " ")
        found.append(
            Format(
                name=name, bits=bits, levels=own, rule=scales.absmax, source=source,
                summary=f"{title}, the largest weight of a group at the largest level",
            )
        )  # fmt: skip
        suffix = "" if bits == 4 else name[3:]
        found.append(
            Format(
                name=f"mx{name[:3]}{suffix}", bits=bits, levels=own, rule=scales.power_of_two, blocks=(32,),
                scale_bits=8, stored="e8m0", source="OCP Microscaling Formats (MX) 1.0, sections 5.2 and 6.3",
                summary=f"{title} in blocks of 32 with a power-of-two scale (E8M0)",
            )
        )  # fmt: skip
    return found


def _two_levels() -> list[Format]:
    e2m1 = partial(levels.floating, 2, 1, "none")
    common = {"bits": 4, "levels": e2m1, "blocks": (16,), "scale_bits": 8, "tensor_bits": 32, "stored": "e4m3"}
    return [
        Format(
            name="nvfp4", rule=scales.two_level, tensor_top=448.0 * 6.0, **common,
            summary="FP4 E2M1 in blocks of 16 with an E4M3 scale, and one float32 scale for the tensor",
            source="NVIDIA 2025, Pretraining Large Language Models with NVFP4 (arXiv 2509.25149), appendix C",
        ),
        Format(
            name="nvfp4_46", search=scales.four_over_six, tensor_top=256.0 * 6.0, **common,
            summary="NVFP4 with the largest weight of a block at 6 or at 4, whichever has the smaller squared error",
            source="Cook et al. 2025, Four Over Six (arXiv 2512.02010), section 3",
        ),
    ]  # fmt: skip


def _tables() -> list[Format]:
    sizes = (64, 32, 128, 256, 512, 1024, 2048, 4096)
    common = {"bits": 4, "rule": scales.absmax, "blocks": sizes, "scale_bits": 32}
    return [
        Format(
            name="nf4", levels=levels.nf4, **common, summary="16 quantiles of a Gaussian, float32 scale",
            source="Dettmers et al. 2023, QLoRA (arXiv 2305.14314), appendix E; bitsandbytes",
        ),
        Format(
            name="fp4_bnb", levels=levels.bnb_fp4, **common, summary="bitsandbytes' FP4, which is not E2M1",
            source="bitsandbytes, get_4bit_type",
        ),
    ]  # fmt: skip


def _integers() -> list[Format]:
    found = []
    for bits in range(2, 9):
        half = 2 ** (bits - 1)
        grids = {
            "narrow": (1 - half, scales.absmax, f"−{half - 1} … {half - 1}, scale max|w|/{half - 1}; a code is unused"),
            "full": (
                -half,
                scales.absmax,
                f"−{half} … {half - 1}, scale max|w|/{half}; the largest weights are clipped",
            ),
            "signed": (-half, scales.extreme, f"−{half} … {half - 1}, the extreme weight of either sign is −{half}"),
        }
        for kind, (low, rule, summary) in grids.items():
            found.append(
                Format(
                    name=f"int{bits}_{kind}", bits=bits, levels=partial(levels.integers, low, half - 1, half),
                    rule=rule, summary=f"integers {summary}", source=_GRID_SOURCES[kind],
                )
            )  # fmt: skip
    return found


_GRID_SOURCES = {
    "narrow": "NVIDIA ModelOpt, Intel Neural Compressor",
    "full": "two's complement with scale max|w|/2^(b−1)",
    "signed": "llama.cpp's Q4_0 and AutoRound's full-range symmetric grid",
}


def _gguf() -> list[Format]:
    """llama.cpp's types, by their names in GGUF in lower case."""
    found = []
    for bits, half in ((4, 8), (5, 16)):
        found.append(
            Format(
                name=f"q{bits}_0", bits=bits, levels=partial(levels.integers, -half, half - 1, half),
                rule=scales.half_extreme, blocks=(32,), packed=32, stored="float16", source=_GGUF,
                summary=f"integers −{half} … {half - 1} in blocks of 32, the extreme weight is −{half}; float16 scale",
            )
        )  # fmt: skip
        found.append(
            Format(
                name=f"q{bits}_1", bits=bits, levels=partial(levels.integers, 0, 2 * half - 1),
                rule=scales.half_range, blocks=(32,), packed=32, scale_bits=32, affine=True, stored="float16",
                source=_GGUF,
                summary=f"integers 0 … {2 * half - 1} in blocks of 32 with a float16 scale and minimum",
            )
        )  # fmt: skip
    found.append(
        Format(
            name="q8_0", bits=8, levels=partial(levels.integers, -127, 127),
            rule=scales.half_absmax, blocks=(32,), packed=32, stored="float16", source=_GGUF,
            summary="integers −127 … 127 in blocks of 32, float16 scale",
        )
    )  # fmt: skip
    for bits, size, top, first, count, scale_bits in (
        (2, 16, 15, -0.5, 15, 8),
        (4, 32, 63, -1, 20, 12),
        (5, 32, 63, -0.5, 15, 12),
    ):
        found.append(
            Format(
                name=f"q{bits}_k", bits=bits, levels=partial(levels.integers, 0, 2**bits - 1),
                search=KQuant(256 // size, top, first, count).affine, blocks=(size,), scale_bits=scale_bits,
                outer_block=256, packed=256, outer_bits=32, affine=True, stored="multiple", source=_GGUF,
                summary=f"integers 0 … {2**bits - 1} in groups of {size}; {scale_bits // 2}-bit scale and minimum, "
                "multiples of two float16 per 256",
            )
        )  # fmt: skip
    for bits, top, scale_bits in ((3, 31, 6), (6, 127, 8)):
        half = 2 ** (bits - 1)
        found.append(
            Format(
                name=f"q{bits}_k", bits=bits, levels=partial(levels.integers, -half, half - 1, half),
                search=KQuant(16, top).symmetric, blocks=(16,), scale_bits=scale_bits,
                outer_block=256, packed=256, outer_bits=16, stored="multiple", source=_GGUF,
                summary=f"integers −{half} … {half - 1} in groups of 16; {scale_bits}-bit scale, "
                "a multiple of one float16 per 256",
            )
        )  # fmt: skip
    return found


_GGUF = "llama.cpp, ggml-quants.c; its dequantization in the `gguf` package"

FORMATS: dict[str, Format] = {one.name: one for one in (*_floats(), *_two_levels(), *_tables(), *_integers(), *_gguf())}
"""Every format by name; "int" of a free number of bits is beside them."""
