"""Golden: numbers that follow from published constants, to the digits known."""

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from ptq_eval import plugins
from ptq_eval.errors import OptionError
from ptq_eval.laws import (
    CHEN_2025,
    EPOCH_2024,
    EPOCH_2024_HUBER,
    KUMAR_2024,
    KUMAR_2024_FP,
    OUYANG_2024,
    PRESETS,
    SUN_2025,
    critical_tokens,
    effective_params,
    loss,
    optimal_precision,
)
from ptq_eval.laws.formulas.chen import Chen
from ptq_eval.laws.formulas.n_eff import NEff, precision_with
from ptq_eval.laws.formulas.ouyang import Ouyang
from ptq_eval.laws.formulas.sun import Sun


def row(**values):
    return {name: np.array([value], float) for name, value in values.items()}


@pytest.mark.parametrize(
    ("N", "tokens"),
    [(30e6, [16.4e9, 88.6e9, 479e9, 2.59e12]), (220e6, [32.4e9, 175e9, 948e9])],
)
def test_critical_tokens_of_kumar(N, tokens):
    np.testing.assert_allclose(critical_tokens(N, [3, 4, 5, 6][: len(tokens)]), tokens, rtol=2.5e-3)


def test_the_exponent_bias_would_divide_critical_tokens_by_3_08():
    larger = KUMAR_2024.replace(C_T=KUMAR_2024.constants["C_T"] * np.exp(1.1277))
    assert critical_tokens(1e8, 4) / critical_tokens(1e8, 4, constants=larger) == pytest.approx(3.08, abs=0.005)


def test_effective_parameters_of_kumar():
    P = [3, 4, 5, 6, 8, 12, 16]
    shares = effective_params(1e9, P, P, P) / 1e9
    np.testing.assert_allclose(shares, [0, 0.191, 0.427, 0.611, 0.828, 0.967, 0.994], atol=5e-4)
    assert shares[-1] / shares[1] == pytest.approx(5.2, abs=0.05)
    without = effective_params(1e9, [4, 16], [4, 16], [4, 16], constants=KUMAR_2024.without_offsets())
    assert without[1] / without[0] == pytest.approx(1.56, abs=0.005)


def test_optimal_training_precision_of_kumar():
    assert optimal_precision() == pytest.approx(7.00, abs=0.005)
    assert optimal_precision(offsets=False) == pytest.approx(3.5, abs=0.05)
    assert optimal_precision(constants=KUMAR_2024.without_offsets()) == optimal_precision(offsets=False)


def test_tied_parts_without_offsets_are_optimal_at_x_1_90381():
    assert precision_with(1.0, [1.0] * 3, [0.0] * 3) == pytest.approx(1.90381, abs=5e-6)
    theta = {**EPOCH_2024.constants, "gamma_bar": 2.5}
    assert NEff(tied=True, offsets=False).optimal_precision(theta) == pytest.approx(2.5 * 1.90381, rel=5e-6)


@pytest.mark.parametrize(
    ("exponent", "mantissa", "tokens"),
    [(8, 7, 1.73e15), (4, 3, 2.73e13), (2, 1, 3.93e11)],
    ids=["BF16", "FP8-E4M3", "FP4-E2M1"],
)
def test_critical_sizes_of_sun(exponent, mantissa, tokens):
    data = row(N=1e9, E_bits=exponent, M_bits=mantissa, B_g=128)
    found = Sun().critical_tokens(SUN_2025.constants, SUN_2025.constants, data)
    assert found == pytest.approx(tokens, rel=2e-3)


def test_the_best_formats_of_sun_favour_exponent_bits_slightly():
    exponent, mantissa = Sun().best_format(SUN_2025.constants, np.array([4.0, 8.0, 16.0]))
    np.testing.assert_allclose(exponent + mantissa + 1, [4, 8, 16])
    assert np.rint(exponent).tolist() == [2, 4, 8]
    assert np.all(exponent > mantissa)


def test_laws_of_ouyang_and_chen_worked_by_hand():
    """With N = 1e8 and D = 1e10: powers of ten; P = 4 = 2^2 and log2 G = 7."""
    delta = Ouyang().predict(OUYANG_2024.constants, row(N=1e8, D=1e10, P=4))
    assert delta[0] == pytest.approx(0.017 * 10 ** (5.251 - 1.8088) / 2**10.9934, rel=1e-10)
    delta = Chen().predict(CHEN_2025.constants, row(N=1e8, D=1e10, G=128))
    assert delta[0] == pytest.approx(0.2522 * 10 ** (1.610 - 2.8712) * 7**0.3533, rel=1e-10)


def test_law_of_sun_worked_by_hand():
    """N = 1e10, D = 1e10, so that D^beta/N^alpha = 10^(5.162 − 2.368)."""
    value = Sun().predict(SUN_2025.constants, row(N=1e10, D=1e10, E_bits=4, M_bits=3, B_g=128))
    added = 10**2.794 * 7 / (11334.5197 * 4.5**3.1926 * 3.5**2.9543)
    assert value[0] == pytest.approx(1.9061 + 69.2343 / 10**2.368 + 68973.0621 / 10**5.162 + added, rel=1e-10)


def test_loss_of_the_epoch_point_worked_by_hand():
    assert loss(1e10, 1e10, constants=EPOCH_2024) == pytest.approx(1.8172 + 482.01 / 10**3.478 + 2085.43 / 10**3.658)
    assert loss(1e10, 1e10, constants=EPOCH_2024_HUBER) == pytest.approx(
        1.817218 + 477.826 / 10**3.4731 + 2143.417 / 10**3.67172
    )


def test_floating_point_weights_change_the_weights_only():
    changed = {k for k, v in KUMAR_2024_FP.constants.items() if v != KUMAR_2024.constants[k]}
    assert changed == {"gamma_w", "n_w"}
    integer, floating = (effective_params(1e9, weights=4, constants=c) for c in (KUMAR_2024, KUMAR_2024_FP))
    assert integer != floating
    # activations and cache at the default 16 bits, so their factors are the same
    other = (1 - np.exp(1.4072 - 16 / 2.2102)) * (1 - np.exp(2.4185 - 16 / 0.9578))
    assert floating == pytest.approx(1e9 * (1 - np.exp(0.1240 - 4 / 2.8111)) * other)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_name_laws_that_can_be_evaluated_and_cannot_be_changed(preset):
    assert PRESETS[preset.name] is preset
    for name in preset.laws:
        law = plugins.get("laws", name)()
        assert {p.name for p in law.parameters} <= set(preset.constants)
        for p in law.parameters:
            assert p.low < preset.constants[p.name] < p.high
    with pytest.raises(TypeError):
        preset.constants["A"] = 0.0
    for copied in (copy.deepcopy(preset), pickle.loads(pickle.dumps(preset))):
        assert copied == preset
    assert preset.source
    assert preset.note


def test_changed_presets_say_so_and_leave_the_original():
    changed = KUMAR_2024.replace(C_w=1.5)
    assert changed.constants["C_w"] == 1.5
    assert "C_w = 1.5" in changed.note
    assert "C_w" not in KUMAR_2024.constants
    assert not {"n_w", "n_a", "n_kv"} & set(KUMAR_2024.without_offsets().constants)


GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "nu": "ν"}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_the_documentation_prints_the_constants(preset):
    page = (Path(__file__).parents[3] / "docs" / "laws.md").read_text("utf-8")
    (row,) = re.findall(rf"^\| `{preset.name}` \| (.*) \|$", page, re.MULTILINE)
    numbers = [float(text) for text in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", row)]
    changed = {k: v for k, v in preset.constants.items() if v != KUMAR_2024.constants.get(k)}
    for name, value in (changed if preset is KUMAR_2024_FP else preset.constants).items():
        head, _, tail = name.partition("_")
        symbol = "_".join(part for part in (GREEK.get(head, head), tail) if part)
        assert value in numbers, name
        assert symbol in row


def test_parts_that_do_not_exist_are_refused():
    for parts in (("weight",), (), ("kv", "kv")):
        with pytest.raises(OptionError, match="weights, activations, kv"):
            NEff(parts)
