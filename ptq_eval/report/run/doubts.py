"""Signs that a number is not of what its name says, as sentences: one per kind of sign and configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ptq_eval.records import Doubt
from ptq_eval.report.common.data import Frame, labels
from ptq_eval.report.common.numbers import count, percent, short
from ptq_eval.report.common.words import plural

Entry = Mapping[str, Any]


def doubt_texts(table: Frame) -> Iterator[str]:
    """The doubts of a degradation table; nothing for tables of earlier versions."""
    if "doubts" not in table:
        return
    rows = table.assign(label=labels(table))
    rows = rows[rows["quantizer"] != "none"]
    found: dict[tuple[str, str], list[Entry]] = {}
    for label, text in zip(rows["label"], rows["doubts"]):
        for doubt in json.loads(text) if isinstance(text, str) and text else ():
            found.setdefault((str(label), doubt["kind"]), []).append(doubt)
    sizes = rows.groupby("label").size()
    alike: dict[str, list[tuple[str, int]]] = {}  # what is true of several methods or formats is said once
    for (label, kind), several in found.items():
        alike.setdefault(_TEXTS[Doubt(kind)](several), []).append((label, len(several)))
    for text, where in alike.items():
        of = sum(int(sizes[label]) for label, _ in where)
        names = ", ".join(label for label, _ in where)
        yield f"{names}, {sum(number for _, number in where)} of {plural(of, 'measurement')}: {text}"


def _layers(several: Sequence[Entry]) -> str:
    most = max(several, key=lambda one: one["layers"])
    one = f" ({most['first']})" if most["layers"] == 1 else f" ({most['first']}, …)"
    return f"{'up to ' * (len(several) > 1)}{most['layers']} of {plural(most['of'], 'layer')}{one}"


def _like_rounding(_several: Sequence[Entry]) -> str:
    return "every layer has the weights of rounding to nearest: the method had no effect"


def _unchanged(several: Sequence[Entry]) -> str:
    return f"the weights of {_layers(several)} are unchanged, although rounding would change them"


def _rounded(several: Sequence[Entry]) -> str:
    return (
        f"the weights of {_layers(several)} were rounded to nearest: the method works on a layer's inputs, and an "
        "embedding has none but token ids"
    )


def _large(several: Sequence[Entry]) -> str:
    ratio = max(one["ratio"] for one in several)
    return (
        f"the squared error of the weights of {_layers(several)} is up to {short(ratio)} times as large as rounding to "
        "nearest makes it: these are other weights than this layer's, or the grid is many times too coarse"
    )


def _small(several: Sequence[Entry]) -> str:
    ratio = min(one["ratio"] for one in several)
    return (
        f"the squared error of the weights of {_layers(several)} is down to {short(ratio)} times that of rounding to "
        "nearest: this takes more bits than the measurement is named after"
    )


def _no_statistics(several: Sequence[Entry]) -> str:
    return f"the calibration inputs of {_layers(several)} are all zero: the method knew nothing of them"


def _few_tokens(several: Sequence[Entry]) -> str:
    worst = min(several, key=lambda one: one["tokens"] / one["inputs"])
    return (
        f"{_layers(several)} have fewer calibration tokens than inputs, down to {count(worst['tokens'])} for "
        f"{count(worst['inputs'])}: what these statistics do not determine is decided by the method's damping; more "
        "--calib-windows help"
    )


def _no_effect(_several: Sequence[Entry]) -> str:
    return "the loss of every window is exactly that in full precision: the quantized weights were not used"


def _implausible(several: Sequence[Entry]) -> str:
    ratios = sorted(one["ratio"] for one in several)
    span = short(ratios[0]) if len(ratios) == 1 else f"{short(ratios[0])} to {short(ratios[-1])}"
    return (
        f"the divergence from full precision is {span} times what the error of the weights explains to second order "
        "(0.8 to 1.75 wherever it was measured): the weights are far from the original ones, or others were evaluated"
    )


def _moves(several: Sequence[Entry]) -> str:
    return f"the package's weights change in a forward pass, by up to {_distance(several)} of their norm"


def _reloads(several: Sequence[Entry]) -> str:
    return f"the package's weights are others after saving and loading, by up to {_distance(several)} of their norm"


def _export(several: Sequence[Entry]) -> str:
    worst = max(several, key=lambda one: abs(one["difference"]))
    return (
        f"the exported model has a loss that differs from the measured one by {worst['difference']:+.1g} nats per "
        f"token, more than {short(worst['limit'])}"
    )


def _distance(several: Sequence[Entry]) -> str:
    return percent(max(one["distance"] for one in several))


_TEXTS: Mapping[Doubt, Callable[[Sequence[Entry]], str]] = {
    Doubt.LIKE_ROUNDING: _like_rounding,
    Doubt.UNCHANGED: _unchanged,
    Doubt.ROUNDED: _rounded,
    Doubt.LARGE_ERROR: _large,
    Doubt.SMALL_ERROR: _small,
    Doubt.NO_STATISTICS: _no_statistics,
    Doubt.FEW_TOKENS: _few_tokens,
    Doubt.NO_EFFECT: _no_effect,
    Doubt.IMPLAUSIBLE: _implausible,
    Doubt.MOVES: _moves,
    Doubt.RELOADS_DIFFERENTLY: _reloads,
    Doubt.EXPORT_DIFFERS: _export,
}


def doubt_text(doubt: Entry) -> str:
    """One doubt as a sentence."""
    return _TEXTS[Doubt(doubt["kind"])]([doubt])
