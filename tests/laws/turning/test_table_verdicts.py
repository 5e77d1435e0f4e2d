"""Contract: what is said of a table's critical tokens, of groups that cannot be fitted, of comparisons of nothing."""

import numpy as np
import pandas as pd
import pytest

import ptq_eval
from ptq_eval import errors
from ptq_eval.laws import Why
from ptq_eval.laws.calculator import critical_tokens
from ptq_eval.laws.compare.hypotheses import NEGLIGIBLE
from ptq_eval.laws.fit.folder import analyse
from ptq_eval.laws.fit.restrict import restrict
from ptq_eval.laws.formulas.kumar import KumarPTQ
from ptq_eval.laws.formulas.presets import SUN_2025
from ptq_eval.laws.formulas.sun import Sun
from ptq_eval.laws.turning.predicted import short_range_reason
from ptq_eval.report.common.words import reason_text
from ptq_eval.report.comparison import words
from tests.laws.synthetic import KUMAR, KUMAR_LOSS, chinchilla, eq2, table


def both(tokens, rng, *, noise=1e-3):
    """Equation 2 on a Chinchilla law at four sizes and four widths."""
    N, D, P = (g.ravel() for g in np.meshgrid([3e7, 6e7, 1.1e8, 2.2e8], tokens, [3.0, 4.0, 5.0, 6.0], indexing="ij"))
    loss = chinchilla(KUMAR_LOSS, N, D) + noise * np.repeat(rng.normal(size=len(N) // 4), 4)
    delta = eq2(KUMAR, N, D, P) * (1 + 0.03 * rng.normal(size=len(N)))
    return pd.DataFrame({"N": N, "D": D, "P": P, "loss": loss, "delta": delta})


def test_a_range_of_tokens_reaches_twice_as_far_again():
    tokens = [1e9, 2e9, 4e9]
    assert short_range_reason(4e9 * 15.9, tokens) is None
    assert short_range_reason(1e9, tokens) is None
    far = short_range_reason(4e9 * 16.1, tokens)
    assert far.facts == pytest.approx({"low": 1e9, "high": 4e9, "factor": 16.1})
    assert "the range of D (1B to 4B tokens, 4×) is too short to predict D_crit at 16.1×" in reason_text(far.to_dict())
    assert short_range_reason(2e9, [1e9]).kind is Why.SHORT_RANGE


def test_a_short_range_of_tokens_gives_words_and_a_long_one_numbers():
    """Of noise so small that the intervals are narrow: it is the range that is too short."""
    rng = np.random.default_rng(0)
    short = ptq_eval.fit_data(both(np.geomspace(1.02e9, 1.18e9, 5), rng, noise=1e-6), "chinchilla,ptq", bootstrap=40)
    turns = short.fit["critical_tokens"]
    assert [turn["predicted"] for turn in turns] == [None] * 16
    assert {turn["reason"]["kind"] for turn in turns} <= {Why.WIDE_INTERVAL, Why.SHORT_RANGE}
    assert any("the range of D" in turn["verdict"] for turn in turns)
    long = ptq_eval.fit_data(both([1.5e9, 3e9, 6e9, 13e9, 26e9], rng), "chinchilla,ptq", bootstrap=40)
    assert sum(turn["predicted"] is not None for turn in long.fit["critical_tokens"]) == 16


def test_a_folder_of_records_is_judged_by_the_range_of_tokens_too():
    """Each run has a curve of its own, so that the range of its own tokens counts."""
    quiet = {"ratios": np.geomspace(100, 150, 8), "training": 1e-7, "noise": 1e-4}
    rows, windows = table(np.random.default_rng(0), **quiet)
    found = analyse(rows, windows, n_boot=40)["critical_tokens"]
    far = [entry for entry in found if entry["reason"] and entry["reason"]["kind"] == Why.SHORT_RANGE]
    assert {entry["bits"] for entry in far} == {4, 8}
    assert all(entry["predicted"] is None for entry in far)
    assert any(entry["predicted"] for entry in found)
    assert all(entry["extrapolation_factor"] <= 1.51**2 for entry in found if entry["predicted"])


def test_a_format_is_written_and_nothing_is_said_to_be_quantized_after_training():
    axes = ([4e7, 1e8, 7e8], [1e10, 3e10, 1e11], [2.0, 4.0], [1.0, 3.0])
    N, D, E, M = (g.ravel() for g in np.meshgrid(*axes, indexing="ij"))
    data = {"N": N, "D": D, "E_bits": E, "M_bits": M, "B_g": np.full(36, 128.0)}
    loss = Sun().predict(SUN_2025.constants, data) * (1 + 1e-5 * np.random.default_rng(0).normal(size=36))
    found = ptq_eval.fit_data({**data, "loss": loss}, "sun", bootstrap=20).fit
    turns = found["critical_tokens"]
    assert len(turns) == 12
    assert turns[0]["at"] == {"E_bits": 2.0, "M_bits": 1.0, "B_g": 128.0}
    assert not any("after quantization" in turn["verdict"] for turn in turns)
    from ptq_eval.report.table_fit.page import served_as

    assert served_as(turns[0]) == "E2M1, B_g 128"
    assert served_as({"bits": 4.0, "at": {"P_w": 8.0}}) == "4, P_w 8"
    assert served_as({"bits": 4.0}) == "4"


def test_formats_go_by_their_usual_names():
    def turn(name):
        return critical_tokens(1e9, name, group_size=128, constants=SUN_2025)

    assert turn("BF16") == turn("E8M7") == turn("bf16")
    assert turn("FP16") == turn("E5M10")
    assert turn("E3M0") < turn("E3M1")
    with pytest.raises(errors.OptionError, match="BF16"):
        turn("FP8")  # E4M3 or E5M2


def test_a_group_that_cannot_be_fitted_is_named_and_the_others_are_fitted():
    frame = both([1.5e9, 3e9, 6e9], np.random.default_rng(0)).assign(color="blue")
    frame.loc[0, "color"] = "red"
    found = ptq_eval.fit_data(frame, "ptq", by="color", bootstrap=10)
    assert [part.group for part in found.parts] == [{"color": "blue"}]
    assert any(text.startswith("color red: kumar_ptq: too few points") for text in found.fit["warnings"])
    with pytest.raises(errors.TooFewPointsError, match=r"^color red: kumar_ptq: too few points"):
        ptq_eval.fit_data(frame[frame.color == "red"], "ptq", by="color")
    with pytest.raises(errors.TooFewPointsError):
        ptq_eval.fit_data(frame.iloc[:1], "chinchilla,ptq")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda frame: frame.iloc[:1], errors.TooFewPointsError),
        (lambda frame: frame.assign(delta=-frame.delta), errors.NegativeDeltaError),
        (lambda frame: frame.assign(D=20 * frame.N), errors.NotVaryingError),
    ],
)
def test_a_comparison_that_can_fit_nothing_is_refused_as_a_fit_is(change, error):
    frame = change(both([1.5e9, 3e9, 6e9], np.random.default_rng(0)))
    with pytest.raises(error) as alone:
        ptq_eval.fit_data(frame, "kumar")
    with pytest.raises(error) as compared:
        ptq_eval.compare_laws(frame, "kumar,ouyang", bootstrap=10)
    assert str(compared.value) == str(alone.value)


@pytest.mark.parametrize(
    ("tokens", "phase", "said"),
    [
        ((True, 3.0), (True, 0.006), "degradation follows tokens: the learning rate's phase changes delta by 0.6 %"),
        ((True, 0.01), (True, 2.0), "degradation follows the learning rate's phase: tokens change delta by 1 %"),
        ((True, 3.0), (True, 2.0), "degradation follows both tokens and the learning rate's phase"),
        ((True, 0.01), (True, 0.02), "what degradation follows here is negligible: tokens change delta by 1 %"),
        ((True, 3.0), (False, 0.0), "degradation follows tokens: the learning rate's phase adds nothing"),
        ((False, 0.0), (True, 2.0), "degradation follows the learning rate's phase: tokens add nothing"),
        ((False, 0.0), (False, 0.0), "undecided whether degradation follows tokens or the learning rate's phase"),
    ],
)
def test_an_effect_that_changes_little_is_called_negligible(tokens, phase, said):
    numbers = {"aicc": 3.0, "value": 0.1, "low": 0.05, "high": 0.2, "constant": "gamma"}
    adding = {name: {**numbers, "adds": adds, "change": change, "matters": adds and change >= NEGLIGIBLE}
              for name, (adds, change) in
              {"tokens": tokens, "phase": phase}.items()}  # fmt: skip
    assert words.phase({"tested": True, "adding": adding, "correlation": 0.3}).startswith(said)


def test_a_constant_is_fixed_within_the_bounds_of_its_law():
    with pytest.raises(errors.OptionError, match=r"gamma_post .* got -1.0 \| allowed: 0.05 to 20"):
        restrict(KumarPTQ(), {"gamma_post": -1.0})
