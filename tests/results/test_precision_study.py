"""Recovery: what the scripts of results/precision say of a study made here, whose effects are known."""

import importlib.util
import math
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "results" / "precision" / "training.py"
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


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("training_of_the_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_longer_training_is_the_last_doubling(script, table):
    found = pd.DataFrame(script.longer(table))
    assert set(found["case"]) == {"D/N 40 to 80"}
    for _, one in found.iterrows():
        change = -0.1 * math.log(2)
        assert one["effect"] == pytest.approx(change * (1 - OF_DELTA[one["bits"]]), rel=1e-3)


def test_an_effect_is_decided_as_by_students_t(script):
    close, far = (script.effect("", "", [value - 0.1, value, value + 0.1], "") for value in (0.24, 0.26))
    assert (close["decided"], far["decided"]) == (False, True)  # 4.30 errors of 0.0577 are 0.248
    assert close["detectable"] == pytest.approx((4.303 + 1.061) * 0.0577, rel=1e-3)
    assert script.effect("", "", [0.1], "")["decided"] is False
