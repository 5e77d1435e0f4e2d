"""The laws as plain functions, for those who only want numbers.

Every function takes `constants`: a preset such as KUMAR_2024 (the default), a `FitResult`, a mapping of names to
values, or a sequence of these (a degradation fit and a loss fit, say), merged from left to right.  Scalars give a
float, arrays give arrays that broadcast.  N and D are raw counts of parameters and tokens, precisions are bits,
losses are nats per token.

Which law is meant follows from the constants: gamma_post makes delta fall exponentially with the bits (Kumar et al.),
gamma_P as a power (Ouyang et al.).  A part that is trained at 16 bits or more needs no gamma: without one, the loss
law was fitted at full precision, and its A has absorbed the factor.  What the constants at hand cannot answer is an
`OptionError` that names what is missing; nothing is filled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ptq_eval.config.plan import FULL_BITS
from ptq_eval.errors import OptionError
from ptq_eval.laws.arguments import (
    Constants,
    bits_of,
    check_bits,
    check_shapes,
    constants_of,
    count,
    format_of,
    group,
    pick,
    plain,
)
from ptq_eval.laws.formulas.chen import Chen
from ptq_eval.laws.formulas.chinchilla import Chinchilla, Growing
from ptq_eval.laws.formulas.kumar import KumarPTQ, KumarPTQRatio
from ptq_eval.laws.formulas.n_eff import COST_PER_BIT, PARTS, part_factor, precision_with
from ptq_eval.laws.formulas.ouyang import Ouyang
from ptq_eval.laws.formulas.presets import KUMAR_2024
from ptq_eval.laws.formulas.served import laws_of
from ptq_eval.laws.formulas.sun import Sun
from ptq_eval.laws.formulas.unified import robustness

_DEGRADATION = (KumarPTQ(), KumarPTQRatio(), Ouyang())


def effective_params(
    N: Any,
    weights: Any = FULL_BITS,
    activations: Any = FULL_BITS,
    kv: Any = FULL_BITS,
    *,
    offsets: bool = True,
    constants: Constants = KUMAR_2024,
) -> Any:
    """N_eff: what N parameters trained at these precisions (bits) are worth; arXiv 2411.04330, eq. 4.

    `offsets=False` omits the offsets n.  Zero where a precision is so low that nothing is left.
    """
    check_shapes(N=N, weights=weights, activations=activations, kv=kv)
    return plain(count("N", N) * _capacity(constants_of(constants, offsets=offsets), (weights, activations, kv)))


def delta_ptq(
    N: Any,
    D: Any,
    bits: Any,
    activations: Any = FULL_BITS,
    kv: Any = FULL_BITS,
    *,
    group_size: Any = None,
    constants: Constants = KUMAR_2024,
) -> Any:
    """The loss added by quantizing the weights of a model trained in full precision to `bits`.

    Kumar et al., arXiv 2411.04330, eq. 2, or whichever degradation law the constants belong to.  Those of Chen et al.,
    arXiv 2505.14302, need `group_size` and hold for one number of bits; for those of Sun et al., arXiv 2501.02423,
    what training in a format adds, `bits` being the format, "E4M3", and `group_size` how many numbers share a scale.
    `activations` and `kv` below 16 bits need the constants of a law of three precisions (`formulas.served`).
    """
    theta, N, D = constants_of(constants), count("N", N), count("D", D)
    check_bits(constants, bits)
    law, known, data = _law(theta, N, (bits, activations, kv), group_size, D)
    return plain(law.added(known, data))


def critical_tokens(
    N: Any,
    bits: Any,
    activations: Any = FULL_BITS,
    kv: Any = FULL_BITS,
    *,
    group_size: Any = None,
    constants: Constants = KUMAR_2024,
) -> Any:
    """D_crit: the tokens beyond which pretraining makes a model served at `bits` worse; arXiv 2411.04330, eq. 13.

    Needs B and beta of a loss law beside a degradation law.  Infinite where delta does not grow with D.  `bits`,
    `activations`, `kv` and `group_size` as in `delta_ptq`; for the constants of Sun et al. of a model trained in that
    format.
    """
    theta = constants_of(constants)
    check_bits(constants, bits)
    known = pick(theta, ("B", "beta"), "the fall of the loss with D")
    law, own, data = _law(theta, count("N", N), (bits, activations, kv), group_size)
    return plain(law.critical_tokens(own, known, data))


def optimal_precision(*, offsets: bool = True, constants: Constants = KUMAR_2024) -> float:
    """The training precision (bits) that is optimal at any budget when N, D and P are all free.

    The maximum of N_eff/(N·P), over all parts whose gamma is known; arXiv 2411.04330, section 4.3.2, where C =
    (6/16)·N·D·P.  Zero where fewer bits are always better (one part without an offset).
    """
    theta = constants_of(constants, offsets=offsets)
    pairs = [pair for subscript in PARTS.values() if (pair := _part(theta, subscript))]
    if not pairs:
        pick(theta, ("gamma_w",), "the optimal training precision")
    gammas, ns = zip(*pairs)
    return precision_with(1.0, gammas, ns)


def loss(
    N: Any,
    D: Any,
    weights: Any = FULL_BITS,
    activations: Any = FULL_BITS,
    kv: Any = FULL_BITS,
    bits: Any = None,
    *,
    offsets: bool = True,
    constants: Constants = KUMAR_2024,
) -> Any:
    """The loss of N parameters trained on D tokens at these precisions, then quantized to `bits` if given.

    Before quantization arXiv 2411.04330, eq. 3; after it eq. 11.  For models trained in full precision eq. 2 is added
    where C_w, C_a and C_kv are not known; trained lower, they are needed: infinite values give an upper bound.
    Infinite where a training precision leaves no effective parameters.
    """
    theta = constants_of(constants, offsets=offsets)
    N, D, trained = count("N", N), count("D", D), (weights, activations, kv)
    check_shapes(N=N, D=D, weights=weights, activations=activations, kv=kv, bits=1.0 if bits is None else bits)
    law = Chinchilla()
    known = pick(theta, [p.name for p in law.parameters], "the loss")
    N_eff = N * _capacity(theta, trained)
    with np.errstate(divide="ignore"):
        total = law.predict(known, {"N": N_eff, "D": D})
        if bits is not None:
            total = total + _after_training(theta, N, N_eff, D, bits_of("bits", bits), trained)
    return plain(total)


def compute_cost(N: Any, D: Any, P: Any = FULL_BITS) -> Any:
    """FLOPs at 16 bits that training costs: (6/16)·N·D·P; arXiv 2411.04330, eq. 5."""
    check_shapes(N=N, D=D, P=P)
    return plain(COST_PER_BIT * count("N", N) * count("D", D) * bits_of("P", P))


def _after_training(
    theta: dict[str, float], N: np.ndarray, N_eff: np.ndarray, D: np.ndarray, P: np.ndarray, trained: Sequence[Any]
) -> Any:
    """Equation 9; equation 2 where everything was trained in full precision and the C_x are not known."""
    given = [f"C_{subscript}" in theta for subscript in PARTS.values()]
    precisions = [bits_of(part, value) for part, value in zip(PARTS, trained)]
    served_as_trained = np.any(np.broadcast_arrays(*(value <= P for value in precisions)), axis=0)
    full = np.all(np.broadcast_arrays(*(value >= FULL_BITS for value in precisions)), axis=0)
    if any(given) or not np.all(np.logical_or(full, served_as_trained)):
        robust = pick(theta, [f"C_{s}" for s in PARTS.values()], "serving below a low training precision")
        factors = [robustness(C, value, P) for C, value in zip(robust.values(), precisions)]
        return _delta(theta, N_eff, D, P) * np.prod(np.broadcast_arrays(*factors), axis=0)
    return np.where(served_as_trained, 0.0, _delta(theta, N, D, P))


_Degradation = tuple[Growing, dict[str, float], dict[str, Any]]
"""A degradation law, its constants, and its variables."""


def _law(
    theta: dict[str, float], N: np.ndarray, served: tuple[Any, Any, Any], group_size: Any, D: Any = 1.0
) -> _Degradation:
    """The degradation law that the constants belong to, also one that needs a group size, a format, or the precisions
    of activations and cache; `served`: those of weights, activations and cache."""
    bits, *runtime = served
    if three := laws_of(theta):
        law = next((law for law in three if all(p.name in theta for p in law.parameters)), three[0])
        known = pick(theta, [p.name for p in law.parameters], "the degradation of three precisions")
        precisions = {f"P_{PARTS[part]}": bits_of(part, value) for part, value in zip(PARTS, served)}
        _require_full({part: precisions[f"P_{PARTS[part]}"] for part in PARTS if part not in law.parts})
        data = {"N": N, "D": D, **{name: precisions[name] for name in law.columns[2:]}}
        check_shapes(**data)
        return law, known, data
    _require_full({part: bits_of(part, value) for part, value in zip(list(PARTS)[1:], runtime)})
    if "nu" in theta and not any(name in theta for name in ("gamma_D", "gamma_post")):
        known = pick(theta, [p.name for p in Sun.parameters], "what a format adds to the loss")
        data = {"N": N, "D": D, "B_g": group(group_size), **format_of(bits)}
        check_shapes(N=N, D=D, group_size=data["B_g"])
        return Sun(), known, data
    P = bits_of("bits", bits)
    if "gamma_G" in theta:
        known = pick(theta, [p.name for p in Chen.parameters], "the degradation")
        data = {"N": N, "D": D, "G": group(group_size)}
        check_shapes(**data, bits=P)
        return Chen(), known, {**data, "N": N * np.ones_like(P)}
    if group_size is not None:
        raise OptionError("the group size is no variable of this degradation law", got=group_size, remedy="omit it")
    return _degradation(theta, N, D, P)


def _require_full(precisions: dict[str, np.ndarray]) -> None:
    """Check that parts whose rounding the constants do not know are served in full precision.  Raises OptionError."""
    for part, P in precisions.items():
        if np.any(P < FULL_BITS):
            raise OptionError(
                f"these constants do not say what rounding {part} after training costs",
                got=f"{part} = {float(np.min(P)):g} bits",
                allowed=f"{FULL_BITS:g} or more",
                remedy="constants of n_eff_ptq or product_ptq, fitted to a run with --activation-bits and --kv-bits",
            )


def _degradation(theta: dict[str, float], N: np.ndarray, D: Any, P: np.ndarray) -> _Degradation:
    """The degradation law of bits that the constants belong to."""
    complete = [law for law in _DEGRADATION if all(p.name in theta for p in law.parameters)]
    if len(complete) > 1:
        raise OptionError(
            "the constants belong to several degradation laws",
            got=", ".join(law.name for law in complete),
            allowed="one of them",
            remedy="the laws share names such as gamma_D: pass the constants of one",
        )
    law = complete[0] if complete else _DEGRADATION[-1 if "gamma_P" in theta else 0]
    known = pick(theta, [p.name for p in law.parameters], "the degradation")
    check_shapes(N=N, D=D, bits=P)
    return law, known, {"N": N, "D": D, "P": P}


def _delta(theta: dict[str, float], N: np.ndarray, D: np.ndarray, P: np.ndarray) -> Any:
    law, known, data = _degradation(theta, N, D, P)
    return law.added(known, data)


def _capacity(theta: dict[str, float], trained: Sequence[Any]) -> Any:
    """N_eff/N at the precisions of weights, activations and KV cache."""
    factor: Any = 1.0
    for (part, subscript), value in zip(PARTS.items(), trained):
        P, pair = bits_of(part, value), _part(theta, subscript)
        if pair:
            factor = factor * part_factor(P, *pair)
        elif np.any(P < FULL_BITS):
            pick(theta, (f"gamma_{subscript}",), f"training with {part} below {FULL_BITS:g} bits")
        else:
            factor = factor * np.ones_like(P)
    return factor


def _part(theta: dict[str, float], subscript: str) -> tuple[float, float] | None:
    """(gamma, n) of a part, its own or shared with tied parts; None if unknown."""
    for of in (subscript, "bar"):
        if f"gamma_{of}" in theta:
            return pick(theta, (f"gamma_{of}",), "the effective parameters")[f"gamma_{of}"], theta.get(f"n_{of}", 0.0)
    return None
