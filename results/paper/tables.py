"""The tables of the paper in LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import pandas as pd

from ptq_eval.report.common.latex import escape, prose, symbol, tabular
from ptq_eval.report.common.numbers import count, ratio, short, with_error
from ptq_eval.report.paper.tables import floating
from results.paper import others, study
from results.paper.study import BITS, NONE, Effect

_BOLD = r"Bold: a $t$ interval at 95\,\% over runs excludes zero; all else is undecided."
_DIGITS = r"$0.123(45)$ means $0.123 \pm 0.045$, the standard error over runs."
_AT = ("tokens_per_param", "tokens_per_param_next")


def shown(effect: Effect) -> str:
    """A value with its error, bold where it is decided."""
    if not effect.n:
        return "--"
    text = escape(with_error(effect.mean, effect.error)).replace("-", "$-$", 1)
    return rf"\textbf{{{text}}}" if effect.decided else text


def factor(effect: Effect) -> str:
    """The effect of a logarithm as a factor."""
    value = math.exp(effect.mean) if effect.n else math.nan
    return shown(Effect(value, value * effect.error, effect.n, effect.decided))


def _lookup(cells: pd.DataFrame, *keys: str, value: str = "effect") -> Mapping[tuple, Effect]:
    return dict(zip(zip(*(cells[key] for key in keys)), cells[value])) if len(cells) else {}


def _row(*items: str) -> str:
    return " & ".join(items) + r" \\"


def _heads(names: Iterable[str]) -> str:
    return _row(*names)


def model(corpus: str, params: float) -> str:
    """A text and a size, as rows of tables name them."""
    return rf"{escape(corpus)}, $N$ = {escape(count(params))}"


def design(table: pd.DataFrame) -> str:
    """The runs by text and size."""
    lines = []
    for (corpus, params, layers), own in table.groupby(["corpus", "params", "layers"]):
        first, last = own["tokens_per_param"].min(), own["tokens_per_param"].max()
        sizes = [own["run"].nunique(), len(own[["run", "part", "step"]].drop_duplicates()), len(own)]
        lines.append(
            _row(
                escape(corpus), escape(count(params)), f"{layers}", *(f"{n:,}" for n in sizes),
                rf"{short(first)} to {ratio(last)}",
            )
        )  # fmt: skip
    header = [_row("text", "$N$", "layers", "runs", "checkpoints", r"$\delta$", "$D/N$")]
    caption = r"What is measured: runs, their checkpoints with annealed branches, and measurements of $\delta$."
    return floating(tabular("lrrrrrl", header, lines), caption, "design")


def quantizers(table: pd.DataFrame) -> str:
    """δ of every quantizer and grouping at the end of the longest annealed runs."""
    own = study.usual(table)
    own = own[(own["ending"] == "annealed") & (own["corpus"] == "books")]
    lines = []
    for params, rows in own.groupby("params"):
        last = rows["tokens_per_param"].max()
        cells = study.cells(
            rows[rows["tokens_per_param"] == last].assign(value=rows["delta"]), "quantizer", "grouping", "bits"
        )
        found = _lookup(cells, "quantizer", "grouping", "bits")
        lines.append(
            rf"\multicolumn{{{len(BITS) + 2}}}{{l}}{{\emph{{{model('books', params)}, $D/N$ = {ratio(last)}}}}} \\"
        )
        for quantizer in ("rtn", "awq", "gptq"):
            for grouping in ("groups", "rows"):
                values = (shown(found.get((quantizer, grouping, bits), NONE)) for bits in BITS)
                lines.append(_row(quantizer.upper(), grouping, *values))
    header = [_row("", "scales", *(f"{bits} bits" for bits in BITS))]
    caption = rf"$\delta$ in nats per token at the end of the longest annealed branches, by quantizer. {_DIGITS}"
    return floating(tabular("ll" + "r" * len(BITS), header, lines), caption, "quantizers")


def growth(runs: pd.DataFrame) -> str:
    """The exponent of D, by ending, bits and interval."""
    cells = study.cells(study.exponents(runs), "ending", *_AT, "bits")
    found = _lookup(cells, "ending", *_AT, "bits")
    lines = []
    for ending in ("constant", "annealed", "cosine", "linear"):
        for interval in sorted({key[1:3] for key in found if key[0] == ending}):
            effects = [found.get((ending, *interval, bits), NONE) for bits in BITS]
            span = rf"{short(interval[0])} to {ratio(interval[1])}"
            lines.append(_row(ending, span, f"{max(e.n for e in effects)}", *map(shown, effects)))
    header = [_row("rate", "$D/N$", "runs", *(f"{bits} bits" for bits in BITS))]
    published = others.published_exponents()
    caption = (
        r"The exponent of $D$ in $\delta$ between two $D$ a factor of four apart. Published: "
        rf"{short(published['kumar'])}~\citep{{kumar2024}}, {short(published['ouyang'])}~\citep{{ouyang2024}}."
    )
    return floating(tabular("llr" + "r" * len(BITS), header, lines), caption, "growth")


def bits(runs: pd.DataFrame) -> str:
    """What one bit less costs, against what second order and the published laws say."""
    rows = study.bit_ratios(runs[runs["ending"].isin(["constant", "annealed"])])
    rows = rows[rows["bits"].isin(BITS)]
    found, lines = _lookup(study.cells(rows, "tokens_per_param", "bits"), "tokens_per_param", "bits"), []
    for place in sorted({key[0] for key in found}):
        effects = [found.get((place, width), NONE) for width in BITS]
        plain = [Effect(e.mean, e.error, e.n, False) for e in effects]
        lines.append(_row(rf"measured, $D/N$ = {ratio(place)}", f"{max(e.n for e in effects)}", *map(factor, plain)))
    lines.append(r"\midrule")
    for name, values in others.predicted_bit_ratios(BITS).items():
        lines.append(_row(name, "", *(short(value) for value in values)))
    header = [_row("", "runs", *(rf"{width + 1} $\to$ {width}" for width in BITS))]
    caption = (
        r"The factor by which $\delta$ grows when one bit is taken away, a geometric mean over runs, their constant "
        "and annealed checkpoints. Below: second order (Section~\\ref{sec:theory}) and the published laws."
    )
    return floating(tabular("lr" + "r" * len(BITS), header, lines), caption, "bits")


def constants() -> str:
    """The constants of the law of Kumar et al. fitted to annealed branches, beside the published ones."""
    names, found = ("gamma_D", "gamma_N", "gamma_post"), others.constants()
    lines = [_row(quantizer.upper(), *(_constant(own.get(name)) for name in names)) for quantizer, own in found.items()]
    published = [next((own[name][-1] for own in found.values() if name in own), math.nan) for name in names]
    lines += [r"\midrule", _row(r"published~\citep{kumar2024}", *(short(value) for value in published))]
    header = [_row("", *map(symbol, names))]
    caption = (
        r"The constants of Eq.~\ref{eq:kumar}, fitted to the annealed branches on books from $D/N$ = "
        rf"{short(study.FIRST)} on, in groups, with intervals at 95\,\% over runs; where there is none, too few sizes "
        "determine the constant."
    )
    return floating(tabular("lrrr", header, lines), caption, "constants")


def _constant(values: tuple[float, float, float, float] | None) -> str:
    if values is None:
        return "--"
    value, low, high, _ = values
    known = math.isfinite(low) and math.isfinite(high)
    return prose(f"{short(value)} ({short(low)} to {short(high)})" if known else short(value))


def schedules(against: pd.DataFrame) -> str:
    """Losses minus those at a constant rate at the same D."""
    lines = []
    for ending, own in against.groupby("ending", sort=False):
        for place, cell in own.groupby("tokens_per_param"):
            by_bits = {int(row["bits"]): row for row in cell.to_dict("records")}
            some = next(iter(by_bits.values()))
            effects = [_of(some, "loss_fp"), *(_of(by_bits.get(b), what) for what in ("loss_q", "delta") for b in BITS)]
            lines.append(_row(escape(str(ending)), ratio(place), f"{some['runs']}", *map(shown, effects)))
    widths = [f"{bits}" for bits in BITS]
    span = len(BITS)
    header = [
        rf" & & & before & \multicolumn{{{span}}}{{c}}{{loss after quantization, bits}} & "
        rf"\multicolumn{{{span}}}{{c}}{{$\delta$, bits}} \\",
        rf"\cmidrule(lr){{5-{4 + span}}}\cmidrule(lr){{{5 + span}-{4 + 2 * span}}}",
        _row("rate", "$D/N$", "runs", "", *widths, *widths),
    ]
    caption = (
        "Losses of a run whose rate fell, minus those of the same run (text, size, seed) at a constant rate and the "
        rf"same $D$, in nats per token, means over quantizers and groupings. {_DIGITS} {_BOLD}"
    )
    return floating(tabular("lrr" + "r" * (1 + 2 * span), header, lines), caption, "schedules", wide=True)


def _of(row: Mapping | None, name: str) -> Effect:
    if row is None:
        return NONE
    return Effect(row[name], row[f"{name}_error"], int(row["runs"]), bool(row[f"{name}_decided"]))


def equal_loss(runs: pd.DataFrame) -> str:
    """δ over that of the trunk at the same loss."""
    rows = study.at_equal_loss(runs[runs["bits"].isin(BITS)])
    found = _lookup(study.cells(rows, "ending", "tokens_per_param", "bits"), "ending", "tokens_per_param", "bits")
    lines = []
    for ending in dict.fromkeys(key[0] for key in found):
        for place in sorted({key[1] for key in found if key[0] == ending}):
            effects = [found.get((ending, place, width), NONE) for width in BITS]
            lines.append(_row(escape(ending), ratio(place), f"{max(e.n for e in effects)}", *map(factor, effects)))
    header = [_row("rate", "$D/N$", "runs", *(f"{width} bits" for width in BITS))]
    caption = (
        r"$\delta$ over that of the same run's trunk at the same loss before quantization, a geometric mean over runs. "
        "Losses below all of the trunk have no counterpart. " + _BOLD.replace("zero", "one")
    )
    return floating(tabular("lrr" + "r" * len(BITS), header, lines), caption, "equal")


def harm(runs: pd.DataFrame) -> str:
    """The change of the loss after quantization per doubling of D along annealed branches."""
    rows = study.rises(runs[(runs["ending"] == "annealed") & runs["bits"].isin(BITS)])
    found = _lookup(study.cells(rows, "corpus", "params", "bits", *_AT), "corpus", "params", "bits", *_AT)
    places = sorted({key[3:] for key in found})
    lines = []
    for name in sorted({key[:2] for key in found}):
        for width in BITS:
            effects = (found.get((*name, width, *place), NONE) for place in places)
            lines.append(_row(model(*name) if width == BITS[0] else "", f"{width}", *map(shown, effects)))
        lines.append(r"\addlinespace")
    header = [_row("", "bits", *(rf"{short(a)} to {ratio(b)}" for a, b in places))]
    caption = (
        "Does more data help the quantized model? Change of the loss after quantization from one annealed branch to "
        rf"that of twice the $D$ (given as $D/N$), nats per token. Positive: more data harm. {_DIGITS} {_BOLD}"
    )
    return floating(tabular("lr" + "r" * len(places), header, lines[:-1]), caption, "harm", wide=True)


def training(table: pd.DataFrame) -> str:
    """What an unusual training changes at the largest D/N it reached."""
    found, lines = study.unusual(table[table["bits"].isin(BITS)], "annealed"), []
    for (name, _, params), own in found.groupby(["unusual", "corpus", "params"]):
        by_bits = {int(row["bits"]): row for row in own.to_dict("records")}
        some = next(iter(by_bits.values()))
        values = [shown(some["loss_fp"])]
        values += [shown(by_bits[b]["loss_q"]) if b in by_bits else "--" for b in BITS]
        values += [factor(by_bits[b]["ratio"]) if b in by_bits else "--" for b in BITS]
        where = [escape(count(params)), ratio(some["tokens_per_param"]), f"{some['loss_fp'].n}"]
        lines.append(_row(escape(others.training_name(str(name))), *where, *values))
    widths = [f"{width}" for width in BITS]
    span = len(BITS)
    header = [
        rf" & & & & before & \multicolumn{{{span}}}{{c}}{{loss after quantization, bits}} & "
        rf"\multicolumn{{{span}}}{{c}}{{factor of $\delta$, bits}} \\",
        rf"\cmidrule(lr){{6-{5 + span}}}\cmidrule(lr){{{6 + span}-{5 + 2 * span}}}",
        _row("training", "$N$", "$D/N$", "runs", "", *widths, *widths),
    ]
    caption = (
        "Other trainings against the usual one (same text, size, seed and $D$, annealed branches): difference of the "
        r"losses in nats per token, and $\delta$ over that of the usual training. Low precision is that of training; "
        rf"all models are quantized afterwards. {_BOLD}"
    )
    return floating(tabular("lrrr" + "r" * (1 + 2 * span), header, lines), caption, "training", wide=True)


def adapters(predictions: pd.DataFrame) -> str:
    """Predicted and observed damage of quantized bases of adapters."""
    lines = []
    for row in predictions.sort_values("bits", ascending=False).to_dict("records"):
        values = [short(row["predicted"]), with_error(row["kl"], row["kl_se"]), short(row["bound"])]
        values += [with_error(row["delta"], row["delta_se"]), short(row["delta_after"])]
        values += [short(row["variance_predicted"]), short(row["variance"])]
        lines.append(_row(f"{row['bits']}", *map(prose, values)))
    header = [
        r" & \multicolumn{2}{c}{KL} & & \multicolumn{2}{c}{$\delta$} & \multicolumn{2}{c}{variance} \\",
        r"\cmidrule(lr){2-3}\cmidrule(lr){5-6}\cmidrule(lr){7-8}",
        _row("bits", "pred.", "meas.", r"$C\,4^{-b}$", "before", "after", "pred.", "meas."),
    ]
    caption = (
        "A base rounded to nearest, before and after training an adapter: predicted from the checkpoint alone and "
        "measured. Errors are over windows; variance is that of a batch's gradient before training."
    )
    return floating(tabular("lrrrrrrr", header, lines), caption, "adapters")


def arena(counted: pd.DataFrame) -> str:
    """How often a law of δ is good, worse or not identified."""
    lines = []
    for law, own in counted.groupby("law", sort=False):
        cells = {row["held_out"]: row for row in own.to_dict("records")}
        values = (others.verdict_counts(cells.get(name)) for name in others.HELD_OUT)
        lines.append(_row(escape(others.law_name(str(law))), *values))
    header = [_row("law", *others.HELD_OUT.values())]
    caption = (
        r"Laws of $\delta$ on held-out points: in how many rankings a law is best or not significantly worse (good), "
        "significantly worse (worse), scored without an error because there are too few runs, or not identified by "
        "the design. Order: good/worse/no error/not identified."
    )
    return floating(tabular("l" + "c" * len(others.HELD_OUT), header, lines), caption, "arena")
