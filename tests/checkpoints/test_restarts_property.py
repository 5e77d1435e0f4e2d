"""Property and contract: D of a counter that starts again is right or unknown, whatever the training's history."""

import math
from itertools import pairwise, product
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ptq_eval.checkpoints.growth import with_whole_counts
from ptq_eval.records import Checkpoint

SPACINGS = {
    "even": [100 * k for k in range(1, 8)],
    "powers of two": [100 * 2**k for k in range(7)],
    "powers of ten, halved": [100, 500, 1000, 5000, 10_000, 50_000, 100_000],
    "of the example": [391, 704, 1252, 2190, 3911, 6977, 12_442],
}
UNIT = 2048


def counter(steps, batches, restarts):
    """(what the counter says, D) at each step; `batches` in `UNIT`s, `restarts`: whether one comes before each."""
    seen, total, found = 0, 0, []
    for past, step, batch, restart in zip([0, *steps], steps, batches, restarts):
        tokens = round(UNIT * batch * (step - past))
        seen, total = tokens + (0 if restart else seen), total + tokens
        found.append((seen, total))
    return [seen for seen, _ in found], [total for _, total in found]


def read(steps, seen, name="num_input_tokens_seen"):
    run = [Checkpoint("r", step, count, None, str(step), tokens_counter=name) for step, count in zip(steps, seen)]
    return with_whole_counts(run)


def events(batches, restarts):
    """How often anything happened: a restart, or a batch of another size that does not go on growing or shrinking."""
    count, turn = 0, 0
    for (past, batch), restart in zip(pairwise(batches), restarts[1:]):
        change = 0 if abs(batch - past) <= (0.01 if restart else 0.05) * past else 1 if batch > past else -1
        count += restart or (change not in (0, turn))
        turn = 0 if restart else change
    return count


def fewest_events(steps, seen):
    """The least of `events` of all histories with restarts at checkpoints alone: a slow reference, one by one."""
    found = []
    for restarts in product([False, True], repeat=len(steps) - 1):
        restarts = [False, *restarts]
        batches = [
            (count - (0 if restart else past)) / (step - before)
            for past, count, before, step, restart in zip([0, *seen], seen, [0, *steps], steps, restarts)
        ]
        if min(batches) > 0:
            found.append(events(batches, restarts))
    return min(found)


def assert_right_or_unknown(found, right):
    for checkpoint, tokens in zip(found, right):
        assert checkpoint.tokens is None or checkpoint.tokens == pytest.approx(tokens, rel=0.05)


@st.composite
def trainings(draw, sizes=(2, 4, 5, 6, 8, 11, 12, 16, 32)):
    """Steps, the batch of each interval, and whether a restart came before it: at each, at some or at none of them; at
    one of them the batch may have changed."""
    steps = draw(st.sampled_from(list(SPACINGS.values())))
    steps = steps[: draw(st.integers(2, len(steps)))]
    often = draw(st.sampled_from([(True,), (False,), (False, True)]))
    restarts = [False] + [draw(st.sampled_from(often)) for _ in steps[1:]]
    after = draw(st.sampled_from([place for place, restart in enumerate(restarts) if restart] or [len(steps)]))
    size = draw(st.sampled_from(sizes))
    return steps, [8 if place < after else size for place in range(len(steps))], restarts


@settings(max_examples=300, deadline=None)
@given(trainings(sizes=(8,)))
def test_property_with_one_batch_d_is_right_or_unknown(training):
    seen, right = counter(*training)
    assert_right_or_unknown(read(training[0], seen), right)


@settings(max_examples=600, deadline=None)
@given(trainings())
def test_property_with_another_batch_after_a_restart_d_is_right_or_unknown(training):
    """Unless the counter looks like one that went on: fewer events explain it, or it only grows faster."""
    steps, batches, restarts = training
    seen, right = counter(steps, batches, restarts)
    rates = [
        (count - past) / (step - before) for past, count, before, step in zip([0, *seen], seen, [0, *steps], steps)
    ]
    slower = any(rate < 0.95 * past for past, rate in pairwise(rates))
    assume(fewest_events(steps, seen) == events(batches, restarts) and (slower or not any(restarts)))
    assert_right_or_unknown(read(steps, seen), right)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(SPACINGS.values())), st.lists(st.floats(1.06, 3), min_size=3, max_size=7))
def test_property_d_of_a_batch_that_grows_at_every_checkpoint_is_never_changed(steps, factors):
    count = len(factors)
    batches = [8 * math.prod(factors[:place]) for place in range(1, count + 1)]
    seen, right = counter(steps[:count], batches, [False] * count)
    assert {c.tokens for c in read(steps[:count], seen)} <= {None, *right}


@pytest.mark.parametrize("name", ["num_input_tokens_seen", "total_flos"])
@pytest.mark.parametrize(
    ("steps", "batches", "restarts", "known"),
    [
        ("even", (8,) * 7, (1, 1, 1, 1, 1, 1), 7),  # a job for each checkpoint
        ("even", (8,) * 7, (0, 0, 1, 0, 1, 0), 7),
        ("even", (8, 8, 8, 16, 16, 16, 16), (0, 0, 1, 0, 0, 0), 7),  # resumed with twice the batch
        ("even", (8, 8, 8, 4, 4, 4, 4), (0, 0, 1, 0, 0, 0), 7),
        ("powers of two", (8,) * 7, (1, 1, 1, 1, 1, 1), 2),  # or half the batch from step 200 on
        ("powers of two", (8,) * 7, (0, 0, 1, 0, 0, 0), 7),
        ("powers of two", (8, 8, 16, 16, 16), (0, 1, 0, 0), 2),  # or twice the batch from step 400 on
        ("powers of two", (8, 8, 4, 4, 4), (0, 1, 0, 0), 5),
        ("of the example", (8, 8, 8, 8, 8), (1, 1, 1, 1), 2),
        ("of the example", (8, 8, 8, 16), (0, 0, 1), 3),  # or 0.67 times the batch without a restart
        ("of the example", (8, 8, 8, 4), (0, 0, 1), 3),  # or the same batch from a later step on
        ("of the example", (8, 16, 16, 16, 32, 32, 32), (0, 0, 0, 0, 0, 0), 7),  # a schedule
    ],
)
def test_histories_of_practice(steps, batches, restarts, known, name):
    steps = SPACINGS[steps][: len(batches)]
    seen, right = counter(steps, batches, [False, *restarts])
    found = read(steps, seen, name)
    assert [c.tokens for c in found] == [*right[:known], *([None] * (len(steps) - known))]
    for checkpoint in found[known:]:
        assert f"{right[known]:,}" in found[known].tokens_note
        assert checkpoint.tokens_note.startswith(name)
        assert "--tokens-per-step, --tokens or a trajectory.yaml" in checkpoint.tokens_note


@pytest.mark.parametrize(
    "batches", [(0.373, 1, 1, 1, 1), (0.3, 0.9, 1, 1, 1), (0.25, 0.5, 0.75, 1, 1), (1, 1, 1.5, 2, 2)]
)
def test_a_warm_up_of_the_batch_is_read_as_it_is(batches):
    steps = [100, 200, 300, 400, 500]
    seen, right = counter(steps, [1000 * batch for batch in batches], [False] * 5)
    assert [c.tokens for c in read(steps, seen)] == right


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([50, 100, 500]))
def test_property_batches_that_vary_by_a_tenth_are_no_restart(seed, gap):
    random, seen, total = Random(seed), [], 0.0
    for _ in range(25):
        total += UNIT * sum(random.gauss(1, 0.1) for _ in range(gap))
        seen.append(round(total))
    steps = [gap * place for place in range(1, 26)]
    assert [c.tokens for c in read(steps, seen)] == seen
