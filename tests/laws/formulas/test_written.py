"""Oracle, recovery and property: a user's own formula through the same solver as every law."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from ptq_eval import errors, fit_data
from ptq_eval.laws.formulas.written import Formula

CHINCHILLA = "E + A*N**-alpha + B*D**-beta"


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(1)
    N, D = (g.ravel() for g in np.meshgrid(np.geomspace(3e7, 3e9, 6), np.geomspace(1e9, 1e11, 6)))
    loss = 1.8 + 480 / N**0.35 + 2100 / D**0.37
    return {
        "N": N,
        "D": D,
        "loss": loss * (1 + 2e-4 * rng.normal(size=36)),
        "day": -np.ones(36),
        "P": np.tile([3.0, 4, 6], 12),
    }


def fitted(table, formula, **options):
    return fit_data(table, formula=formula, **{"bootstrap": 0, "intervals": "none", **options}).results[0]


def test_a_formula_gives_what_the_law_gives(table):
    own = fitted(table, CHINCHILLA, loss="log-huber")
    law = fit_data(table, "chinchilla", loss="log-huber", bootstrap=0, intervals="none").results[0]
    assert own.objective == pytest.approx(law.objective, rel=1e-6)
    assert own.values == pytest.approx(law.values, rel=1e-3)


def test_least_squares_are_those_of_scipy(table):
    def f(x, E, A, alpha, B, beta):
        return E + A * x[0] ** -alpha + B * x[1] ** -beta

    best, _ = curve_fit(
        f, (table["N"], table["D"]), table["loss"], p0=(1.8, 480, 0.35, 2100, 0.37), xtol=1e-14, ftol=1e-14
    )
    for options in ({"formula": CHINCHILLA}, {"law": "chinchilla"}):
        found = fit_data(table, loss="least-squares", bootstrap=0, intervals="none", **options).results[0]
        mine = 2 * found.objective
        assert mine <= np.sum((table["loss"] - f((table["N"], table["D"]), *best)) ** 2) * (1 + 1e-6)
        assert list(found.values.values()) == pytest.approx(best, rel=2e-3)


def test_standard_errors_do_not_weigh_in_plain_least_squares(table):
    plain = fitted(table, CHINCHILLA, loss="least-squares").values
    weighed = fitted({**table, "se": np.geomspace(1e-4, 1, 36)}, CHINCHILLA, loss="least-squares").values
    assert weighed == pytest.approx(plain, rel=1e-9)


def test_constants_are_recovered_with_a_response_and_a_sign_of_their_own(table):
    change = -0.02 * table["D"] ** 0.2 * np.exp(-table["P"] / 1.5) + 3 * table["day"]
    found = fitted(
        {**table, "change": change}, "change = c*D**g*exp(-P/t) + s*day", start={"t": 1.0}, loss="least-squares"
    )
    assert found.values == pytest.approx({"c": -0.02, "g": 0.2, "t": 1.5, "s": 3}, rel=1e-4)


@pytest.mark.slow
def test_intervals_contain_the_truth_about_as_often_as_stated():
    rng, inside = np.random.default_rng(2), 0
    x = np.linspace(1, 10, 40)
    for i in range(40):
        t = {"x": x, "y": 2 + 3 * x**-0.8 + 0.02 * rng.normal(size=40), "run": np.arange(40), "D": 1e9 * x}
        found = fit_data(t, formula="y = a + b*x**-c", loss="least-squares", intervals="profile", seed=i).results[0]
        inside += found.estimates["c"].low <= 0.8 <= found.estimates["c"].high
    assert 31 <= inside <= 40


def test_bounds_ties_and_fixed_constants(table):
    found = fitted(table, CHINCHILLA, tied=[("alpha", "beta")], loss="log-huber").values
    assert found["alpha"] == found["beta"]
    assert fitted(table, CHINCHILLA, fixed={"E": 1.8}).values["E"] == 1.8
    assert 0.4 <= fitted(table, CHINCHILLA, bounds={"alpha": (0.4, 0.6)}).values["alpha"] <= 0.6


def test_a_constant_that_changes_nothing_is_held_and_named(table):
    fit = fit_data(table, formula="E + A*N**-alpha + A2*N**-alpha", bootstrap=10).fit
    assert fit["fits"][0]["held_because"]["A2"]["kind"] == "not_separable"


@pytest.mark.parametrize(
    ("formula", "error", "said"),
    [
        ("E + A*N^-a", errors.ExpressionError, "write ** for a power"),
        ("E + A", errors.ExpressionError, "names no column"),
        ("N + D", errors.ExpressionError, "names no constant"),
        ("E + exq(N)", errors.ExpressionError, "did you mean 'exp'"),
        ("E + exp(N, 2)", errors.ExpressionError, "exp takes 1 argument"),
        ("E + A*(N", errors.ExpressionError, "never closed"),
        ("loss = loss + A*N", errors.ExpressionError, "both sides"),
        ("E + A*log(-N)", errors.ExpressionError, "--start"),
        ("E + A*N**-a + 0*Day", errors.ColumnError, "did you mean 'day'"),
        ("x + 1 = E + A*N", errors.ExpressionError, "left side"),
        ("nothing = E + A*N", errors.ColumnError, "nothing says which column"),
        ("E + A*N if N else D", errors.ExpressionError, "IfExp is not arithmetic"),
        ("E + True*N", errors.ExpressionError, "not arithmetic"),
    ],
)
def test_what_is_no_formula_is_refused(table, formula, error, said):
    with pytest.raises(error) as raised:
        fitted(table, formula)
    assert said in str(raised.value)


def test_options_that_name_no_constant(table):
    with pytest.raises(errors.OptionError, match="no constant of this name"):
        fitted(table, CHINCHILLA, start={"gamma": 1.0})
    with pytest.raises(errors.OptionError, match="cannot be combined with --law"):
        fit_data(table, "chinchilla", formula=CHINCHILLA)


LEAF = st.sampled_from(["a", "b", "c", "x", "y", "2", "0.5"])
TREE = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda t: f"exp(-({t}))"),
        inner.map(lambda t: f"log({t})"),
        inner.map(lambda t: f"sqrt({t})"),
        st.tuples(inner, inner).map(lambda t: f"({t[0]})**({t[1]})"),
        st.tuples(inner, inner).map(lambda t: f"min({t[0]}, {t[1]})"),
    ),
    max_leaves=6,
)


@given(TREE)
def test_values_are_those_of_python_and_derivatives_those_of_differences(text):
    data = {"x": np.array([0.7, 1.3, 2.1]), "y": np.array([1.1, 0.4, 3.0]), "loss": np.ones(3)}
    try:
        law = Formula(text, {"x", "y"}.__contains__)
    except errors.ExpressionError:
        return
    theta = {p.name: 0.9 + 0.2 * i for i, p in enumerate(law.parameters)}
    functions = {"exp": np.exp, "log": np.log, "sqrt": np.sqrt, "min": np.minimum}
    with np.errstate(all="ignore"):
        expected = eval(text, {"__builtins__": {}}, {**functions, **theta, **data}) + np.zeros(3)
        f, gradient = law.linearise(theta, data)
        assert f == pytest.approx(expected, rel=1e-12, nan_ok=True)
        for name, derivative in gradient.items():
            h = 1e-6
            up, down = (law.predict({**theta, name: theta[name] + s * h}, data) for s in (1, -1))
            slope = (up - down) / (2 * h)
            smooth = np.isfinite(slope) & np.isfinite(derivative) & (np.abs(f) < 1e3) & (np.abs(slope) < 1e3)
            if "min" not in text:  # a corner has no derivative
                assert derivative[smooth] == pytest.approx(slope[smooth], rel=1e-4, abs=1e-5)


@given(st.text(max_size=60))
def test_any_text_is_a_formula_or_one_error(text):
    try:
        law = Formula(text, {"x", "N"}.__contains__)
    except errors.PtqEvalError:
        return
    law.predict({p.name: 1.0 for p in law.parameters}, {"x": np.ones(2), "N": np.ones(2)})


@given(st.lists(st.floats(0.1, 2), min_size=2, max_size=2))
def test_many_constants_at_once_are_each_alone(values):
    law = Formula("E + A*x**-c", {"x"}.__contains__)
    data = {"x": np.array([1.0, 2.0, 5.0])}
    both = law.predict({"E": 1.0, "A": 2.0, "c": np.array(values)[:, None]}, data)
    alone = [law.predict({"E": 1.0, "A": 2.0, "c": value}, data) for value in values]
    assert both == pytest.approx(np.array(alone))


def test_a_response_of_its_own_is_drawn_under_its_name_on_linear_axes(tmp_path):
    from ptq_eval.report.table_fit import figure

    x = np.linspace(-2, 2, 30)
    table = {"x": x, "score": -1 + 2 * x - 0.5 * np.exp(x) + 1e-3 * np.cos(9 * x), "D": 1e9 + x}
    found = fit_data(table, formula="score = a + b*x + c*exp(x)", loss="least-squares", bootstrap=0, intervals="none")
    found.write(tmp_path)
    against, residuals = figure.draw(figure.data(found)).axes[:2]
    assert against.get_xlabel() == "score fitted"
    assert against.get_xscale() == residuals.get_xscale() == "linear"
    assert len(figure.data(found)) == 30


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_formula_that_says_no_more_than_a_mean_ends_as_one_that_determines_nothing(tmp_path, noise):
    x = np.geomspace(1, 100, 20)
    y = 3 + noise * np.random.default_rng(1).standard_normal(20)
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "".join(f"{a},{b}\n" for a, b in zip(x, y)))
    with pytest.raises(errors.NotDeterminedError):
        fit_data(path, formula="y = E + A*x**-alpha", bootstrap=20)


def test_rows_of_a_formula_are_runs_by_its_variables(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "".join(f"{x},{3 + 2 / x + e}\n" for x in (1, 2, 4, 8, 16) for e in (0.01, -0.01)))
    found = fit_data(path, formula="y = E + A*x**-alpha", bootstrap=20)
    assert found.fit["fits"][0]["n_runs"] == 5
