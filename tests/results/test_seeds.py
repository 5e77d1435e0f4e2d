"""Oracle: the spread of delta between runs that differ in their seed alone, and what it does to the noise floor."""

import math
import statistics

import pytest

from ptq_eval.records import Checkpoint
from ptq_eval.results.seeds import add_seeds


def pair(delta, run="a", family="one", tokens=100, sha="", params=10, bits=4, **more):
    checkpoint = Checkpoint(run, 1, tokens, params, family=family, weights_sha=sha or run)
    row = {"delta": delta, "bits": bits, "quantizer": "rtn", "tokens": tokens, "params": params}
    return checkpoint, {**row, "noise_floor": 0.3, **more}


def test_the_spread_between_seeds_is_part_of_the_floor():
    pairs = [pair(1.0), pair(1.5, "b"), pair(3.0, "c")]
    add_seeds(pairs)
    spread = statistics.stdev([1.0, 1.5, 3.0])
    for _, row in pairs:
        assert row["seeds"] == 3
        assert row["seed_sd"] == pytest.approx(spread)
        assert row["noise_floor"] == pytest.approx(math.hypot(0.3, 2 * spread))


@pytest.mark.parametrize(
    "other",
    [
        pair(2.0, "b", family="two"),
        pair(2.0, "b", family=""),
        pair(2.0, "b", tokens=200),
        pair(2.0, "b", params=11),
        pair(2.0, "b", bits=3),
        pair(2.0, "b", quantizer="gptq"),
        pair(2.0, "b", options='{"damping": 0.1}'),
        pair(math.nan, "b"),
        pair(2.0, "b", sha="a"),
    ],
)
def test_only_runs_of_one_family_at_the_same_place_are_compared(other):
    pairs = [pair(1.0), other]
    add_seeds(pairs)
    assert all("seed_sd" not in row and row["noise_floor"] == 0.3 for _, row in pairs)


def test_a_floor_that_is_not_known_stays_so():
    pairs = [pair(1.0), pair(2.0, "b")]
    for _, row in pairs:
        del row["noise_floor"]
    add_seeds(pairs)
    assert all(row["seeds"] == 2 and "noise_floor" not in row for _, row in pairs)
