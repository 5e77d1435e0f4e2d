"""Contract: group sizes and formats in a plan, for the laws that know them and no others."""

import math

import numpy as np
import pytest

from ptq_eval.errors import BitsError, OptionError, PlanError
from ptq_eval.laws import fit
from ptq_eval.laws.calculator import critical_tokens, delta_ptq, loss
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.formulas.chen import Chen
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.presets import CHEN_2025, EPOCH_2024, KUMAR_2024, SUN_2025
from ptq_eval.laws.plan.answers import Planner, Question, plan
from ptq_eval.laws.plan.curves import loss_against_tokens, loss_over_bits_and_ratio
from ptq_eval.laws.plan.question import Reason
from ptq_eval.laws.plan.source import from_fits, from_preset
from ptq_eval.laws.plan.stored import from_stored
from ptq_eval.laws.simulate import PAPER_SIZES, PAPER_TOKENS, grid, simulate
from ptq_eval.report.plan.words import sentences

CHEN = from_preset(EPOCH_2024, CHEN_2025)
SUN = from_preset(SUN_2025)
FORMATS = {"serve_format": ("E4M3", "E2M1", "E8M7"), "group_size": 128}


def test_formats_are_answered_as_the_plain_functions_do():
    """Golden: the three critical sizes that the paper's constants imply at N = 1e9 with blocks of 128."""
    found = plan(SUN, Question(params=1e9, tokens=1e11, **FORMATS))
    turns = {answer.label: answer.values["D"].value for answer in found.of("critical_tokens")}
    assert turns == pytest.approx({"E2M1": 3.93e11, "E4M3": 2.73e13, "E8M7": 1.73e15}, rel=2e-3)
    for answer in found.of("loss"):
        added = delta_ptq(1e9, 1e11, answer.label, group_size=128, constants=SUN_2025)
        assert answer.values["damage"].value == pytest.approx(added, rel=1e-12)
        assert answer.values["after"].value == pytest.approx(loss(1e9, 1e11, constants=SUN_2025) + added, rel=1e-12)
    assert [answer.label for answer in found.of("longer")] == ["E2M1", "E4M3", "E8M7"]


def test_a_format_is_trained_in_and_paid_for_at_its_own_bits():
    found = plan(SUN, Question(params=1e9, tokens=1e11, **FORMATS))
    given = {a.at["serve_bits"]: a for a in found.of("optimum") if "N" in a.at and "serve_bits" in a.at}
    assert set(given) == {4, 8, 16}
    for bits, answer in given.items():
        D, label = answer.values["D"].value, found.planner.label(bits)
        turn = next(a.values["D"].value for a in found.of("critical_tokens") if a.label == label)
        assert pytest.approx(min(1e11 * 16 / bits, turn)) == D
        assert answer.stops_at_critical == (label == "E2M1")
        want = loss(1e9, D, constants=SUN_2025) + delta_ptq(1e9, D, label, group_size=128, constants=SUN_2025)
        assert answer.values["loss"].value == pytest.approx(want)
        if bits < 16:
            change = want - loss(1e9, 1e11, constants=SUN_2025)
            assert answer.values["against_16"].value == pytest.approx(change)
    assert any(
        "N = 1B, trained and served in E4M3" in lines and "lower precision wins" in lines for lines in sentences(found)
    )


@pytest.mark.parametrize("group", [32, 128])
def test_a_group_size_is_answered_as_the_plain_functions_do(group):
    found = plan(CHEN, Question(params=1e9, tokens=1e11, group_size=group))
    [turn], [cost] = found.of("critical_tokens"), found.of("loss")
    both = [EPOCH_2024, CHEN_2025]
    assert turn.values["D"].value == pytest.approx(critical_tokens(1e9, 4, group_size=group, constants=both))
    assert cost.values["damage"].value == pytest.approx(delta_ptq(1e9, 1e11, 4, group_size=group, constants=both))


def test_without_a_number_of_bits_none_is_searched_and_no_surface_drawn():
    for source, held in ((CHEN, {"group_size": 128}), (SUN, FORMATS)):
        question = Question(params=1e9, tokens=1e11, max_loss=0.01, **held)
        found = plan(source, question)
        [smallest] = found.of("smallest_bits")
        assert smallest.values == {}
        assert smallest.why_not == (Finding(Reason.BITS_NOT_A_VARIABLE),)
        assert loss_over_bits_and_ratio(found.planner) == []
        labels = {row["serving"] for row in loss_against_tokens(found.planner) if row["kind"] == "curve"}
        assert labels == {None, *(answer.label for answer in found.of("loss"))}


@pytest.mark.parametrize(
    ("source", "question", "error", "words"),
    [
        (from_preset(KUMAR_2024), {"group_size": 128}, PlanError, "law kumar_ptq has none"),
        (from_preset(KUMAR_2024), {"serve_format": ("E4M3",)}, PlanError, "law kumar_ptq has none"),
        (from_preset(EPOCH_2024), {"group_size": 128}, PlanError, "no degradation law"),
        (from_preset(EPOCH_2024), {"serve_format": ("E4M3",)}, PlanError, "no degradation law"),
        (CHEN, {}, PlanError, "--group-size 128"),
        (CHEN, {"group_size": 128, "serve_format": ("E4M3",)}, PlanError, "law chen has none"),
        (CHEN, {"group_size": 128, "serve_bits": (3.0,)}, PlanError, "--serve-bits 4"),
        (SUN, {}, PlanError, "format and the group size"),
        (SUN, {"group_size": 128}, PlanError, "needs a floating-point format"),
        (SUN, {"serve_format": ("E4M3",)}, PlanError, "needs the group size"),
        (SUN, {"serve_bits": (4.0,), **FORMATS}, PlanError, "not numbers of bits"),
        (SUN, {"group_size": 128, "serve_format": ("E4M3", "E5M2")}, PlanError, "two formats of 8 bits"),
        (SUN, {"group_size": 128, "serve_format": ("FP8",)}, OptionError, "E4M3"),
        (SUN, {"group_size": 128, "serve_format": ("q4_k",)}, OptionError, "--number-format q4_k"),
        (SUN, {"group_size": 128, "serve_format": ("nvfp4",)}, OptionError, "--serve-format nvfp4 has no exponent"),
        (SUN, {"group_size": 128, "serve_format": ("E8M23",)}, BitsError, "32 bits"),
        (SUN, {"group_size": 1, "serve_format": ("E4M3",)}, OptionError, "above 1"),
        (SUN, {"group_size": math.nan, "serve_format": ("E4M3",)}, OptionError, "not a number"),
    ],
)
def test_what_the_law_does_not_know_is_refused(source, question, error, words):
    with pytest.raises(error) as caught:
        plan(source, Question(params=1e9, tokens=1e11, **question))
    assert words in str(caught.value)


@pytest.fixture(scope="module")
def chen_fits():
    design = grid({"N": PAPER_SIZES, "D": PAPER_TOKENS, "G": (32.0, 64.0, 128.0)}, run=("N", "D"))
    delta = fit(Chen(), simulate(Chen(), CHEN_2025, design, noise=0.03), n_boot=40)
    return [delta, fit(Chinchilla(), simulate(Chinchilla(), EPOCH_2024, design, noise=0.002), n_boot=40)]


def test_a_fit_of_chens_law_can_be_planned_from(chen_fits):
    ranges = {"N": [30e6, 220e6], "D": [1.5e9, 26e9], "G": [32, 128]}
    stored = from_stored({"fits": [{**one.to_dict(), "ranges": ranges} for one in chen_fits]}, name="out")
    live = from_fits(chen_fits, name="out", ranges=ranges)
    for source in (stored, live):
        question = Question(params=1e8, tokens=1e10, group_size=256, serve_bits=(4,))
        [cost] = plan(source, question).of("loss")
        want = delta_ptq(1e8, 1e10, 4, group_size=256, constants=CHEN_2025)
        assert cost.values["damage"].value == pytest.approx(want, rel=0.1)
        assert cost.beyond == {"G": 2.0}
        with pytest.raises(PlanError, match="does not say which"):
            plan(source, Question(params=1e8, group_size=64))
    [turn] = plan(live, question).of("critical_tokens")
    assert turn.values["D"].low < turn.values["D"].value < turn.values["D"].high


def test_without_known_ranges_nothing_is_said_to_lie_within_them():
    rows = loss_against_tokens(Planner(SUN, Question(params=1e9, **FORMATS)))
    assert np.isnan([row["beyond"] for row in rows]).all()
    rows = loss_against_tokens(Planner(from_preset(KUMAR_2024), Question(params=1e8)))
    assert {row["beyond"] > 1 for row in rows} == {True, False}
