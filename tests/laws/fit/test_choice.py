"""Contract: the main job fits the laws that it is asked for, built-in or installed by another package."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest

from ptq_eval import plugins
from ptq_eval.errors import OptionError, UnknownPluginError
from ptq_eval.laws import Law, Parameter, Why
from ptq_eval.laws.fit.choice import Choice, chosen
from ptq_eval.laws.fit.folder import fit_points
from ptq_eval.results.points import read
from tests.laws.synthetic import table


class Flat(Law):
    """δ = k·2^−P: a law of another package, which knows no D."""

    name, equation, source, response = "flat", "k·2^-P", "this test", "delta"
    columns, min_scatter, needs = ("P",), 0.01, {"P": 2}
    parameters = (Parameter("k", 1e-6, 1e6, log=True),)

    def predict(self, theta, data):
        return theta["k"] * 2.0 ** -data["P"]

    def gradient(self, theta, data):
        return {"k": 2.0 ** -data["P"] * np.ones_like(theta["k"])}

    def starts(self, data, rng):
        return [{"k": 1.0}]


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setitem(plugins._points("laws"), "flat", EntryPoint("flat", f"{__name__}:Flat", "ptq_eval.laws"))


def fits(names):
    rows, windows = table(np.random.default_rng(0))
    found = fit_points(read(rows)[0], windows, n_boot=10, laws=chosen(names)).content
    return [entry["law"] for entry in found["fits"]], found["critical_tokens"]


def test_nothing_named_leaves_the_choice_to_the_data():
    assert chosen(()) == Choice()
    assert fits(())[0] == ["chinchilla_d", "chinchilla_d", "kumar_ptq"]


def test_another_law_of_degradation_and_its_turn():
    laws, critical = fits(("ouyang",))
    assert laws == ["chinchilla_d", "chinchilla_d", "ouyang"]
    assert critical


def test_a_loss_law_of_n_serves_all_runs_and_one_of_d_each_run():
    assert fits(("chinchilla",))[0] == ["chinchilla", "kumar_ptq"]
    assert fits(("ouyang", "chinchilla_d"))[0] == ["chinchilla_d", "chinchilla_d", "ouyang"]


def test_a_law_of_another_package(installed):
    laws, critical = fits(("flat",))
    assert laws[-1] == "flat"
    reasons = {entry["reason"]["kind"] for entry in critical if entry["reason"]}
    assert Why.LAW_HAS_NO_TURN in reasons


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (("kumr",), UnknownPluginError, "did you mean 'kumar'"),
        (("chen",), OptionError, "chen reads | got G | allowed: N, D, P"),
        (("phase",), OptionError, "got S"),
        (("kumar", "ouyang"), OptionError, "one law of delta | got kumar_ptq, ouyang"),
        (("sun",), OptionError, "E_bits"),
    ],
)
def test_laws_that_cannot_serve(names, error, words):
    with pytest.raises(error) as caught:
        chosen(names)
    assert words in str(caught.value)
