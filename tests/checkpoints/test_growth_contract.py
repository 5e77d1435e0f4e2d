"""Contract and property: a D that the steps around it contradict is named, and an impossible one is asked for."""

import json
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ptq_eval.checkpoints import Overrides, discover, warnings
from ptq_eval.checkpoints.between import cross_checked
from ptq_eval.checkpoints.growth import Reading, off_line, with_sound_counts
from ptq_eval.records import Checkpoint
from tests.checkpoints.support import codes, touch_checkpoint

STEPS = (98, 314, 980, 1765, 3138)


def run_of(tokens, steps=STEPS, source="explicit", counter="num_input_tokens_seen"):
    return [
        Checkpoint("r", step, seen, None, location=str(step), tokens_counter=counter, tokens_source=source)
        for step, seen in zip(steps, tokens)
    ]


def checked(run):
    return cross_checked(with_sound_counts(run), [None] * len(run), lambda *_: True)


@pytest.mark.parametrize("counter", ["num_input_tokens_seen", "total_flos", ""])
@pytest.mark.parametrize("factor", [0.1, 0.35, 3, 10])
@pytest.mark.parametrize("at", range(4))
def test_a_wrong_d_at_one_step_is_named_and_no_other(at, factor, counter):
    right = [2048 * step for step in STEPS]
    tokens = [round(factor * d) if place == at else d for place, d in enumerate(right)]
    in_order = all(earlier < later for earlier, later in pairwise(tokens))
    found = checked(run_of(tokens, counter=counter))
    assert [c.tokens for c in found] == tokens
    expected = ["tokens_off_line"] if in_order else ["steps_out_of_order"]
    assert [codes(c) for c in found] == [expected if place == at else [] for place in range(len(STEPS))]
    if in_order:
        assert f"imply {right[at]:,}:" in warnings(found)[0]


@pytest.mark.parametrize("rates", [(0.1, 1, 1, 1, 1), (1, 1, 4, 4, 4), (8, 1, 1, 1, 1), (1, 2, 3, 4, 5)])
def test_batches_of_another_size_are_no_wrong_d(rates):
    seen, readings = 0, []
    for before, step, rate in zip((0, *STEPS), STEPS, rates):
        seen += round(2048 * rate * (step - before))
        readings.append(Reading(step, seen))
    assert off_line(readings) == {}


def test_a_label_may_be_rounded_so_far():
    tokens = [9 * 10**7, *(3 * 10**5 * step for step in STEPS[1:])]  # 29M, rounded
    assert [codes(c) for c in checked(run_of(tokens, source="label", counter=""))] == [[] for _ in STEPS]
    assert codes(checked(run_of(tokens, counter=""))[0]) == ["tokens_off_line"]


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=7, unique=True),
    st.integers(1, 10**6),
    st.integers(0, 10**9),
)
def test_property_a_straight_line_is_never_doubted(steps, rate, offset):
    assert off_line([Reading(step, step * rate + offset) for step in sorted(steps)]) == {}


@given(
    st.lists(st.integers(10, 10**6), min_size=3, max_size=7, unique=True),
    st.integers(0, 5),
    st.floats(0.01, 100),
)
def test_property_one_wrong_reading_is_found_wherever_it_is(steps, at, factor):
    assume(at < len(steps) - 2 and not 0.4 < factor < 2.5)
    readings = [Reading(step, 1000 * step) for step in sorted(steps)]
    readings[at] = Reading(readings[at].step, round(factor * readings[at].tokens))
    assert off_line(readings) == {at: 1000 * readings[at].step}


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_impossible_count_is_asked_for_and_changes_no_other(tmp_path, at):
    for place, step in enumerate(STEPS[:3]):
        folder = touch_checkpoint(tmp_path / "run" / f"checkpoint-{step}")
        seen = 10**30 if place == at else 2048 * step
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "num_input_tokens_seen": seen}))
    found = discover([tmp_path / "run"])
    assert [c.tokens for c in found] == [None if place == at else 2048 * s for place, s in enumerate(STEPS[:3])]
    assert "gives 1e+30 tokens at step" in found[at].tokens_note
    assert [codes(c) for c in found] == [[], [], []]
    corrected = discover([tmp_path / "run"], overrides=Overrides(tokens_per_step=2048))
    assert [c.tokens for c in corrected] == [2048 * s for s in STEPS[:3]]
