"""Contract: what a plan says in words follows from its numbers, and from what they do not tell."""

import math

import numpy as np
import pytest
from rich.console import Console

from ptq_eval.laws.formulas.presets import KUMAR_2024, OUYANG_2024
from ptq_eval.laws.plan.answers import Question, plan
from ptq_eval.laws.plan.source import Source, from_preset
from ptq_eval.report.plan.page import render
from ptq_eval.report.plan.words import cautions, sentences, size


def said(question, preset=KUMAR_2024):
    return sentences(plan(from_preset(preset), question))


def uncertain(spread, **question):
    """The paper's constants with invented replicates around C_T."""
    draws = np.exp(spread * np.linspace(-2, 2, 21))
    constants = {name: np.full(22, value) for name, value in KUMAR_2024.constants.items()}
    constants["C_T"] = KUMAR_2024.constants["C_T"] * np.append(1.0, draws)
    return plan(Source("invented", "", constants, {}, (4.0,), level=0.9), Question(**question))


def test_longer_pays_up_to_the_turn():
    [below, *_] = said(Question(params=220e6, tokens=5e9, serve_bits=(3,)))
    assert "train longer" in below
    assert "D = 5B is 0.154 of D_crit" in below
    [above, *_] = said(Question(params=220e6, tokens=5e10, serve_bits=(3,)))
    assert "training longer harms" in above


def test_longer_cannot_be_told_where_the_interval_holds_both_signs():
    question = {"params": 220e6, "tokens": 2e10, "serve_bits": (3,)}
    [sure, *_], [unsure, *_] = (sentences(uncertain(spread, **question)) for spread in (1e-4, 1.0))
    assert sure.endswith(": training longer harms.") or sure.endswith(": train longer.")
    assert "whether to train longer is uncertain" in unsure


def test_lower_pays_where_its_upper_bound_does():
    lines = said(Question(params=220e6, tokens=26e9, serve_bits=(3, 4)))
    by_start = {words.partition(":")[0]: words for words in lines}
    assert by_start["N = 220M, served at 4 bits"].endswith("lower precision wins (no interval).")
    assert by_start["N, D and P free, served at 4 bits"].endswith("lower precision wins (no interval).")
    # an upper bound above the loss at 16 bits says nothing
    assert by_start["N = 220M, served at 3 bits"].endswith("whether lower precision wins is uncertain.")
    assert "7.00 bits are the best training precision at any budget" in " ".join(lines)


def test_given_the_constants_of_equation_9_lower_is_told():
    robust = KUMAR_2024.replace(C_w=9.0, C_a=9.0, C_kv=9.0)  # hardly any robustness: the upper bound is the loss
    found = plan(from_preset(robust), Question(params=30e6, tokens=26e9, serve_bits=(3,)))
    [lines] = [words for words in sentences(found) if words.startswith("N = 30M, served at 3 bits")]
    assert "≤" not in lines
    assert lines.endswith("lower precision does not win (no interval).")
    assert not any("equation 9" in caution for caution in cautions(found))


@pytest.mark.parametrize("bits", [(16,), (1,), (4.5,), (2, 8, 16)])
@pytest.mark.parametrize("width", [60, 160])
def test_every_plan_can_be_shown(bits, width):
    found = plan(from_preset(KUMAR_2024), Question(params=1e9, tokens=2e10, serve_bits=bits, memory=1e9))
    console = Console(width=width, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    with console.file:
        console.print(render(found))
    text = console.export_text()
    assert "nan" not in text.lower()
    assert f"{bits[0]:g}" in text


def test_cautions_name_what_is_missing_and_what_lies_beyond():
    lines = " ".join(cautions(plan(from_preset(KUMAR_2024), Question(params=1e9, serve_bits=(4, 6)))))
    for words in (
        "no uncertainty is published",
        "beyond the fitted range",
        "N 30M to 220M",
        "need a budget",
        "! marks",
    ):
        assert words in lines, words
    lines = " ".join(cautions(plan(from_preset(OUYANG_2024), Question(params=1e9, tokens=2e10, serve_bits=(4,)))))
    assert "gamma_w, gamma_a, gamma_kv not known" in lines
    assert "B, beta not known" in lines
    assert "the range of the data behind OUYANG_2024 is not known" in lines


def test_sizes_in_bytes():
    assert [size(value) for value in (1e9, 1.5e12, 2e6, 512.0, 8e4)] == ["1 GB", "1.5 TB", "2 MB", "512 B", "80 kB"]


def test_a_difference_has_an_interval_of_its_own():
    found = uncertain(0.3, params=220e6, tokens=26e9, serve_bits=(4,))
    [low] = [a for a in found.of("optimum") if a.at.get("train_bits") == 4 and a.setting == "params"]
    [full] = [
        a for a in found.of("optimum") if a.at.get("serve_bits") == 4 and a.setting == "params" and "train_bits" in a.at
    ]
    against = low.values["against_16"]
    assert against.value == pytest.approx(low.values["loss"].value - full.values["loss"].value)
    assert against.low < against.value < against.high
    assert math.isnan(low.values["loss"].low)  # trained and served at 4 bits: no quantization, nothing uncertain
