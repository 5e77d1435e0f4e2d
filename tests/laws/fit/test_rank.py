"""Oracle: what points determine is decided by the rank of what is left to fit, with constants fixed or tied or not."""

import numpy as np
import pytest

import ptq_eval
from ptq_eval.errors import NotVaryingError
from ptq_eval.laws.fit.rank import undetermined
from ptq_eval.laws.fit.restrict import restrict
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.outer import Outer

SIZES = (3e7, 6e7, 1.1e8, 2.2e8)


def table(sizes, tokens):
    N, D = (v.ravel() for v in np.meshgrid(sizes, tokens))
    noise = 1 + 0.001 * np.random.default_rng(0).standard_normal(len(N))
    return {"N": N, "D": D, "loss": (1.8 + 400 / N**0.34 + 2000 / D**0.37) * noise}


CASES = [
    # number of D, fixed, tied, whether E + A/N^alpha + B/D^beta is determined: an additive table of n by m values
    # has n + m - 1 numbers, and each factor and exponent of one variable needs a difference of its own
    (2, {"alpha": 0.34}, [], False),
    (2, {"A": 400.0}, [], False),
    (2, {"E": 1.8}, [], True),
    (2, {"beta": 0.37}, [], True),
    (2, {"B": 2000.0}, [], True),
    (2, {"B": 0.0}, [], True),
    (2, {}, [("alpha", "beta")], True),
    (3, {"alpha": 0.34}, [], True),
    (3, {}, [], True),
]


@pytest.mark.parametrize(("n", "fixed", "tied", "determined"), CASES)
def test_a_restricted_law_is_refused_where_the_rest_is_not_determined(n, fixed, tied, determined):
    data = table(SIZES, (1e9, 4e9, 1.6e10)[:n])
    assert (undetermined(restrict(Chinchilla(), fixed, tied), data) == []) is determined
    if determined:
        held = ptq_eval.fit_data(data, "chinchilla", fixed=fixed, tied=tied, bootstrap=0).fit["fits"][0]["held"]
        assert set(held) - {"beta"} <= set(fixed)
        assert "beta" not in held or fixed.get("B") == 0 or "beta" in fixed
    else:
        with pytest.raises(NotVaryingError, match="D varies too little to determine E, B, beta together"):
            ptq_eval.fit_data(data, "chinchilla", fixed=fixed, tied=tied, bootstrap=0)


def test_values_within_five_per_cent_are_one():
    data = table(SIZES, (1e9, 1.03e9, 4e9))
    assert undetermined(restrict(Chinchilla(), {"alpha": 0.34}), data) == ["E", "B", "beta"]


def test_an_outer_exponent_of_one_is_the_law_without_it():
    full = table(SIZES, (1e9, 4e9, 1.6e10))
    plain = ptq_eval.fit_data(full, "chinchilla", bootstrap=0).results[0]
    one = ptq_eval.fit_data(full, "outer", fixed={"gamma": 1}, bootstrap=0)
    assert one.fit["fits"][0]["held"] == ["gamma"]
    for name, value in plain.values.items():
        assert one.results[0].values[name] == pytest.approx(value, rel=1e-3)
    few = table(SIZES, (1e9, 4e9))
    assert undetermined(restrict(Outer(), {"gamma": 1.0}), few) == undetermined(Chinchilla(), few) != []
