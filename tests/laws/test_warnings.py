"""Contract: what a fit must not claim, and what it must say beside a claim."""

import numpy as np
import pytest

from ptq_eval.laws import Caution, Estimate, TurningPoint, Why, analyse, critical_tokens, fit, turning_point
from ptq_eval.laws.formulas.kumar import KumarPTQ, KumarPTQRatio
from ptq_eval.laws.turning.verdict import Share, verdict
from ptq_eval.report import with_texts
from tests.laws.synthetic import RATIO, RATIOS, SMALL_LOSS, points, ratio, table

ONE = {"sizes": (80e3,), "bits": (2, 3, 4)}


def windows_of(loss, rng):
    return loss[:, None] + rng.normal(0, 0.5, 64) + 0.01 * rng.normal(size=(len(loss), 64))


def lifted(rows, windows, lift):
    """The same table with `lift(tokens per parameter)` nats added to the loss before and after quantization."""
    by_key = {}
    for row in rows:
        more = lift(row["tokens_per_param"])
        by_key[row["key"]] = tuple(part + more for part in windows[row["key"]])
        row |= {name: row[name] + more for name in ("loss_fp", "loss_q") if name in row}
    return rows, by_key


@pytest.mark.parametrize("n", [3, 4])
def test_too_few_checkpoints_are_not_tested_for_a_turn(n):
    x = np.linspace(-1, 1, n)
    loss = 3 + 0.2 * ((x - x[1]) / (1 - x[1])) ** 2
    found = turning_point(np.exp(x), loss, windows_of(loss, np.random.default_rng(0)), n_boot=0)
    assert not found.interior
    assert np.isnan(found.p_value)
    assert found.untested == "few_checkpoints"


def test_a_run_of_four_checkpoints_is_warned_of_and_its_answer_says_so():
    rows, windows = table(np.random.default_rng(0), **ONE, ratios=RATIOS[::3])
    out = analyse(rows, windows, n_boot=20)
    assert {"kind": "scatter_unsure", "trajectory": "size0", "points": 4, "needed": 5} in out["cautions"]
    assert [entry["untested"] for entry in out["critical_tokens"]] == ["few_checkpoints"] * 3
    said = with_texts(out)["critical_tokens"][0]["verdict"]
    assert not out["critical_tokens"][0]["interior"]
    assert said.startswith(("not harmful before", "forecast", "not identif"))


@pytest.mark.parametrize(
    ("full_rise", "full_rises", "share"),
    [
        (float("nan"), False, None),
        (0.05, False, None),
        (0.108, False, Share.PART),
        (0.2, False, Share.MAIN),
        (-0.1, True, Share.MAIN),
    ],
)
def test_the_share_of_the_full_precision_loss_in_a_rise_is_named(full_rise, full_rises, share):
    observed = TurningPoint(1e7, Estimate(1e7, 5e6, 2e7), True, 0.3, 0.01, 0.005, 9)
    found = verdict(None, None, 1e8, observed, full_rises=full_rises, full_rise=full_rise)
    assert (found.kind, found.share) == ("observed", share)


def test_the_full_precision_rise_is_taken_between_the_same_two_checkpoints():
    rows, windows = lifted(*table(np.random.default_rng(0), **ONE), lambda r: 0.5 * max(0.0, np.log(r / 100)))
    two = analyse(rows, windows, n_boot=20)["critical_tokens"][0]
    full = {row["tokens"]: row["loss_fp"] for row in rows}
    assert two["full_precision_rise"] == pytest.approx(full[max(full)] - full[two["observed_tokens"]])
    assert two["full_precision_rise"] > 0.3
    assert two["full_precision_share"] == "main"


def test_a_full_precision_rise_within_the_scatter_of_checkpoints_is_warned_of():
    rows, windows = table(np.random.default_rng(0), **ONE, training=0.0)
    jumps = dict(zip(RATIOS, 0.2 * np.random.default_rng(5).normal(size=len(RATIOS))))
    jumps[RATIOS[-1]], jumps[RATIOS[-2]] = 0.0, -0.25
    found = analyse(*lifted(rows, windows, jumps.get), n_boot=20)["cautions"]
    [rise] = [one for one in found if one["kind"] == Caution.FULL_PRECISION_RISES]
    assert (rise["run"], rise["scatter"]) == ("size0", "within")


def test_annealed_branches_are_named_and_share_the_training_of_their_trunk():
    rows, windows = table(np.random.default_rng(0), **ONE)
    parts = []
    for part, phase in (("trunk", "constant"), ("annealed", "annealed")):
        parts.append([{**row, "run": f"small/{part}", "schedule_phase": phase} for row in rows])
    both = analyse([*parts[0], *parts[1]], windows, n_boot=10)
    alone = analyse(parts[1], windows, n_boot=10)["cautions"]
    mixed = {"kind": "mixed_phases"}
    assert {"kind": "schedule", "schedule": "annealed", "runs": ["small/annealed"]} in both["cautions"]
    assert mixed in both["cautions"]
    assert mixed not in alone
    assert {"kind": "few_runs", "runs": 1, "needed": 10} in both["cautions"]
    assert both["fits"][-1]["n_runs"] == 1


@pytest.mark.parametrize("sizes", [(80e3,), (40e3, 160e3)])
def test_one_bit_width_gives_critical_tokens_without_gamma_post(sizes):
    rows, windows = table(np.random.default_rng(0), sizes=sizes, bits=(3,))
    out = analyse(rows, windows, n_boot=50)
    delta = out["fits"][-1]
    assert delta["status_kind"] == "ok"
    assert delta["parameters"]["gamma_post"] == {"value": 1.0, "low": None, "high": None}
    assert delta["fixed"] == {"gamma_post": 1.0}
    assert "one bit-width: gamma_post is set to 1 and not fitted" in with_texts(out)["fits"][-1]["message"]
    for found in out["critical_tokens"]:
        true = critical_tokens(found["params"], 3, constants=[RATIO, SMALL_LOSS])
        assert found["predicted"]["low"] < true < found["predicted"]["high"]


def test_a_given_gamma_post_is_absorbed_by_the_factor():
    data = points(ratio, RATIO, [80e3], RATIOS, (3,), np.random.default_rng(0), scatter=0.05)
    one, other = (fit(KumarPTQRatio(gamma_post=g), data, n_boot=0).values for g in (0.5, 2.0))
    assert one["gamma"] == pytest.approx(other["gamma"], rel=1e-5)
    assert one["C"] * np.exp(-3 / 0.5) == pytest.approx(other["C"] * np.exp(-3 / 2.0), rel=1e-4)
    assert KumarPTQ().needs["P"] == 2


def noisy_eight(theta, N, D, P):
    """Follows the law but for 8 bits, where delta jumps about zero by more than its evaluation error."""
    return 2e-4 * np.sin(40 * np.log(D)) if P == 8 else ratio(theta, N, D, P)


def test_bits_whose_delta_is_noise_get_no_prediction():
    rows, windows = table(np.random.default_rng(0), sizes=(80e3,), bits=(2, 3, 4, 8), delta=noisy_eight, noise=0.1)
    critical = {c["bits"]: c for c in analyse(rows, windows, n_boot=50)["critical_tokens"]}
    assert critical[8.0]["predicted"] is None
    assert critical[8.0]["reason"] == {"kind": "delta_not_significant", "bits": 8.0}
    assert critical[4.0]["predicted"] is not None


def test_bits_that_do_not_determine_the_constants_are_the_reason():
    rows, windows = table(np.random.default_rng(0), sizes=(80e3,), bits=(4, 8), delta=flat_at_eight)
    for found in analyse(rows, windows, n_boot=10)["critical_tokens"]:
        assert found["reason"]["kind"] == Why.DELTA_NOT_FITTED
        assert found["reason"]["fit"]["kind"] == Why.NOT_SEPARABLE
        assert (found["reason"]["fit"]["variable"], found["reason"]["fit"]["one_value"]) == ("P", True)


def flat_at_eight(theta, N, D, P):
    return -1e-5 if P == 8 else ratio(theta, N, D, P)


def test_a_constant_at_its_bound_has_no_interval():
    data = points(ratio, {**RATIO, "gamma": 4.0}, [80e3], RATIOS, (2, 3, 4), np.random.default_rng(0))
    result = fit(KumarPTQRatio(), data)
    assert (result.status.kind, result.status.at_bound) == ("at_bound", ("gamma",))
    assert result.estimates["gamma"].to_dict() == {"value": 3.0, "low": None, "high": None}
    assert result.to_dict()["parameters"]["C"]["low"] is not None
