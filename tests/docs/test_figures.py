"""Contract: what the page on statistics says was reached is what the benchmarks stored."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ptq_eval.laws.forecast.forecast import UNANNOUNCED_HELD

ROOT = Path(__file__).resolve().parents[2]
UNANNOUNCED = 'stated as "not before", beyond the origin; the learning rate did otherwise later'
PAGE = (ROOT / "docs" / "statistics.md").read_text()


def stored(name, text):
    """The value of the first claim of a benchmark whose words begin with `text`, in per cent."""
    claims = json.loads((ROOT / "results" / "benchmarks" / f"{name}.json").read_text())["claims"]
    return round(100 * next(c["value"] for c in claims if c["what"].startswith(text)))


@pytest.mark.parametrize("run", ["held out", "rising"])
def test_the_share_of_excluded_turning_points_is_that_stored(run):
    claims = json.loads((ROOT / "results" / "benchmarks" / "forecast.json").read_text())["claims"]
    words = f"{run} runs: D_crit, "
    value = next(c["value"] for c in claims if c["what"].startswith(words) and "(all): statements that" in c["what"])
    assert row(f"| simulated, {run}")[-1] == round(100 * value)


def row(start):
    """The whole numbers before per cent signs in the row of a table that begins so."""
    return [int(found) for found in re.findall(r"(\d+) %", next(x for x in PAGE.splitlines() if x.startswith(start)))]


@pytest.mark.parametrize(
    ("start", "name", "runs"),
    [
        ("| stored runs |", "backtest", "stored runs"),
        ("| simulated, held out |", "forecast", "held out runs"),
        ("| simulated, rising", "forecast", "rising runs"),
    ],
)
def test_the_shares_of_later_losses_inside_are_those_stored(start, name, runs):
    where = ("one checkpoint ahead", "at 2 times D", "at 4 times D")
    found = [stored(name, f"{runs}: 90 % intervals of loss after quantization {each}, share inside") for each in where]
    assert row(start)[:3] == found


@pytest.mark.parametrize(
    ("start", "kind", "lowest"),
    [
        ('| "not before", beyond the origin', 'stated as "not before", beyond the origin', "decaying"),
        ('| "not before" where the rate', UNANNOUNCED, "decaying"),
        ("| two ends (90 %)", "stated with two ends", "wandering"),
        ("| of these, an upper end", "stated with two ends, the upper one beyond the origin", "wandering"),
    ],
)
def test_what_each_kind_of_statement_holds_is_that_stored(start, kind, lowest):
    """All families together, with the number of cases, and the family that holds least."""
    claims = json.loads((ROOT / "results" / "benchmarks" / "forecast.json").read_text())["claims"]
    end = f"({kind}): statements that exclude the exact D_crit"
    found = {}
    for claim in claims:
        if claim["what"].endswith(end):
            family, cases = re.fullmatch(r"(.*) runs: D_crit, (\d+) cases ", claim["what"].removesuffix(end)).groups()
            found[family] = (int(cases), 1 - claim["value"])
    every = sum(cases for cases, _ in found.values())
    held = 100 * sum(cases * share for cases, share in found.values()) / every
    cases, least = found[lowest]
    assert kind != UNANNOUNCED or round(least, 2) == UNANNOUNCED_HELD
    assert least == min(share for _, share in found.values())
    line = next(x for x in PAGE.splitlines() if x.startswith(start))
    stated = f"{held:.1f} % of {every:,} | {lowest}, {100 * least:.0f} % of {cases} |"
    assert line.endswith(stated)


def test_the_documents_drawn_at_random_hold_what_is_stored():
    words = "stdlib:evaluation, 3201 windows: 90 % intervals of δ, documents, 36 cells × 400 draws, share inside"
    assert row("| a random half of the documents") == [stored("coverage", words)]


def test_what_forecasts_of_the_study_hold_is_that_stored():
    folder = ROOT / "results" / "precision"
    stated = pd.read_csv(folder / "forecasts.csv.gz")
    lines = (folder / "README.md").read_text().splitlines()

    def held(own):
        share = 100 * float(1 - own["refuted"].mean())
        return round(share, 1 if share > 99 else None)

    half = stated[stated["asked_at"].str.startswith("half")]
    head = next(at for at, line in enumerate(lines) if line.startswith("| half of the run, inside |"))
    for what, row in zip(("loss_q", "delta"), lines[head + 2 : head + 4]):
        own = half[half["what"] == what]
        assert [float(x) for x in re.findall(r"([\d.]+) %", row)] == [
            held(own[own["bits"] == b]) for b in (2, 3, 4, 5, 6, 8)
        ]
    third = stated[stated["asked_at"].str.startswith("a third") & (stated["ahead"] == "4x")]
    assert held(third[third["what"] == "loss_q"]) == 100
    assert held(third[third["what"] == "delta"]) == 96
    turns = stated[stated["what"] == "critical_tokens"]
    assert not turns["refuted"].any()
    two_ends = np.isfinite(turns["low"]) & np.isfinite(turns["high"])
    beyond = int(((turns["low"] > turns["origin_tokens"] * (1 + 1e-6)) & ~two_ends).sum())
    text = " ".join(line.strip() for line in lines)
    assert f"six of {len(turns):,} lines" in text
    assert np.isfinite(turns["truth"]).sum() == 6
    assert f"can decide {int(turns['decisive'].sum())}. Two ends are stated of {two_ends.sum()}" in text
    assert f"beyond the one asked at of {beyond:,}" in text
