"""Recovery and contract: one efficiency per category, the outer exponent, and N_eff fitted to few D."""

import numpy as np
import pytest

from ptq_eval import errors, fit_data
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.outer import Outer
from ptq_eval.laws.formulas.per_category import PerCategory, reference

EFF = {"BF16": 1.0, "FP8": 0.9, "NVFP4": 0.55, "MXFP4": 0.5}


def grid(*axes):
    return [g.ravel() for g in np.meshgrid(*axes, indexing="ij")]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(3)
    N, D, place = grid(np.geomspace(3e7, 3e9, 5), np.geomspace(1e9, 1e11, 4), np.arange(4))
    names = np.array(list(EFF), object)[place.astype(int)]
    eff = np.array([EFF[name] for name in names])
    loss = (1.8 + 480 / (N * eff) ** 0.35 + 2100 / D**0.37) * (1 + 1e-4 * rng.normal(size=80))
    return {"N": N, "D": D, "format": names, "loss": loss}


def fitted(table, law="chinchilla", **options):
    return fit_data(table, law, **{"bootstrap": 0, "intervals": "none", **options}).results[0]


def test_efficiencies_are_recovered(table):
    found = fitted(table, per_category="format", intervals="bootstrap", bootstrap=50)
    for name in ("FP8", "NVFP4", "MXFP4"):
        estimate = found.estimates[f"eff_N[{name}]"]
        assert estimate.value == pytest.approx(EFF[name], rel=0.02)
        assert estimate.low < estimate.value < estimate.high
    assert found.values["alpha"] == pytest.approx(0.35, rel=0.05)
    assert "eff_N[BF16] = 1" in found.equation


def test_ties_and_fixed_efficiencies(table):
    found = fitted(table, per_category="format", tied="eff_N[NVFP4]=eff_N[MXFP4]", fixed={"eff_N[FP8]": 0.9}).values
    assert found["eff_N[NVFP4]"] == found["eff_N[MXFP4]"] == pytest.approx(0.525, rel=0.03)
    assert found["eff_N[FP8]"] == 0.9


def test_efficiencies_of_n_and_of_d(table):
    eff_d = np.array([{"FP8": 0.8}.get(name, 1.0) for name in table["format"]])
    loss = table["loss"] - 2100 / table["D"] ** 0.37 + 2100 / (table["D"] * eff_d) ** 0.37
    found = fitted({**table, "loss": loss}, per_category={"N": "format", "D": "format"}).values
    assert found["eff_D[FP8]"] == pytest.approx(0.8, rel=0.1)
    assert found["eff_D[NVFP4]"] == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"per_category": "formet"}, errors.ColumnError, "did you mean 'format'"),
        ({"per_category": "P=format"}, errors.OptionError, "does not read P"),
        ({"per_category": "format", "where": 'format == "FP8"'}, errors.OptionError, "2 to 50 categories"),
        ({"per_category": "N=a,N=b"}, errors.OptionError, "--per-category"),
        ({"per_category": "D"}, errors.OptionError, None),
    ],
)
def test_what_makes_no_categories(table, options, error, said):
    if said is None:
        options, said = {"per_category": "N=loss"}, "2 to 50 categories"
    with pytest.raises(error) as raised:
        fitted(table, **options)
    assert said in str(raised.value)


def test_a_blank_category_is_refused(table):
    names = table["format"].copy()
    names[7] = None
    with pytest.raises(errors.NotFiniteError, match="row 8"):
        fitted({**table, "format": names}, per_category="format")


def test_the_reference_is_full_precision_or_the_most_frequent():
    assert reference(["FP8", "FP8", "bf16"]) == "bf16"
    assert reference(["a", "b", "b"]) == "b"


@pytest.mark.parametrize("law", [Outer(), PerCategory(Chinchilla(), "N", ["a", "b", "a"])])
def test_derivatives_are_those_of_differences(law):
    data = {"N": np.array([3e7, 1e8, 1e9]), "D": np.array([1e9, 1e10, 1e11]), "loss": np.ones(3)}
    data["category of N"] = np.array([0.0, 1.0, 0.0])
    theta = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.37, "gamma": 0.8, "eff_N[b]": 0.6}
    f, gradient = law.linearise(theta, data)
    assert f == pytest.approx(law.predict(theta, data))
    for p in law.parameters:
        h = 1e-6 * theta[p.name]
        up, down = (law.predict({**theta, p.name: theta[p.name] + s * h}, data) for s in (1, -1))
        assert gradient[p.name] == pytest.approx((up - down) / (2 * h), rel=1e-5, abs=1e-12)


def test_an_outer_exponent_is_recovered():
    N, D = grid(np.geomspace(1e7, 1e10, 7), np.geomspace(1e8, 1e12, 7))
    loss = 1.6 + (900 / N**0.45 + 3000 / D**0.45) ** 0.7
    found = fitted({"N": N, "D": D, "loss": loss}, "outer", loss="least-squares").values
    assert found == pytest.approx({"E": 1.6, "A": 900, "alpha": 0.45, "B": 3000, "beta": 0.45, "gamma": 0.7}, rel=0.02)
    kaplan = (2e3 / N**0.8 + 1e9 / D) ** 0.1
    found = fitted({"N": N, "D": D, "loss": kaplan}, "outer", fixed="E=0,beta=1", loss="least-squares").values
    assert (found["E"], found["beta"]) == (0, 1)
    assert found["gamma"] == pytest.approx(0.1, rel=0.02)


def trained(tokens, scatter=1e-4):
    """Losses of N_eff with one part, at a few D."""
    rng = np.random.default_rng(4)
    N, D, P = grid([3e7, 6e7, 2e8, 5e8], tokens, [3.0, 4, 6, 16])
    loss = 1.7 + 400 / (N * -np.expm1(0.3 - P / 2)) ** 0.34 + 2000 / D**0.36
    return {"N": N, "D": D, "P_w": P, "loss": loss * (1 + scatter * rng.normal(size=N.size))}


@pytest.mark.parametrize(
    ("tokens", "held"), [([2e10], {"B", "beta"}), ([2e10, 8e10], {"beta"}), ([5e9, 2e10, 8e10], set())]
)
def test_n_eff_at_few_d_finds_what_they_determine(tokens, held):
    found = fit_data(trained(tokens), "n_eff", bootstrap=0, intervals="none")
    values, entry = found.results[0].values, found.fit["fits"][0]
    assert set(entry["held_because"]) == held
    assert values["gamma_w"] == pytest.approx(2, rel=0.02)
    assert values["alpha"] == pytest.approx(0.34, rel=0.03)
    if len(tokens) == 1:
        assert values["E"] == pytest.approx(1.7 + 2000 / 2e10**0.36, rel=0.01)
    elif len(tokens) == 3:
        assert values["beta"] == pytest.approx(0.36, rel=0.05)
        assert values["B"] > 100


def test_what_is_held_is_said(tmp_path):
    found = fit_data(trained([2e10, 8e10]), "n_eff", bootstrap=10)
    found.write(tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "beta is held at 0.3658, because these rows do not determine it: 2 distinct values of D" in page
    assert "(held)" in page


def test_the_starts_of_n_eff_are_not_all_without_d():
    data = trained([5e9, 2e10, 8e10], scatter=3e-3)
    from ptq_eval.laws.formulas.n_eff import NEff

    data["loss"] = data["loss"] + 0.02 * np.log(data["D"] / 2e10)  # the best start has no term of D
    starts = NEff(("weights",)).starts(data, np.random.default_rng(0))
    sizes = np.array([theta["B"] * 2e10 ** -theta["beta"] for theta in starts])
    assert (sizes > 1e-3).mean() > 0.2


def test_a_factor_is_fixed_at_zero_in_every_law_of_the_loss():
    """Without the term of D an outer exponent only multiplies alpha, so it is fixed too."""
    for law, fixed in (("chinchilla", "B=0"), ("outer", "B=0,gamma=1"), ("n_eff", "B=0")):
        values = fitted(trained([5e9, 2e10, 8e10]), law, fixed=fixed).values
        assert values["B"] == 0
    with pytest.raises(errors.NotVaryingError, match="gamma"):
        fitted(trained([5e9, 2e10, 8e10]), "outer", fixed="B=0")


def test_rows_that_determine_nothing_end_with_an_error_of_their_own():
    rng = np.random.default_rng(5)
    N, D = grid([3e7, 6e7, 2e8, 5e8], [1e9, 4e9, 2e10])
    flat = {"N": N, "D": D, "loss": 3 + 0.01 * rng.normal(size=12) + 0.05 * np.log(D / 1e9)}
    with pytest.raises(errors.NotDeterminedError, match="the loss does not fall"):
        fitted(flat)
    assert errors.NotDeterminedError.exit_code == 51
