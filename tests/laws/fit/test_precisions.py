"""Recovery and contract: laws of three precisions, from rows of a run that crossed weights, activations and cache."""

import itertools
import json

import numpy as np
import pytest

from ptq_eval.errors import PlanError
from ptq_eval.laws import fit
from ptq_eval.laws.fit.precisions import SUM, crossed, fit_table
from ptq_eval.laws.formulas.chinchilla import ChinchillaD
from ptq_eval.laws.formulas.served import ProductPTQ
from ptq_eval.laws.plan.answers import Question, plan
from ptq_eval.laws.plan.stored import from_stored
from ptq_eval.records import WEIGHTS_KEPT
from ptq_eval.results.points import Losses
from ptq_eval.runtime import COLUMNS

N, WINDOWS = 1e6, 24
WEIGHTS, ACTIVATIONS, CACHE = (None, 2, 3, 4), (None, 4, 8), (None, 3)
TRUTH = {"C_post_w": 1.2, "growth_w": 0.5, "gamma_post_w": 0.8, "C_post_a": 3.0, "growth_a": 0.3, "gamma_post_a": 1.1,
         "C_post_kv": 0.05, "growth_kv": 0.2, "gamma_post_kv": 1.0, "kappa": 1.5}  # fmt: skip
LOSS = {"E": 2.0, "B": 3000.0, "beta": 0.5}


def table(seed=0, quantizers=("rtn",), ratios=(4, 8, 16, 32, 64, 128, 256)):
    """Rows and losses of a run; its scatter is 2 % of δ, its windows differ by 1 % of it."""
    rng, rows, windows, law = np.random.default_rng(seed), [], {}, ProductPTQ()
    for step, ratio in enumerate(ratios):
        D = ratio * N
        before = LOSS["E"] + LOSS["B"] * D ** -LOSS["beta"] + 0.1 * rng.normal(size=WINDOWS)
        full = float(before.mean())
        about = {"run": "one", "step": step, "tokens": D, "params": N, "status": "ok", "windows": WINDOWS,
                 "loss_fp": full, "calib_first": None, "protocol": "text", "delta_df": WINDOWS - 1}  # fmt: skip
        rows.append({**about, **dict.fromkeys(COLUMNS), "quantizer": "none", "key": f"{step}"})
        windows[f"{step}"] = Losses(before, before)
        for quantizer, w, a, kv in itertools.product(quantizers, WEIGHTS, ACTIVATIONS, CACHE):
            if (w, a, kv) == (None, None, None) or (w is None and quantizer != quantizers[0]):
                continue
            at = {"N": N, "D": D, "P_w": w or 16, "P_a": a or 16, "P_kv": kv or 16}
            true = float(law.predict(TRUTH, at)) * (1 + 0.02 * rng.normal())
            after = before + true * (1 + 0.01 * rng.normal(size=WINDOWS))
            row = {**about, **dict.fromkeys(COLUMNS), "key": f"{step} {quantizer} {w} {a} {kv}", "bits": w}
            row |= {"quantizer": quantizer if w else WEIGHTS_KEPT, "delta": float((after - before).mean())}
            row |= {"loss_q": float(after.mean()), "delta_se": 0.01 * true / np.sqrt(WINDOWS)}
            row |= {"activation_format": f"int{a}", "activation_bits": a, "activation_per": "token"} if a else {}
            row |= {"kv_format": f"int{kv}", "kv_bits": kv, "key_per": "channel"} if kv else {}
            rows.append(row)
            windows[row["key"]] = Losses(after, before)
    return rows, windows


def loss_curve(rows):
    full = [row for row in rows if row["quantizer"] == "none"]
    data = {"N": np.full(len(full), N), "D": np.array([row["tokens"] for row in full])}
    labels = {
        "run": np.array(["one"] * len(full)),
        "checkpoint": np.array([f"one@{r['step']}@{r['tokens']:.0f}" for r in full]),
    }
    exact = LOSS["E"] + LOSS["B"] * data["D"] ** -LOSS["beta"]
    return fit(ChinchillaD(), {**data, **labels, "loss": exact}, n_boot=40)


@pytest.fixture(scope="module")
def found():
    rows, windows = table()
    (one,) = fit_table(rows, windows, {"one": loss_curve(rows)}, n_boot=40)
    return one


def test_the_form_that_the_run_follows_is_ranked_first_and_its_constants_are_found(found):
    first, *others = found.entry["forms"]
    assert first["form"] == "product_ptq"
    assert {form["form"] for form in others} == {"n_eff_ptq", SUM}
    assert [form["outcome"] for form in others] == ["worse", "worse"]
    for name, truth in TRUTH.items():
        if name not in first["fixed"] and name != "C_post_kv":
            assert first["parameters"][name]["value"] == pytest.approx(truth, rel=0.15), name
    assert first["fixed"] == {"gamma_post_kv": 1.0}  # one precision of the cache
    assert found.entry["ranges"]["P_a"] == [4, 8]
    json.dumps(found.entry)


def test_every_combination_has_its_critical_tokens(found):
    turns = {(t["bits"], t["activation_bits"], t["kv_bits"]): t for t in found.entry["critical_tokens"]}
    assert len(turns) == len(WEIGHTS) * len(ACTIVATIONS) * len(CACHE) - 1
    at = {"N": N, "P_w": 3.0, "P_a": 4.0, "P_kv": 3.0}
    expected = float(ProductPTQ().critical_tokens(TRUTH, LOSS, at))
    assert turns[3, 4, 3]["predicted"]["value"] == pytest.approx(expected, rel=0.15)
    assert turns[3, 4, 3]["predicted"]["low"] < turns[3, 4, 3]["predicted"]["high"]
    assert all((turn["predicted"] is None) != (turn["reason"] is None) for turn in turns.values())


def test_groups_are_of_one_method_and_one_way_to_round_the_rest():
    rows, _ = table(quantizers=("rtn", "gptq"), ratios=(4, 8))
    groups = crossed(rows)
    assert [group.config.quantizer for group in groups] == ["rtn", "gptq"]
    assert {len(group.points) for group in groups} == {2 * (len(WEIGHTS) * len(ACTIVATIONS) * len(CACHE) - 1)}
    other = [{**row, "activation_per": "tensor"} if row["activation_bits"] == 8 else row for row in rows]
    ways = [(group.config.quantizer, group.activations["activation_per"]) for group in crossed(other)]
    assert sorted(ways) == [("gptq", "tensor"), ("gptq", "token"), ("rtn", "tensor"), ("rtn", "token")]
    assert crossed([row for row in rows if row["activation_bits"] is None and row["kv_bits"] is None]) == []
    assert crossed([row for row in rows if row["quantizer"] == WEIGHTS_KEPT]) == []
    assert crossed([]) == []


@pytest.fixture(scope="module")
def stored(found):
    """A `fit.json` with its replicates."""
    curve = loss_curve(table()[0])
    fits = [{"quantizer": "none", "runs": ["one"], "ranges": {"N": [N, N], "D": [4 * N, 256 * N]}, **curve.to_dict()}]
    content = {"fits": fits, "critical_tokens": [], "version": 3, "precisions": [found.entry]}
    return content, {"0": curve.replicates, **{str(1 + i): draws for i, draws in enumerate(found.replicates)}}


def test_a_plan_takes_all_three(stored, found):
    content, replicates = stored
    question = Question(params=N, tokens=64 * N, serve_bits=(3, 4), activation_bits=4, kv_bits=3, max_loss=1.5)
    made = plan(from_stored(content, name="out", replicates=replicates, together=(4, 3)), question)
    assert [answer.label for answer in made.of("critical_tokens")] == ["W3A4KV3", "W4A4KV3"]
    turn = next(
        t for t in found.entry["critical_tokens"] if (t["bits"], t["activation_bits"], t["kv_bits"]) == (3, 4, 3)
    )
    own = made.of("critical_tokens")[0].values["D"]
    assert own.value == pytest.approx(turn["predicted"]["value"])
    assert own.low < own.value < own.high
    at = {"N": N, "D": 64 * N, "P_w": 3.0, "P_a": 4.0, "P_kv": 3.0}
    theta = {name: value["value"] for name, value in found.entry["forms"][0]["parameters"].items()}
    damage = made.of("loss")[0].values["damage"]
    assert damage.value == pytest.approx(float(ProductPTQ().predict(theta, at)))
    [least] = made.of("smallest_bits")
    cost = ProductPTQ().predict(theta, {**at, "P_w": least.values["bits"].value})
    assert float(cost) == pytest.approx(1.5, rel=1e-3)


def test_activations_alone_may_be_given_and_bits_beyond_the_measured_ones_are_marked(stored):
    content, replicates = stored
    source = from_stored(content, name="out", replicates=replicates, together=(2, None))
    made = plan(source, Question(params=N, serve_bits=(3,), activation_bits=2))
    [turn] = made.of("critical_tokens")
    assert turn.label == "W3A2"
    assert turn.beyond["activation_bits"] == 2
    assert "kv_bits" not in turn.beyond


def test_constants_of_weights_alone_refuse_activations(stored):
    from ptq_eval.laws import KUMAR_2024
    from ptq_eval.laws.plan.source import from_preset

    with pytest.raises(PlanError, match="no --activation-bits can be given: the law kumar_ptq has none"):
        plan(from_preset(KUMAR_2024), Question(params=1e9, serve_bits=(4,), activation_bits=8))
    content = {**stored[0], "precisions": []}
    with pytest.raises(PlanError, match="no fit of activations and cache"):
        from_stored(content, name="out", replicates=stored[1], together=(8, None))
