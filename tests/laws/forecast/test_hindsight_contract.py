"""What a folder's fit says of D/N = 50: which runs are asked, from which checkpoints, and what counts as refuted."""

import json

import numpy as np
import pytest

from ptq_eval.laws.fit.folder import fit_points
from ptq_eval.laws.forecast.folder import hindsight
from ptq_eval.results.points import read
from tests.laws.synthetic import RATIOS, table

N = 80e3


@pytest.fixture(scope="module")
def measured():
    rows, windows = table(np.random.default_rng(0), sizes=(N,), bits=(2, 4), noise=0.02)
    return rows, windows, fit_points(read(rows)[0], windows, n_boot=0).turns


@pytest.fixture(scope="module")
def found(measured):
    rows, windows, turns = measured
    return hindsight(read(rows)[0], windows, turns)


def test_every_line_has_a_statement_of_the_last_loss_and_of_the_turn(measured, found):
    rows, _, turns = measured
    json.dumps(found, allow_nan=False)
    stated = {(row["quantizer"], row["bits"], row["what"]): row for row in found["statements"]}
    assert set(stated) == {("rtn", bits, what) for bits in (2, 4) for what in ("loss_q", "critical_tokens")}
    losses = {row["bits"]: row["loss_q"] for row in rows if row["tokens"] == N * RATIOS[-1] and "loss_q" in row}
    for (_, bits, what), row in stated.items():
        assert row["origin_tokens"] / N == min(RATIOS, key=lambda ratio: abs(np.log(ratio / 50)))
        assert row["params"] == N
        if what == "loss_q":
            assert row["target_tokens"] == N * RATIOS[-1]
            assert row["truth"] == pytest.approx(losses[bits])
            assert row["refuted"] == (not row["low"] <= row["truth"] <= row["high"])
        else:
            turn = next(turn for (_, _, width), turn in turns.items() if width == bits)
            assert row["truth"] == (pytest.approx(turn.place.value) if turn.interior else None)
    assert {score["method"] for score in found["scores"]} == {"forecast", "staying", "joint", "power"}
    assert {score["n"] for score in found["scores"]} == {2}


def test_the_forecast_does_not_see_what_came_later(measured, found):
    rows, windows, turns = measured
    later = [{**r, "delta": 3.0, "loss_q": 9.0} if r["tokens"] > 60 * N and "delta" in r else r for r in rows]
    for before, after in zip(found["statements"], hindsight(read(later)[0], windows, turns)["statements"]):
        assert [before[end] for end in ("low", "value", "high")] == [after[end] for end in ("low", "value", "high")]
        assert after["refuted"] if after["what"] == "loss_q" else True


def test_few_checkpoints_and_separately_trained_models_are_not_asked(measured):
    rows, windows, turns = measured
    few = [row for row in rows if row["tokens"] < N * RATIOS[7]]
    apart = [{**row, "run": f"{row['run']}-{row['tokens']}"} for row in rows]
    for some in (few, apart):
        assert hindsight(read(some)[0], windows, turns) == {"level": 0.9, "statements": [], "scores": []}
