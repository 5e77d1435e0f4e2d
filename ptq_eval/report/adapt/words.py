"""What bases are called, and the sentences of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptq_eval.config.adapt import UNQUANTIZED_BITS
from ptq_eval.report.common.numbers import MISSING, count, percent, short
from ptq_eval.results.adaptation import FEWEST, WITHIN, Correlation, factors
from ptq_eval.sampling import SIGNIFICANT

_ABOUT = """\
Each run trains a low-rank update, rank {rank}, α {alpha:g}, on a base whose weights are quantized and fixed, in
float32: {epochs} epochs of {windows} windows of {length} tokens of {text}, in batches of {batch}. Runs of one seed
start from the same update and see the same batches, whatever their base. Losses are in nats per token on {evaluation}.
δ is the loss minus that of the run of the same seed on the base that is not quantized. *δ that remains* is δ after
training over δ before it. The number after ± is the standard deviation over seeds.
"""
COLUMNS = """\
*Variance* is the trace of the covariance of one batch's gradient by the update's parameters, at fixed parameters.
Before training only B has a gradient, because B is zero. The digits in brackets are the standard error of a paired
difference over windows; another seed is not in it.
"""

PREDICTED = """\
Before training: *predicted* is ½·Σ F·Δ²/12 from the checkpoint and the calibration text, nothing fitted; it is an
expectation over roundings. KL and δ are measured; C·4^−bits is the bound with the predicted C. *Cannot be absorbed* is
what the best update of this rank would leave of the predicted damage, in the quadratic model with factored curvature;
δ after training is observed. *Variance predicted* is the variance without quantization plus its growth under noise of
the noise model at 6 bits, scaled to the width; *variance* is that before training. Means over seeds.
"""
TESTED = """\
KL over its prediction is the product of three factors. *Curvature*: the second order of noise drawn from
U(−Δ/2, Δ/2) over the prediction, which differs from 1 where the curvature on the calibration text is not that on the
evaluation text. *Error*: the second order of the error itself over that of the noise. *Higher orders*: KL over its
second order. The last columns are about the noise in place of the error: the prediction assumes it, so that only
curvature and higher orders can make it fail.
"""
_FACTORS = {"curvature": "curvature", "error": "an error that is not uniform noise", "orders": "higher orders"}


def checkpoint(study: Mapping[str, Any]) -> str:
    """`run@step`."""
    own = study["checkpoint"]
    return f"{own['run']}@{own['step'] if own['step'] is not None else 'only'}"


def about(study: Mapping[str, Any]) -> str:
    """What was trained on what."""
    settings, texts = study["settings"], study["texts"]
    return _ABOUT.format(
        rank=settings["rank"],
        alpha=settings["alpha"],
        epochs=settings["epochs"],
        windows=texts["training"]["windows"],
        length=texts["training"]["length"],
        text=texts["training"]["spec"],
        batch=settings["batch_size"],
        evaluation=f"{texts['evaluation']['windows']} windows of {texts['evaluation']['spec']}",
    )


def cautions(study: Mapping[str, Any]) -> list[str]:
    """That the texts overlap, where they do; and bases of other bits than asked for, of methods with a width of their
    own."""
    asked, overlap = study["settings"]["bits"], study["overlap"]
    found = [f"{overlap['message'][0].upper()}{overlap['message'][1:]}"] if overlap["flagged"] else []
    widths = ", ".join(str(bits) for bits in asked if bits != UNQUANTIZED_BITS)
    for name, own in dict.fromkeys((run["quantizer"], run["bits"]) for run in study["runs"]):
        if own not in asked:
            found.append(f"The base {name} has {own} bits, the only width of this method, not {widths} as in --bits")
    return [f"**{text}.**\n" for text in found]


def settings(study: Mapping[str, Any]) -> str:
    """The learning rate, and the number of parameters."""
    own, runs = study["settings"], study["runs"]
    size = f", {count(runs[0]['cost']['trained_parameters'])} trained parameters" if runs else ""
    params = count(study["checkpoint"]["params"])
    return (
        f"AdamW at a constant rate of {own['learning_rate']:g} after {own['warmup']} steps of warm-up, gradients "
        f"clipped at {own['clip']:g}; N = {params}{size}. What each run cost is in `cost.csv`.\n"
    )


def base(row: Mapping[str, Any]) -> str:
    """The base's quantizer; empty for the checkpoint as it is."""
    return "not quantized" if row["bits"] == UNQUANTIZED_BITS else row["quantizer"]


def bits(row: Mapping[str, Any]) -> str:
    """The base's bits, with a dash for the checkpoint as it is, which is in float32."""
    return MISSING if row["bits"] == UNQUANTIZED_BITS else str(row["bits"])


def remaining(before: float, error: float, after: float) -> str:
    """The share of δ that training leaves; a dash where δ before was not significant."""
    return percent(after / before) if before > SIGNIFICANT * error else MISSING


def agreement(compared: Sequence[Mapping[str, Any]], correlations: Mapping[str, Correlation]) -> str:
    """Where prediction and observation agree within 10 %, and how they correlate."""
    lines = []
    for name, label in (("kl", "KL"), ("delta", "δ"), ("variance", "the variance of gradients")):
        inside = [_place(row) for row in compared if row[f"{name}_within"]]
        outside = [_place(row) for row in compared if not row[f"{name}_within"]]
        lines.append(
            f"- Of {label}, the prediction is within 10 % at {', '.join(inside) or 'no base'}, not at "
            f"{', '.join(outside) or 'any'}; {_correlated(correlations[name], len(compared))}."
        )
    return "\n".join(lines) + "\n"


def _correlated(found: Correlation, of: int) -> str:
    """r over the bases that have one, and which these are, where they are not all."""
    if found.bases < FEWEST:
        return f"no correlation over fewer than {FEWEST} bases where both are above zero"
    bases = "bases" if found.bases == of else f"{found.bases} of {of} bases, those where both are above zero,"
    return f"r of the logarithms over {bases} {short(found.r)}"


def reasons(compared: Sequence[Mapping[str, Any]]) -> str:
    """For each base whose KL is not as predicted, the factors that are off by more than 10 %."""
    lines = []
    for row in compared:
        if not row["kl_within"]:
            off = {name: value for name, value in factors(row).items() if abs(value - 1) > WITHIN}
            named = [f"{_FACTORS[name]} ({short(value)}{_chance(name, value, row)})" for name, value in off.items()]
            lines.append(f"- {_place(row)}: {' and '.join(named) or 'no factor alone is off by more than 10 %'}.")
    return "\n".join(lines) + "\n" if lines else "KL is within 10 % of the prediction at every base.\n"


def _chance(name: str, value: float, row: Mapping[str, Any]) -> str:
    """That two draws of the noise differ as much, where they may."""
    scatter = 2**0.5 * row["scatter"] / row["predicted"]
    return (
        ", as two draws of the noise may differ" if name == "error" and abs(value - 1) < SIGNIFICANT * scatter else ""
    )


def _place(row: Mapping[str, Any]) -> str:
    return f"{row['quantizer']} {row['bits']} bits"
