"""Recovery: what the scripts of results/precision say of a study made here, whose effects are known."""

import importlib.util
import math
import statistics
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SCRIPTS = Path(__file__).parents[2] / "results" / "precision"
SLOPE, HARDER = 0.14, 0.75
SHARES = {
    ("full", "full", "full"): 1.0, ("3", "full", "full"): 0.6, ("4", "full", "full"): 0.8, ("6", "full", "full"): 0.9,
    ("full", "4", "full"): 0.3, ("full", "6", "full"): 0.7, ("full", "full", "4"): 0.95, ("4", "4", "4"): 0.2,
}  # fmt: skip
OF_DELTA = {2.0: 0.3, 3.0: 0.1, 4.0: 0.02}


def row(precision, seed, N, ratio, part, quantizer, bits):
    """Losses fall with log N_eff and log D; δ is linear in the loss, and less after training in low precision."""
    share = SHARES[precision]
    loss = 6 + 0.03 * seed - SLOPE * math.log(N * share) - 0.1 * math.log(N * ratio)
    delta = 0.0 if quantizer == "none" else OF_DELTA[bits] * (6 - loss) * (1.0 if share == 1 else HARDER)
    named = dict(zip(("weights", "activations", "kv"), precision))
    return {
        **named, "seed": seed, "params": N, "tokens": N * ratio, "ratio": float(ratio), "part": part, "bits": bits,
        "precision": "/".join(precision), "eval_loss": loss, "loss_fp": loss, "loss_q": loss + delta, "delta": delta,
        "quantizer": quantizer, "grouping": "rows", "low_precision_share": 1.0, "peak_learning_rate": 3e-3,
        "weight_decay": 0.1, "optimizer": "adamw", "schedule": "wsd",
    }  # fmt: skip


def module_of(name):
    spec = importlib.util.spec_from_file_location(f"{name}_of_the_study", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return module_of("training")


@pytest.fixture(scope="module")
def table(script):
    rows = []
    for seed, part, ratio in product((0, 1, 2), ("trunk", "annealed"), (5, 10, 20, 40, 80)):
        for precision in SHARES:
            for N in (script.SMALL, script.LARGE) if SHARES[precision] == 1 else (script.SMALL,):
                rows.append(row(precision, seed, N, ratio, part, "none", math.nan))
                rows += [row(precision, seed, N, ratio, part, "rtn", bits) for bits in OF_DELTA]
    return pd.DataFrame(rows)


def test_effective_parameters_are_recovered(script, table):
    found = pd.DataFrame(script.precisions(table))
    shares = found[found["question"] == "loss of training precision"]
    assert len(shares) == 2 * (len(SHARES) - 1)
    for _, one in shares.iterrows():
        assert one["share"] == pytest.approx(SHARES[tuple(one["case"].split("/"))], rel=1e-3)
    [gap] = found[(found["question"] == "do the factors multiply") & (found["ending"] == "trunk")]["effect"]
    assert gap == pytest.approx(-SLOPE * math.log(0.2 / (0.8 * 0.3 * 0.95)), rel=1e-3)
    per_bit = found[(found["question"] == "N_eff per bit of training") & (found["ending"] == "annealed")]
    expected = {"4": 0.2 / 4, "6": 0.9 * 0.7 * 0.95 / 6, "16": 1 / 16}
    for _, one in per_bit.iterrows():
        low, _, high, _ = one["case"].split()
        assert one["effect"] == pytest.approx(math.log(expected[low] / expected[high]), abs=2e-3)


def test_less_damage_than_an_equal_loss_explains_is_recovered(script, table):
    found = pd.DataFrame(script.robustness(table))
    at_loss = found[found["question"].str.endswith("equal loss")]
    assert set(at_loss["case"]) == {"/".join(precision) for precision in SHARES} - {"full/full/full"}
    assert at_loss["effect"].to_numpy() == pytest.approx(HARDER - 1, rel=1e-3)
    at_tokens = found[found["question"].str.endswith("equal D")]
    assert (at_tokens["effect"] < HARDER - 1).all()  # it has learned less as well


def test_floats_are_compared_with_integers_of_the_same_bits(script, table):
    trained = table[(table["quantizer"] == "none") & (table["ratio"] == 80) & (table["params"] == script.SMALL)]
    base = trained[trained["precision"] == "full/full/full"]
    costs = {"8": 0.01, "fp8_e4m3": 0.04, "6": 0.02}
    added = [
        base.assign(precision=f"{name}/full/full", eval_loss=base["eval_loss"] + cost) for name, cost in costs.items()
    ]
    found = pd.DataFrame(script.floats(pd.concat([base, *added])))
    assert set(found["case"]) == {"weights fp8_e4m3 against integers of 8 bits"}  # a float without its integers is none
    assert found["effect"].to_numpy() == pytest.approx(0.03)
    assert list(found["ending"]) == ["trunk", "annealed"]


def test_longer_training_is_a_doubling_of_d_of_every_size(script, table):
    found = pd.DataFrame(script.longer(table))
    cases = ["D/N 5 to 10", "D/N 10 to 20", "D/N 20 to 40", "D/N 40 to 80"]
    key = ["case", "params", "ending", "bits"]
    expected = product(cases, (script.SMALL, script.LARGE), ("trunk", "annealed"), OF_DELTA)
    assert sorted(zip(*(found[name] for name in key))) == sorted(expected)
    for _, one in found.iterrows():
        change = -0.1 * math.log(2)
        assert one["effect"] == pytest.approx(change * (1 - OF_DELTA[one["bits"]]), rel=1e-3)


def test_an_effect_is_decided_as_by_students_t(script):
    close, far = (script.effect("", "", [value - 0.1, value, value + 0.1], "") for value in (0.24, 0.26))
    assert (close["decided"], far["decided"]) == (False, True)  # 4.30 errors of 0.0577 are 0.248
    assert close["detectable"] == pytest.approx((4.303 + 1.061) * 0.0577, rel=1e-3)
    assert script.effect("", "", [0.1], "")["decided"] is False


def test_a_repeated_study_is_compared_with_the_scatter_of_seeds():
    rng = np.random.default_rng(0)
    cells, seeds = range(400), range(3)
    about = {"text": "t", "params": 1, "schedule": "wsd", "part": "trunk", "grouping": "rows", "quantizer": "rtn"}
    here = pd.DataFrame([
        {**about, "run": f"run {seed}", "step": step, "bits": 3, "delta": 1 + 0.1 * rng.standard_normal()}
        for step in cells
        for seed in seeds
    ])  # fmt: skip
    there = here.assign(delta=here["delta"] + 0.02 * rng.standard_normal(len(here)))
    [found] = module_of("precision").repeated(here, there.sample(frac=1, random_state=0)).to_dict("records")
    assert (found["runs"], found["measurements"]) == (3, 1200)
    assert found["between_repeats"] == pytest.approx(0.02, rel=0.1)
    assert found["between_seeds"] == pytest.approx(0.1 * math.sqrt(2), rel=0.1)
    agree = [
        abs((again["delta"] - own["delta"]).mean()) <= 4.302653 * math.sqrt(2 * statistics.variance(own["delta"]) / 3)
        for (_, own), (_, again) in zip(here.groupby("step"), there.groupby("step"))
    ]
    assert found["means_agree"] == pytest.approx(statistics.fmean(agree))
    assert 0.9 < found["means_agree"] <= 1
    elsewhere = there.assign(delta=there["delta"] + 1)
    assert module_of("precision").repeated(here, elsewhere)["means_agree"].iloc[0] < 0.1


def test_the_lowest_loss_of_each_size_is_marked():
    losses = {13_408: {5: 4.0, 10: 3.0, 20: 3.5}, 40_160: {5: 2.0, 10: 2.5, 20: 3.0}}
    table = pd.DataFrame([
        {"unusual": "", "text": text, "bits": 2, "ending": "annealed", "params": N, "tokens_per_param": ratio,
         "seed": seed, "loss_q": loss + (seed - 1) / 10 + (5 if text == "stdlib:train" else 0)}
        for N, own in losses.items()
        for ratio, loss in own.items()
        for seed in range(3)
        for text in ("books.txt", "stdlib:train")
    ])  # fmt: skip
    found = module_of("findings").by_size(table)
    lowest = found[found["lowest"]].set_index("params")
    assert lowest["tokens_per_param"].to_dict() == {13_408: 10, 40_160: 5}
    assert lowest["loss"].to_dict() == pytest.approx({13_408: 3.0, 40_160: 2.0})
    assert found["error"].to_numpy() == pytest.approx(0.1 / math.sqrt(3))
