"""Oracle and property: the choice of checkpoints that are spaced evenly in log D is the best one there is."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.checkpoints import discover
from ptq_eval.checkpoints.spacing import evenly, spread
from ptq_eval.errors import OptionError
from ptq_eval.records import Checkpoint


def cost(values, places):
    first, last, n = values[0], values[-1], len(places)
    return sum((values[p] - first - (last - first) * k / (n - 1)) ** 2 for k, p in enumerate(places))


@given(st.lists(st.floats(0, 30), min_size=2, max_size=9).map(sorted), st.integers(2, 9))
def test_no_other_choice_is_nearer_to_even_distances(values, count):
    count = min(count, len(values))
    found = evenly(values, count)
    assert found == sorted(set(found))
    assert len(found) == count
    assert (found[0], found[-1]) == (0, len(values) - 1)
    inner = combinations(range(1, len(values) - 1), count - 2)
    best = min(cost(values, (0, *places, len(values) - 1)) for places in inner)
    assert cost(values, found) == pytest.approx(best, abs=1e-9)
    assert evenly(values, count) == found


def run(tokens, steps=None, stages=None):
    steps = steps or range(1, len(tokens) + 1)
    stages = stages or [""] * len(tokens)
    return [Checkpoint("run", step, d, None, str(step), stage=stage) for step, d, stage in zip(steps, tokens, stages)]


def kept(checkpoints, count):
    return [checkpoint.step for checkpoint in spread(checkpoints, count)]


def test_pythia():
    """Eight of the 154 revisions: step 0 has no log D, and the distances are a factor of 5.4."""
    steps = [0, *(2**k for k in range(10)), *range(1000, 144_000, 1000)]
    assert len(steps) == 154
    checkpoints = run([step * 2_097_152 for step in steps], steps)
    found = kept(checkpoints, 8)
    assert found == [1, 4, 32, 128, 1000, 5000, 26_000, 143_000]
    ratios = [b / a for a, b in pairwise(found)]
    assert all(2 < ratio < 11 for ratio in ratios)
    assert kept(checkpoints, 154) == steps
    assert kept(list(reversed(checkpoints)), 8) == found[::-1]


def test_unknown_tokens_are_replaced_by_steps_or_places():
    assert kept(run([None] * 5, [1, 10, 11, 12, 100]), 3) == [1, 10, 100]
    assert kept(run([None] * 5, [1, 10, 1, 2, 3], ["stage1", "stage1", "stage2", "stage2", "stage2"]), 3) == [1, 1, 3]
    assert kept(run([None, 10, 100, 1000, 9999]), 3) == [2, 3, 5]
    assert kept(run([0, 10, 100]), 3) == [1, 2, 3]


def test_of_folders(trajectory):
    found = discover([trajectory], overrides={"checkpoint_count": 2})
    assert [checkpoint.step for checkpoint in found] == [100, 400]
    found = discover([trajectory], overrides={"checkpoint_count": 2, "exclude": [400]})
    assert [checkpoint.step for checkpoint in found] == [100, 200]
    found = discover([trajectory], overrides={"checkpoint_count": 2, "tokens": [5_000, 9_000]})
    assert [checkpoint.tokens for checkpoint in found] == [5_000, 9_000]
    with pytest.raises(OptionError, match="--checkpoints is too small"):
        discover([trajectory], overrides={"checkpoint_count": 1})
