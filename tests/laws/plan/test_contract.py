"""Contract: what a plan says where it knows little, and what it refuses."""

import math
import pickle
from dataclasses import replace

import pytest

from ptq_eval.errors import BitsError, OptionError, PlanError, UnitsError
from ptq_eval.laws.calculator import critical_tokens
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.formulas.presets import EPOCH_2024, HOFFMANN_2022, KUMAR_2024, OUYANG_2024, PRESETS, SUN_2025
from ptq_eval.laws.plan.answers import Planner, Question, plan
from ptq_eval.laws.plan.question import Doubt, Reason
from ptq_eval.laws.plan.source import from_preset
from ptq_eval.report.plan.words import cautions, refusal, uncertainty
from tests.laws.synthetic import KUMAR, eq2


def test_every_preset_answers_or_says_what_is_missing():
    for preset in PRESETS.values():
        held = {"SUN_2025": {"serve_format": ("E4M3",), "group_size": 128}, "CHEN_2025": {"group_size": 128}}
        question = Question(params=1e9, tokens=2e10, **held.get(preset.name, {"serve_bits": (4,)}))
        found = plan(from_preset(preset), question)
        assert all(answer.values or answer.why_not for answer in found.answers)
        assert all(math.isnan(v.low) for answer in found.answers for v in answer.values.values())
        assert "no answer has an interval" in uncertainty(found.source)


def test_a_loss_law_alone_answers_what_it_can():
    found = plan(from_preset(EPOCH_2024), Question(params=1e9, tokens=2e10, serve_bits=(4,)))
    [loss], [turn], [lower] = (found.of(ask) for ask in ("loss", "critical_tokens", "lower"))
    assert set(loss.values) == {"before"}
    assert loss.missing == ("C_T", "gamma_D", "gamma_N", "gamma_post")
    assert turn.values == {}
    assert set(turn.missing) == {"C_T", "gamma_D", "gamma_N", "gamma_post"}
    assert lower.missing == ("gamma_w", "gamma_a", "gamma_kv")
    assert any(answer.values for answer in found.of("optimum"))  # the best N and D at 16 bits
    assert all(answer.at.get("train_bits", 16) == 16 for answer in found.of("optimum"))


def test_a_degradation_law_alone_answers_what_it_can():
    found = plan(from_preset(OUYANG_2024), Question(params=1e9, tokens=2e10, serve_bits=(4,), max_loss=0.1))
    [loss], [turn], [smallest] = (found.of(ask) for ask in ("loss", "critical_tokens", "smallest_bits"))
    want = 0.017 * 2e10**0.5251 / (1e9**0.2261 * 4**5.4967)
    assert loss.values["damage"].value == pytest.approx(want)
    assert "after" not in loss.values
    assert set(loss.missing) == {"A", "alpha", "B", "beta", "E"}
    assert turn.missing == ("B", "beta")
    assert 0.017 * 2e10**0.5251 / (1e9**0.2261 * smallest.values["bits"].value ** 5.4967) == pytest.approx(0.1)
    assert all(not answer.values for answer in found.of("optimum"))
    assert found.source.doubts == (Finding(Doubt.RANGE_UNKNOWN, {"preset": "OUYANG_2024"}),)


def test_every_doubt_has_its_sentence():
    known = replace(from_preset(EPOCH_2024), doubts=tuple(Finding(kind, {"preset": "P", "law": "L"}) for kind in Doubt))
    said = cautions(plan(known, Question(params=1e9, tokens=2e10, serve_bits=(4,))))
    for words in ("behind P is not known", "cannot use the law L", "not used: L", "gamma_N was not fitted"):
        assert any(words in text for text in said)


def test_presets_together_answer_what_neither_can():
    sources = from_preset(EPOCH_2024, OUYANG_2024), from_preset(OUYANG_2024, EPOCH_2024)
    for source in sources:
        [turn] = plan(source, Question(params=1e9, serve_bits=(4,))).of("critical_tokens")
        assert turn.values["D"].value == pytest.approx(critical_tokens(1e9, 4, constants=[EPOCH_2024, OUYANG_2024]))
        assert source.ranges == from_preset(EPOCH_2024).ranges
        assert [doubt.facts for doubt in source.doubts] == [{"preset": "OUYANG_2024"}]
    both = from_preset(KUMAR_2024, EPOCH_2024)
    assert both.ranges == {"N": (57e6, 220e6), "D": (1.5e9, 26e9), "bits": (3, 6)}
    assert both.constants["E"][0] == EPOCH_2024.constants["E"]
    assert both.constants["C_T"][0] == KUMAR_2024.constants["C_T"]
    for wrong in ((KUMAR_2024, OUYANG_2024), (EPOCH_2024, KUMAR_2024)):
        with pytest.raises(PlanError, match="do not go together"):
            from_preset(*wrong)


def test_what_is_said_of_uncertainty_is_true_of_each_preset():
    assert "standard errors (A 124.58" in uncertainty(from_preset(EPOCH_2024))
    assert "implausibly narrow" in uncertainty(from_preset(HOFFMANN_2022))
    assert "2404.10102" in uncertainty(from_preset(HOFFMANN_2022))
    assert "no uncertainty is published" in uncertainty(from_preset(KUMAR_2024))
    assert pickle.loads(pickle.dumps(EPOCH_2024)) == EPOCH_2024


def test_nothing_can_be_answered():
    with pytest.raises(PlanError, match="E4M3") as caught:
        plan(from_preset(SUN_2025), Question(params=1e9))
    assert caught.value.exit_code == 50
    with pytest.raises(PlanError, match="nothing to plan"):
        Question()
    with pytest.raises(PlanError, match="--tokens"):
        Question(params=1e9, max_loss=0.1)
    with pytest.raises(PlanError, match="budget"):
        Question(params=1e9, served_tokens=1e12)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"params": 1.0}, UnitsError),
        ({"params": 7.0}, UnitsError),
        ({"params": -1e9}, OptionError),
        ({"params": math.nan}, OptionError),
        ({"params": math.inf}, OptionError),
        ({"params": 1e9, "tokens": 20.0}, UnitsError),
        ({"budget": 21.0}, UnitsError),
        ({"memory": 80.0}, UnitsError),
        ({"params": 1e9, "serve_bits": (0.0,)}, BitsError),
        ({"params": 1e9, "serve_bits": (4.0, 64.0)}, BitsError),
        ({"params": 1e9, "serve_bits": (math.nan,)}, BitsError),
        ({"params": 1e9, "tokens": 2e10, "max_loss": 0.0}, PlanError),
        ({"params": 1e9, "tokens": 2e10, "max_loss": math.nan}, PlanError),
        ({"params": 1e9, "tokens": 2e10, "served_tokens": 1e12, "per_served": -1.0}, PlanError),
    ],
)
def test_questions_that_make_no_sense(wrong, error):
    with pytest.raises(error):
        Question(**wrong)


def test_a_budget_that_does_not_pay_for_serving():
    found = plan(from_preset(KUMAR_2024), Question(params=1e9, budget=1e18, served_tokens=1e15, serve_bits=(4,)))
    given = [answer for answer in found.of("optimum") if answer.setting == "params"]
    assert given
    for answer in given:
        assert not answer.values
        assert answer.why_not[0].kind == Reason.SERVING_EXCEEDS_BUDGET


def test_without_n_a_budget_that_does_not_pay_leaves_no_n():
    with_loss_alone = plan(from_preset(EPOCH_2024), Question(budget=1e21, serve_bits=(4,)))
    [turn] = with_loss_alone.of("critical_tokens")
    assert turn.at["N"] > 1e8
    assert "C_T" in turn.missing
    degradation_alone = from_preset(OUYANG_2024)
    found = plan(degradation_alone, Question(budget=1e21, serve_bits=(4,)))
    assert not found.answered
    assert {"E", "A"} <= {name for answer in found.answers for name in answer.missing}
    assert "constants that have A, B, E" in refusal(found).remedy


def test_too_few_bits_for_the_law_leave_no_model():
    found = plan(from_preset(KUMAR_2024), Question(params=1e9, tokens=2e10, serve_bits=(3,)))
    [low] = [a for a in found.of("optimum") if a.setting == "params" and a.at.get("train_bits") == 3]
    assert low.values == {}
    assert low.why_not[0].kind == Reason.NO_EFFECTIVE_PARAMS


def test_one_part_without_offset_has_no_best_precision():
    constants = {name: KUMAR_2024.constants[name] for name in ("A", "alpha", "B", "beta", "E", "gamma_w")}
    source = from_preset(type(KUMAR_2024)("X", "", "", constants, ()))
    [lower] = plan(source, Question(params=1e9, tokens=2e10, serve_bits=(4,))).of("lower")
    assert lower.why_not[0].kind == Reason.LOWER_ALWAYS_BETTER


def test_n_follows_from_the_budget_or_from_the_memory():
    by_budget = plan(from_preset(KUMAR_2024), Question(budget=1e21, serve_bits=(4,)))
    [turn] = by_budget.of("critical_tokens")
    [best] = [a for a in by_budget.of("optimum") if a.at.get("serve_bits") == 4 and a.at.get("train_bits") == 16]
    assert turn.at["N"] == pytest.approx(best.values["N"].value, rel=1e-6)
    by_memory = plan(from_preset(KUMAR_2024), Question(memory=1e9, serve_bits=(2, 4)))
    assert [answer.at["N"] for answer in by_memory.of("critical_tokens")] == [4e9, 2e9]


def test_equation_2_is_what_the_synthetic_tables_are_made_of():
    planner = Planner(from_preset(KUMAR_2024), Question(params=1e8))
    assert planner.formulas.damage(1e8, 1e10, 4.0)[0] == pytest.approx(eq2(KUMAR, 1e8, 1e10, 4.0), rel=1e-12)


def test_a_given_model_that_does_not_fit_is_said_not_to():
    found = plan(from_preset(KUMAR_2024), Question(params=1e9, tokens=2e10, serve_bits=(2, 4), memory=3e8))
    given = {
        a.at.get("serve_bits"): a.why_not for a in found.of("optimum") if a.at.get("train_bits") == 16 and "N" in a.at
    }
    too_large = (Finding(Reason.EXCEEDS_MEMORY),)
    assert given[None] == too_large  # served as trained: 2 GB
    assert given[4] == too_large  # 500 MB
    assert given[2] != too_large  # 250 MB


def test_the_smallest_precision_is_one_that_can_be_served():
    def smallest(most):
        question = Question(params=220e6, tokens=26e9, serve_bits=(4,), max_loss=most)
        [answer] = plan(from_preset(KUMAR_2024), question).of("smallest_bits")
        return answer

    assert smallest(0.01).values["whole_bits"].value == 5
    assert smallest(100.0).values["whole_bits"].value == 1
    assert smallest(1e-30).values == {}
    assert smallest(1e-30).why_not == (Finding(Reason.NO_PRECISION_SUFFICES, {"bits": 16.0}),)


def test_bits_given_twice_are_answered_once():
    found = plan(from_preset(KUMAR_2024), Question(params=1e9, serve_bits=(4, 4.0, 3)))
    assert [answer.at["bits"] for answer in found.of("critical_tokens")] == [4, 3]


def test_memory_and_serving_are_paid_for():
    losses = []
    for served in (0.0, 1e13):
        question = Question(budget=1e22, serve_bits=(4,), memory=1e9, served_tokens=served)
        best = [a for a in plan(from_preset(KUMAR_2024), question).of("optimum") if "memory" in a.at and a.values]
        assert best
        for answer in best:
            N, held = answer.values["N"].value, answer.at.get("serve_bits", answer.values["P"].value)
            assert N * held / 8 <= 1e9 * (1 + 1e-9)
            spent = 6 / 16 * N * answer.values["D"].value * answer.values["P"].value + 2 / 16 * N * held * served
            assert spent == pytest.approx(1e22 * answer.values["spent"].value, rel=1e-9)
            assert spent == pytest.approx(1e22, rel=1e-9) or answer.stops_at_critical
        losses.append([answer.values["loss"].value for answer in best])
    assert all(paid >= unpaid for unpaid, paid in zip(*losses))
    assert any(paid > unpaid for unpaid, paid in zip(*losses))
