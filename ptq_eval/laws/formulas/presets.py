"""Published constants, as printed in the papers, so that nobody has to type them again.

Units: raw parameters and raw tokens, losses in nats per token.  No paper here gives an uncertainty for its
constants except Epoch's, and constants of one paper hold for its models, texts, quantizer and way to count N:
they are a start for a plan, not a substitute for a fit.

Names are the project's: Sun et al. write n, d and epsilon for A, B and E.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import replace as _replace
from types import MappingProxyType
from typing import Any

OFFSETS = ("n_w", "n_a", "n_kv", "n_bar")
"""The offsets of the effective number of parameters, by name."""


@dataclass(frozen=True)
class Preset:
    """Constants of one publication: `laws` names the laws that can be evaluated with them.

    `uncertainty` says what is known of how sure they are; `bits` is the one serving precision that they hold for.
    """

    name: str
    source: str
    note: str
    constants: Mapping[str, float] = field(hash=False)
    laws: tuple[str, ...]
    uncertainty: str = "no uncertainty is published for these constants"
    bits: float | None = None

    def __post_init__(self) -> None:
        """Freeze the constants: presets are shared."""
        object.__setattr__(self, "constants", MappingProxyType(dict(self.constants)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Presets can be copied and sent to other processes, read-only mappings cannot."""
        plain = (self.name, self.source, self.note, dict(self.constants), self.laws, self.uncertainty, self.bits)
        return type(self), plain

    def replace(self, **constants: float) -> Preset:
        """The same preset with some constants changed or added; its note says so."""
        changed = ", ".join(f"{name} = {value:g}" for name, value in constants.items())
        return _replace(self, note=f"{self.note} Changed: {changed}.", constants={**self.constants, **constants})

    def without_offsets(self) -> Preset:
        """The same preset without the offsets n of the effective number of parameters."""
        kept = {name: value for name, value in self.constants.items() if name not in OFFSETS}
        return _replace(self, name=f"{self.name} without offsets", constants=kept)


KUMAR_2024 = Preset(
    name="KUMAR_2024",
    source="Kumar et al. 2024, arXiv 2411.04330v2, appendix K, Table 2",
    note="Models of 30M to 220M parameters on 1.5B to 26B tokens, weights quantized with GPTQ to 3 to 6 bits; alpha "
    "and beta are tied. C_w, C_a and C_kv of equation 9 are not reported. The table's 'exponent bias' b = 1.1277 is "
    "not used, because the paper does not say which exponent it belongs to: were it to multiply delta by e^b, D_crit "
    "would be 3.08 times smaller.",
    constants={
        "A": 4.299e3,
        "alpha": 0.4965,
        "B": 1.806e4,
        "beta": 0.4965,
        "E": 2.7648,
        "gamma_w": 2.6745,
        "n_w": 0.3037,
        "gamma_a": 2.2102,
        "n_a": 1.4072,
        "gamma_kv": 0.9578,
        "n_kv": 2.4185,
        "C_T": 0.0598,
        "gamma_D": 0.5068,
        "gamma_N": 0.3439,
        "gamma_post": 0.5907,
    },
    laws=("chinchilla", "kumar_ptq", "n_eff"),
)

KUMAR_2024_FP = _replace(
    KUMAR_2024.replace(gamma_w=2.8111, n_w=0.1240),
    name="KUMAR_2024_FP",
    source="Kumar et al. 2024, arXiv 2411.04330v2, appendices K and N",
    note=f"{KUMAR_2024.note} Weights trained in a floating-point format instead of an integer one: gamma_w and its "
    "bias of appendix N, the bias read as the offset n_w.",
)

OUYANG_2024 = Preset(
    name="OUYANG_2024",
    source="Ouyang et al. 2024, arXiv 2411.17691",
    note="Fitted to intermediate checkpoints of the Pythia models, whose learning rate falls as D grows.",
    constants={"k": 0.017, "gamma_D": 0.5251, "gamma_N": 0.2261, "gamma_P": 5.4967},
    laws=("ouyang",),
)

SUN_2025 = Preset(
    name="SUN_2025",
    source="Sun et al. 2025, arXiv 2501.02423",
    note="Training with floating-point formats of E exponent and M mantissa bits; A, B and E are n, d and epsilon in "
    "the paper.",
    constants={
        "A": 69.2343,
        "alpha": 0.2368,
        "B": 68973.0621,
        "beta": 0.5162,
        "E": 1.9061,
        "gamma": 11334.5197,
        "delta": 3.1926,
        "nu": 2.9543,
    },
    laws=("sun", "chinchilla"),
)

CHEN_2025 = Preset(
    name="CHEN_2025",
    source="Chen et al. 2025, arXiv 2505.14302",
    note="Quantization-aware training with 4-bit weights and 16-bit activations (W4A16).",
    constants={"k": 0.2522, "gamma_N": 0.3589, "gamma_D": 0.1610, "gamma_G": 0.3533},
    laws=("chen",),
    bits=4.0,
)

HOFFMANN_2022 = Preset(
    name="HOFFMANN_2022",
    source="Hoffmann et al. 2022, arXiv 2203.15556, approach 3",
    note="Besiroglu et al. 2024, arXiv 2404.10102, find that they fail to fit the points read off the paper's own "
    "figure, and disagree with its first two approaches.",
    constants={"A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28, "E": 1.69},
    laws=("chinchilla",),
    uncertainty="none is given here: Besiroglu et al. 2024, arXiv 2404.10102, find the confidence intervals reported "
    "with this fit implausibly narrow, as they would take more than 600,000 experiments",
)

EPOCH_2024 = Preset(
    name="EPOCH_2024",
    source="Besiroglu et al. (Epoch AI) 2024, arXiv 2404.10102",
    note="240 points read off a figure of Hoffmann et al. Said to minimise log-Huber(1e-3), on which these constants "
    "score 0.00102284 and the minimum is 0.00101827; A, B and alpha are from least absolute deviation "
    "(EPOCH_2024_LAD).",
    constants={"A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658, "E": 1.8172},
    laws=("chinchilla",),
    uncertainty="the paper gives standard errors (A 124.58, alpha 0.02, B 1293.23, beta 0.02, E 0.03) but not how they "
    "are correlated",
)

_FITTED_AGAIN = "these constants are a fit of this project whose bootstrap is not kept; EPOCH_2024 has standard errors"

EPOCH_2024_LAD = Preset(
    name="EPOCH_2024_LAD",
    source="the 240 points of arXiv 2404.10102, fitted again by least absolute deviation in log loss",
    note="Sum of absolute deviations 1.129495; not printed in the paper.",
    constants={"A": 482.006, "alpha": 0.347813, "B": 2085.436, "beta": 0.365854, "E": 1.816864},
    laws=("chinchilla",),
    uncertainty=_FITTED_AGAIN,
)

EPOCH_2024_HUBER = Preset(
    name="EPOCH_2024_HUBER",
    source="the 240 points of arXiv 2404.10102, fitted again by log-Huber(1e-3)",
    note="The minimum of the objective that the paper names, 0.0010182740; not printed in the paper.",
    constants={"A": 477.826, "alpha": 0.347310, "B": 2143.417, "beta": 0.367172, "E": 1.817218},
    laws=("chinchilla",),
    uncertainty=_FITTED_AGAIN,
)

_ALL = (
    KUMAR_2024,
    KUMAR_2024_FP,
    OUYANG_2024,
    SUN_2025,
    CHEN_2025,
    HOFFMANN_2022,
    EPOCH_2024,
    EPOCH_2024_LAD,
    EPOCH_2024_HUBER,
)

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
"""Every preset by its name."""
