"""Recovery and contract: what is drawn from a law follows it, and a fit finds the constants again."""

import numpy as np
import pytest
from scipy import stats

from ptq_eval.errors import OptionError
from ptq_eval.laws import CHEN_2025, KUMAR_2024, OUYANG_2024, SUN_2025, fit, grid, minimum, paper_design, simulate
from ptq_eval.laws.fit.solver import to_search
from ptq_eval.laws.formulas.chen import Chen
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.kumar import KumarPTQ
from ptq_eval.laws.formulas.n_eff import NEff
from ptq_eval.laws.formulas.ouyang import Ouyang
from ptq_eval.laws.formulas.sun import Sun
from ptq_eval.laws.formulas.unified import Unified, UnifiedDelta
from ptq_eval.laws.simulate import PAPER_SIZES, PAPER_TOKENS

RUNS = {"N": PAPER_SIZES, "D": PAPER_TOKENS}
KUMAR = KUMAR_2024.replace(C_w=0.6, C_a=0.4, C_kv=0.9, gamma_bar=1.5, n_bar=0.8)
LOW = (4, 5, 6, 8, 12)
CASES = {
    "kumar_ptq": (KumarPTQ(), KUMAR, paper_design(), 0.03),
    "ouyang": (Ouyang(), OUYANG_2024, paper_design(), 0.03),
    "chen": (Chen(), CHEN_2025, grid({**RUNS, "G": (32, 64, 128, 256)}), 0.03),
    "chinchilla": (Chinchilla(), KUMAR, grid(RUNS), 0.002),
    "sun": (Sun(), SUN_2025, grid({**RUNS, "E_bits": (1, 2, 4), "M_bits": (1, 3, 7), "B_g": (32, 512)}), 0.001),
    "n_eff weights": (NEff(("weights",)), KUMAR, grid({**RUNS, "P_w": (3, *LOW)}), 0.002),
    "n_eff no offset": (NEff(("kv",), offsets=False), KUMAR, grid({**RUNS, "P_kv": (1, 2, 3, 4, 8)}), 0.002),
    "n_eff two": (NEff(("weights", "activations")), KUMAR, grid({**RUNS, "P_w": LOW[::2], "P_a": LOW[::2]}), 0.002),
    "n_eff tied": (
        NEff(tied=True),
        KUMAR,
        grid({**RUNS, "P_w": (4, 6, 12), "P_a": (4, 6, 12), "P_kv": (4, 6, 12)}),
        0.002,
    ),
    "unified_delta": (UnifiedDelta(("weights",)), KUMAR, grid({**RUNS, "P_w": (5, 6, 8, 12), "P": (3, 4, 5)}), 0.03),
    "unified": (Unified(("weights",)), KUMAR, grid({**RUNS, "P_w": (4, 6, 12), "P": (3, 4, 5, 12)}), 0.002),
}


@pytest.mark.parametrize(("law", "theta", "design", "noise"), CASES.values(), ids=CASES)
def test_the_constants_that_were_put_in_come_out(law, theta, design, noise):
    """Without noise to four digits; with noise within four half widths of the 90 % interval (6.6 standard errors)."""
    exact = fit(law, simulate(law, theta, design, noise=0.0), n_boot=0)
    assert exact.identified, exact.status
    data = simulate(law, theta, design, noise=noise, seed=1)
    noisy = fit(law, data, n_boot=40)
    assert noisy.status.kind == "ok"
    for name, found in noisy.estimates.items():
        true = theta.constants[name]
        assert exact.values[name] == pytest.approx(true, rel=1e-3), name
        assert abs(found.value - true) < 2 * (found.high - found.low), name
    predicted = law.predict(noisy.values, data)
    scale = np.where(predicted > 0, predicted, np.inf) if law.response == "delta" else 1.0
    chi2 = float(np.sum(np.square((data[law.response] - predicted) / (noise * scale))))
    n = int(np.sum(predicted > 0))
    assert stats.chi2.ppf(1e-3, n - law.n_free) < chi2 < stats.chi2.ppf(1 - 1e-3, n)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "loss", "noise"), [(3, "huber", 0.01), (9, "log-huber", 0.002), (13, "log-huber", 0.002)]
)
def test_the_fit_of_all_18_constants_of_the_unified_law_is_no_worse_than_the_truth(seed, loss, noise):
    rng = np.random.default_rng(100 + seed)
    N, D, _ = (axis.ravel() for axis in np.meshgrid(PAPER_SIZES, PAPER_TOKENS, (0, 1)))
    runs = {"N": N, "D": D, **{P: rng.choice([4.0, 5.0, 6.0, 8.0, 12.0, 16.0], N.size) for P in ("P_w", "P_a", "P_kv")}}
    design = {**{name: np.repeat(column, 4) for name, column in runs.items()}, "P": np.tile([3.0, 4.0, 5.0, 16.0], 40)}
    law = Unified()
    data = simulate(law, KUMAR, design, noise=noise, seed=seed)
    found = minimum(law, data, loss=loss)
    truth = to_search(law, {p.name: KUMAR.constants[p.name] for p in law.parameters})
    z = found.problem.loss.transform(data["loss"])
    assert found.objective <= found.problem.values(truth[None], z)[0]


def test_noise_is_relative_for_a_degradation_and_absolute_for_a_loss():
    big = grid({"N": PAPER_SIZES, "D": PAPER_TOKENS, "P": np.linspace(3, 6, 200)})
    exact, drawn = (simulate(KumarPTQ(), KUMAR, big, noise=noise)["delta"] for noise in (0.0, 0.03))
    assert np.std(drawn / exact - 1) == pytest.approx(0.03, rel=0.05)
    exact, drawn = (simulate(Chinchilla(), KUMAR, big, noise=noise)["loss"] for noise in (0.0, 0.03))
    assert np.std(drawn - exact) == pytest.approx(0.03, rel=0.05)


def test_points_of_a_run_share_what_belongs_to_the_run():
    data = simulate(KumarPTQ(), KUMAR, paper_design(), noise=0.0, by_run=0.1, seed=3)
    exact = simulate(KumarPTQ(), KUMAR, paper_design(), noise=0.0)["delta"]
    deviation = (data["delta"] / exact - 1).reshape(20, 4)
    np.testing.assert_allclose(deviation, deviation[:, :1] * np.ones(4), atol=1e-12)
    assert 0.05 < deviation[:, 0].std() < 0.15


def test_the_design_of_the_paper_has_20_runs_of_4_bit_widths():
    design = paper_design()
    assert {name: len(column) for name, column in design.items()} == dict.fromkeys(design, 80)
    runs, counts = np.unique(design["run"], return_counts=True)
    assert (len(runs), set(counts.tolist())) == (20, {4})
    assert (design["N"].min(), design["N"].max()) == (30e6, 220e6)
    assert (design["D"].min(), design["D"].max()) == (1.5e9, 26e9)
    assert sorted(set(design["P"].tolist())) == [3, 4, 5, 6]


def test_a_seed_gives_one_table():
    one, again, other = (simulate(KumarPTQ(), KUMAR, paper_design(), seed=s)["delta"] for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_what_cannot_be_simulated_is_said():
    with pytest.raises(OptionError, match=r"law chen needs columns .* got G"):
        simulate(Chen(), CHEN_2025, paper_design())
    with pytest.raises(OptionError, match="law chen needs constants that are missing: k"):
        simulate(Chen(), KUMAR, grid({**RUNS, "G": (32, 64)}))
    with pytest.raises(OptionError, match="negative"):
        simulate(KumarPTQ(), KUMAR, paper_design(), noise=-0.1)
    with pytest.raises(OptionError, match="axes of the design"):
        grid({"N": (1e6, 1e7)})
