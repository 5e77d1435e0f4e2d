"""Activations and cache: δ of every combination with its parts, and whether the parts add or multiply, in words.

The comparison is computed with the fit (`results.interactions`), which sees the losses of each window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ptq_eval.records import WEIGHTS_KEPT
from ptq_eval.report.common import tables
from ptq_eval.report.common.data import Study, runtime_name
from ptq_eval.report.common.numbers import MISSING, count, number, percent, plus_minus, rough, short, with_error
from ptq_eval.report.common.words import plural
from ptq_eval.report.run import precisions
from ptq_eval.report.run.precisions_figure import NAME

TITLE = "Activations and cache"
LEVEL = 0.05
_LAST = ("weights", "bits", "activations and cache", "δ", "KL", "same top token")
_HEADER = (
    *("weights", "bits", "activations and cache", "checkpoints", "δ", "sum of parts"),
    *("δ − sum", "p", "δ − product", "p"),
)
_LEAD = (
    "A is the number of bits of the inputs of the quantized layers, KV that of keys and values; formats other than "
    "integers have their names. All other sections are of weights alone. The interaction of a combination is its δ "
    "minus the sum of the δ of its parts, each measured alone on the same windows; errors are one standard error of "
    "these paired differences over evaluation windows, and do not cover other roundings. The product form is that of "
    "the N_eff law: 1 + δ/K of a combination is the product of the 1 + δ/K of its parts, with one K for a trajectory. "
    "p tests that δ is the sum or the product, adjusted for all combinations of a trajectory (Holm)."
)


def section(study: Study) -> str:
    """What was measured, and the answer, in Markdown."""
    found = {str(entry["trajectory"]): entry for entry in study.fit.get("activations_and_cache") or ()}
    text = f"{_LEAD}\n\n"
    if study.runtime["bits"].notna().any():
        text += f"![δ of weights, activations and cache against D/N](figures/{NAME}.png)\n\n"
    several = study.runtime["trajectory"].nunique() > 1
    for run, rows in study.runtime.groupby("trajectory", sort=False):
        text += f"### {tables.cell(str(run))}\n\n" if several else ""
        if entry := found.get(str(run)):
            text += f"**{answer(entry)}**\n\n"
            cells = sorted(entry["combinations"], key=lambda one: _place({**one, "label": study.label_of(one)}))
            text += tables.markdown(_HEADER, [_combined(study, one) for one in cells], left=3) + "\n"
        text += precisions.text(study, str(run))
        last = sorted(rows[rows["point"] == rows.iloc[-1]["point"]].to_dict("records"), key=_place)
        text += f"δ at D = {count(last[0]['tokens'])}, with {'; '.join(_settings(rows.to_dict('records')))} "
        text += "(all checkpoints are in `degradation.csv`):\n\n"
        text += tables.markdown(_LAST, [_measured(row) for row in last], left=3) + "\n"
    return text


def answer(entry: Mapping[str, Any]) -> str:
    """Whether the damages of a trajectory add or multiply, in a sentence or two."""
    cells = entry["combinations"]
    sums = _worst(cells, "")
    size = f"over {plural(len(cells), 'combination')} δ differs from the sum of its parts by {_range(cells, '')}"
    if not sums < LEVEL:
        return f"The damages add, as far as these windows can tell: {size} (smallest p {rough(sums)})."
    kappa, error = number(entry.get("kappa")), number(entry.get("kappa_se"))
    if not math.isfinite(kappa):
        return f"The damages do not add: {size}; they are too small to determine how the factors would multiply."
    scale = f"1/K = {plus_minus(kappa, error)} per nat"
    products = _worst(cells, "product_")
    if not math.isfinite(products):
        return f"The damages do not add: {size}. One combination cannot show whether the factors multiply ({scale})."
    left = f"the product form with {scale} leaves {_range(cells, 'product_')}"
    if not products < LEVEL and kappa > 0:
        return f"The damages do not add: {size}. The factors multiply: {left} (smallest p {rough(products)})."
    if not products < LEVEL:
        return f"The damages do not add: {size}. Together they cost less than apart, which no K > 0 gives: {left}."
    rms = [math.sqrt(math.fsum(c[f"{kind}difference"] ** 2 for c in cells) / len(cells)) for kind in ("", "product_")]
    nearer = f"{'the product' if rms[1] < rms[0] else 'the sum'} is nearer, root mean square {short(min(rms))} against "
    nearer += short(max(rms))
    return f"The damages neither add nor multiply: {size}, and {left} (smallest p {rough(products)}); {nearer}."


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return str(row["label"]), *_order(row)


def _order(row: Mapping[str, Any]) -> tuple[float, ...]:
    """Bits of weights, activations and cache, fewest first, full precision last."""
    found = [number(row.get(name)) for name in ("bits", "activation_bits", "kv_bits")]
    return tuple(bits if math.isfinite(bits) else math.inf for bits in found)


def _worst(cells: Sequence[Mapping[str, Any]], prefix: str) -> float:
    known = [p for cell in cells if math.isfinite(p := number(cell.get(f"{prefix}p")))]
    return min(known, default=math.nan)


def _range(cells: Sequence[Mapping[str, Any]], prefix: str) -> str:
    """The extreme differences, as shares of δ where that is positive."""
    found = [one[f"{prefix}difference"] for one in cells]
    shares = [d / one["delta"] for d, one in zip(found, cells) if one["delta"] > 0]
    ends = dict.fromkeys((min(found), max(found)))
    words = " to ".join(_signed(end) for end in ends) + " nats per token"
    if not shares:
        return words
    return f"{words} ({' to '.join(dict.fromkeys(_share(end) for end in (min(shares), max(shares))))} of δ)"


def _signed(value: float) -> str:
    return ("−" if value < 0 else "+") + short(abs(value))


def _share(share: float) -> str:
    return ("−" if share < 0 else "+") + percent(abs(share))


def _combined(study: Study, entry: Mapping[str, Any]) -> list[str]:
    p = lambda name: MISSING if entry.get(name) is None else ("< 0.001" if entry[name] < 0.001 else rough(entry[name]))
    bits = number(entry["bits"])
    return [
        _weights(study.label_of(entry)),
        f"{bits:.0f}" if bits == bits else MISSING,
        runtime_name(entry),
        str(entry["checkpoints"]),
        short(entry["delta"]),
        short(entry["sum_of_parts"]),
        with_error(entry["difference"], entry["error"]),
        p("p"),
        with_error(entry.get("product_difference"), entry.get("product_error")),
        p("product_p"),
    ]


def _measured(row: Mapping[str, Any]) -> list[str]:
    return [
        _weights(str(row["label"])),
        f"{row['bits']:.0f}" if row["bits"] == row["bits"] else MISSING,
        row["runtime_name"],
        with_error(row["delta"], row["delta_se"]),
        short(row["kl"]),
        percent(row["top1_agreement"]),
    ]


def _weights(label: str) -> str:
    return label.replace(WEIGHTS_KEPT, "full precision")


def _settings(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What shares a scale, and where its range is from."""
    for what, names in (
        ("activations per {}, {} range", ("activation_per", "activation_range")),
        (
            "keys per {}, {} the rotary embedding, values per {}, {} range",
            ("key_per", "key_rope", "value_per", "kv_range"),
        ),
    ):
        known = [tuple(str(row.get(name)) for name in names) for row in rows if isinstance(row.get(names[0]), str)]
        yield from (what.format(*values) for values in dict.fromkeys(known))
