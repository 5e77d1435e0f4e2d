"""The sentences about tokens and the learning rate, in plain text: what is decided by design, and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ptq_eval.report.common.numbers import count, plus_minus, ratio
from ptq_eval.report.common.words import listed, plural
from results.paper import study
from results.paper.study import BITS, Effect
from results.paper.words import MODEL, PLACES, WIDTH, amount, moves, of_row, ratios, sign, times


def annealing(against: pd.DataFrame) -> str:
    """What annealing does at the largest D/N that three runs reach."""
    own = against[(against["ending"] == "annealed") & (against["bits"] == WIDTH) & (against["runs"] >= 3)]
    row = own.sort_values("tokens_per_param").iloc[-1].to_dict()
    before, delta, after = (of_row(row, name) for name in ("loss_fp", "delta", "loss_q"))
    place = ratio(row["tokens_per_param"])
    return (
        f"At D/N = {place}, annealing {moves(before, 'the loss before quantization')} nats per token and "
        f"{moves(delta, f'δ at {WIDTH} bits')}; after quantization, {_left(after)}."
    )


def _left(after: Effect) -> str:
    if not after.decided:
        return f"no change of the loss is decided ({plus_minus(after.mean, after.error)})"
    return f"the loss is {'higher' if after.mean > 0 else 'lower'} by {amount(after)}"


def opposite(against: pd.DataFrame) -> str:
    """In how many cells δ and the loss before quantization move in opposite directions."""
    pairs = [(sign(of_row(row, "loss_fp")), sign(of_row(row, "delta"))) for row in against.to_dict("records")]
    both = [pair for pair in pairs if all(pair)]
    many = sum(a != b for a, b in both)
    widths = f"{against['bits'].min():.0f} to {against['bits'].max():.0f} bits"
    return (
        f"Of {len(pairs)} cells (ending, D/N, {widths}), the differences of δ and of the loss before quantization are "
        f"both decided in {len(both)}, and have opposite signs in {'all' if many == len(both) else many} of these."
    )


def directions(against: pd.DataFrame) -> str:
    """For each ending, at which D/N δ is decidedly lower and higher than at a constant rate."""
    said, signs = [], set()
    for ending, own in against[against["bits"] == WIDTH].groupby("ending", sort=False):
        places = {
            place: sign(of_row(row, "delta")) for place, row in zip(own["tokens_per_param"], own.to_dict("records"))
        }
        signs |= set(places.values())
        parts = [
            f"{word} at D/N = {ratios(at)}"
            for word, wanted in (("lower", -1), ("higher", 1), ("undecided", 0))
            if (at := [place for place, found in places.items() if found == wanted])
        ]
        said.append(f"{'annealed branches' if ending == 'annealed' else ending}, {', '.join(parts)}")
    end = " So a falling rate has no sign of its own." if {-1, 1} <= signs else ""
    return f"Against a constant rate, δ at {WIDTH} bits is: {'; '.join(said)}.{end}"


def equal_loss(runs: pd.DataFrame) -> tuple[str, str]:
    """δ at equal loss, over all widths and D/N, of annealed branches and of the other endings."""
    rows = study.at_equal_loss(runs[runs["bits"].isin(BITS)])
    said = []
    for ending, own in rows.groupby("ending", sort=False):
        found = study.of_each_run(own)
        verdict = "" if found.decided else ", undecided"
        said.append((str(ending), f"{times(found)} ({plural(found.n, 'run')}{verdict})"))
    first = [text for ending, text in said if ending == "annealed"]
    rest = [f"{text} under {ending}" for ending, text in said if ending in ("cosine", "linear")]
    return first[0] if first else "not measured", listed(rest)


def _annealed_rises(runs: pd.DataFrame) -> pd.DataFrame:
    """The effect of every doubling of D on the loss after quantization of annealed branches."""
    rows = study.rises(runs[(runs["ending"] == "annealed") & runs["bits"].isin(BITS)])
    rows = rows[rows["tokens_per_param"] >= study.FIRST]
    return study.cells(rows, *MODEL, *PLACES)


def harm(runs: pd.DataFrame) -> tuple[str, str, str]:
    """(counts of doublings that lower and raise the loss after quantization by width; the largest rise of each model
    and width; between which D/N the loss is least)."""
    found = _annealed_rises(runs)
    rises = found[found["effect"].map(sign) > 0]
    largest = rises.assign(size=rises["effect"].map(lambda one: one.mean)).sort_values("size").groupby(MODEL).tail(1)
    said = [_rise(row) for row in largest.sort_values(MODEL).to_dict("records")]
    rise = f"At most, for each model and width, it rises {listed(said)}." if said else "It rises decidedly nowhere."
    return _counts(found.to_dict("records")), rise, _turns(runs)


def _rise(row: Mapping[str, Any]) -> str:
    places = f"D/N = {ratio(row[PLACES[0]])} to {ratio(row[PLACES[1]])}"
    what = f"{amount(row['effect'])} nats per token at {row['bits']:.0f} bits"
    return f"by {what} from {places} (N = {count(row['params'])}, {row['corpus']})"


def _counts(found: list[dict[str, Any]]) -> str:
    said = []
    for width in BITS:
        signs = [sign(row["effect"]) for row in found if row["bits"] == width]
        lower, higher = signs.count(-1), signs.count(1)
        rest = f", {higher} raise it and {signs.count(0)} are undecided" if lower < len(signs) else ""
        said.append(f"at {width} bits {'all ' if not rest else f'{lower} of '}{len(signs)} doublings lower it{rest}")
    return "; ".join(said)


def _turns(runs: pd.DataFrame) -> str:
    """Between which D/N the loss after quantization is least, where it decidedly falls and later decidedly rises."""
    rows = study.rises(runs[(runs["ending"] == "annealed") & runs["bits"].isin(BITS)])
    said = []
    for (bits, corpus, params), own in study.cells(rows, *MODEL, *PLACES).groupby(MODEL):
        signs = own["effect"].map(sign)
        falls, rises = own[signs < 0], own[signs > 0]
        low, high = falls[PLACES[0]].max(), rises[PLACES[1]].min()
        if low < high:  # neither is missing, and no fall comes after a rise
            said.append(
                f"between D/N = {ratio(low)} and {ratio(high)} at {bits:.0f} bits (N = {count(params)}, {corpus})"
            )
    return f"The minimum is {listed(said)}." if said else "No minimum is enclosed by a fall and a rise."


def verdicts(runs: pd.DataFrame, against: pd.DataFrame) -> dict[str, str]:
    """What follows for the dispute: of tokens at equal annealing, of the rate at equal D, at equal loss, of both."""
    rates = against[(against["ending"] == "annealed") & (against["bits"] == WIDTH)]
    signs = frozenset(sign(of_row(row, "delta")) for row in rates.to_dict("records")) - {0}
    rate = {
        frozenset({1}): f"annealing raises δ at {WIDTH} bits wherever the difference is decided",
        frozenset({-1}): f"annealing lowers δ at {WIDTH} bits wherever the difference is decided",
        frozenset(): f"no effect of annealing on δ at {WIDTH} bits is decided",
    }.get(signs, f"annealing raises δ at {WIDTH} bits at some D and lowers it at others")
    tokens, harmful = _of_tokens(runs)
    both = harmful and bool(signs)
    rows = study.at_equal_loss(runs[runs["bits"].isin(BITS)])
    equal = study.of_each_run(rows[rows["ending"] == "annealed"])
    word = "" if equal.decided else ", which is not decidedly different from one"
    return {
        "VerdictTokens": tokens,
        "VerdictRate": f"At equal tokens, {rate}.",
        "VerdictLoss": f"At equal loss before quantization, annealed models have {times(equal)} times the δ of their "
        f"trunks{word}.",
        "VerdictBoth": "Neither the tokens alone nor the decay of the rate alone describes these runs." if both else "",
    }


def _of_tokens(runs: pd.DataFrame) -> tuple[str, bool]:
    """What more tokens do to branches annealed alike, and whether they do harm anywhere."""
    found, start = _annealed_rises(runs), "Among branches annealed alike,"
    rises = found[found["effect"].map(sign) > 0]
    if rises.empty:
        return f"{start} no doubling of the tokens decidedly raises the loss after quantization.", False
    top = rises.iloc[rises["effect"].map(lambda one: one.mean).argmax()].to_dict()
    widths = sorted(rises["bits"].unique())
    rest = [width for width in BITS if width not in widths]
    end = f"; at {listed(rest)} bits none does" if rest else ""
    return (
        f"{start} {len(rises)} of {found['bits'].isin(widths).sum()} doublings of the tokens decidedly raise the loss "
        f"after quantization to {listed([f'{width:.0f}' for width in widths])} bits, at most {_rise(top)}{end}.",
        True,
    )
