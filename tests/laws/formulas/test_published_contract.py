"""Contract and architecture: what every installed law says of itself, and how little importing it takes."""

import re
import subprocess
import sys

import numpy as np
import pytest

from ptq_eval import plugins
from ptq_eval.laws import fit, grid, simulate
from ptq_eval.laws.formulas.n_eff import NEff
from ptq_eval.laws.formulas.presets import CHEN_2025, KUMAR_2024
from ptq_eval.report.common.words import reason_text

PUBLISHED = ("chen", "chinchilla", "chinchilla_d", "kumar_ptq", "kumar_ptq_ratio", "n_eff", "ouyang", "sun")
PUBLISHED += ("unified", "unified_delta")
RUNS = {"N": (1e8, 2e8, 4e8), "D": (1e9, 1e10, 1e11)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_law_describes_itself(name):
    law = plugins.get("laws", name)()
    assert law.name == name
    assert law.response in ("delta", "loss")
    names = [p.name for p in law.parameters]
    assert len(set(names)) == len(names) == law.n_free
    assert set(law.linear) <= set(names)
    assert all(p.low < p.high and (p.low > 0 or not p.log) for p in law.parameters)
    assert re.search(r"arXiv \d{4}\.\d{5}", law.source)
    assert law.source.split(",")[0].split()[0] in type(law).__doc__
    for text in (*names, *law.columns):
        written = text in law.equation or re.sub(r"_(w|a|kv)$", "_x", text) in law.equation
        assert written, f"{text} does not occur in {law.equation}"


def test_importing_every_law_loads_no_heavy_package():
    modules = ", ".join(
        f"ptq_eval.laws.{name}"
        for name in ("formulas.chen", "calculator", "formulas.n_eff", "simulate", "formulas.sun", "formulas.unified")
    )
    code = (
        f"import sys, {modules}\nprint(sorted({{'torch', 'pandas', 'transformers', 'quantizers'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("law", "theta", "axes", "words"),
    [
        (NEff(("weights",)), KUMAR_2024, {"P_w": (4, 8)}, "2 distinct values of P_w, at least 3 needed"),
        (NEff(("weights",), offsets=False), KUMAR_2024, {"P_w": (8,)}, "1 distinct value of P_w, at least 2 needed"),
        (plugins.get("laws", "chen")(), CHEN_2025, {"G": (64,)}, "1 distinct value of G, at least 2 needed"),
        (plugins.get("laws", "chen")(), CHEN_2025, {"G": (1, 64, 128)}, "a group size of 1 or less"),
        (plugins.get("laws", "ouyang")(), {"k": 1, "gamma_D": 0.5, "gamma_N": 0.3, "gamma_P": 5}, {"P": (4,)}, "of P"),
    ],
)
def test_too_few_precisions_identify_nothing_and_are_named(law, theta, axes, words):
    result = fit(law, simulate(law, theta, grid({**RUNS, **axes}), noise=0.001), n_boot=0)
    assert not result.identified
    assert words in reason_text(result.status.reason.to_dict())


def test_precisions_below_the_offset_are_no_start_for_a_fit_and_do_not_break_it():
    """Points at 1.5 bits, where the published offsets leave nothing, have no finite loss and are excluded."""
    law = NEff(("weights",))
    theta = KUMAR_2024.replace(n_w=0.9)  # nothing is left below 2.4 bits
    data = simulate(law, theta, grid({**RUNS, "P_w": (1.5, 3, 4, 6, 12)}), noise=0.0)
    assert np.isinf(data["loss"][data["P_w"] < 2]).all()
    result = fit(law, data, n_boot=0)
    assert result.n_dropped == 9
    assert result.values["n_w"] == pytest.approx(0.9, rel=1e-3)
