"""Contract: constants are fixed, tied and bounded in every installed law, and what is left follows the rest."""

import numpy as np
import pytest

from ptq_eval import plugins
from ptq_eval.laws.catalogue import make_law
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.fit.restrict import restrict, started

LAWS = plugins.names("laws")
AXES = {"N": [3e7, 1e8, 4e8], "D": [1e9, 4e9, 2e10], "P": [3.0, 4, 6], "S": [1.0, 2], "G": [32.0, 128]}
BITS = {
    "P_w": [3.0, 6, 16],
    "P_a": [4.0, 8, 16],
    "P_kv": [4.0, 6, 16],
    "E_bits": [2.0, 4],
    "M_bits": [1.0, 3],
    "B_g": [16.0, 128],
}


def example(law, seed=0):
    """Constants within the bounds of a law, and 300 points that follow it."""
    rng = np.random.default_rng(seed)
    data = {name: rng.choice({**AXES, **BITS}[name], 300) for name in law.columns}
    data[law.response] = np.zeros(300)
    theta = {p.name: float(np.clip({"E": 1.7}.get(p.name, 0.4), p.low * 1.01, p.high)) for p in law.parameters}
    for factor, exponent, x in (("A", "alpha", "N"), ("B", "beta", "D")):
        if factor in theta:
            theta[factor] = float(0.5 * np.median(data[x]) ** theta[exponent])
    with np.errstate(all="ignore"):
        size = float(np.nanmedian(np.abs(law.predict(theta, data))))
    for name in ("C_T", "C", "k"):
        if name in theta and np.isfinite(size) and size > 0 and "A" not in theta:
            theta[name] *= 0.3 / size
    return theta, data


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "unified" else name for name in LAWS]
)
def test_fixed_tied_and_bounded_constants_stay_where_they_are_put(name):
    law = make_law(name)
    theta, data = example(law)
    names = [p.name for p in law.parameters]
    first, *others = names
    fixed = restrict(law, {first: theta[first]})
    assert fixed.complete({n: theta[n] for n in others})[first] == theta[first]
    starts = fixed.starts({**data, law.response: law.predict(theta, data)}, np.random.default_rng(0))
    assert starts
    assert all(set(start) == set(others) for start in starts)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if _alike(law, a, b)]
    for a, b in pairs[:3]:
        tied = restrict(law, tied=[(a, b)])
        values = tied.complete({p.name: theta[p.name] for p in tied.parameters})
        assert values[a] == values[b]
    p = law.parameters[-1]
    low, high = sorted((theta[p.name] * 0.9, theta[p.name] * 1.1))
    bounded = restrict(law, bounds={p.name: (low, high)})
    assert (bounded.parameters[-1].low, bounded.parameters[-1].high) == (low, high)
    assert all(
        set(s) == set(names)
        for s in started(law, {p.name: theta[p.name]}).starts(
            data | {law.response: law.predict(theta, data)}, np.random.default_rng(0)
        )
    )


@pytest.mark.parametrize("name", [n for n in LAWS if make_law(n).absent])
def test_a_factor_may_be_fixed_at_zero(name):
    law = make_law(name)
    theta, data = example(law)
    for factor in {*law.absent} & {p.name for p in law.parameters}:
        restricted = restrict(law, {factor: 0.0})
        rest = {p.name: theta[p.name] for p in restricted.parameters}
        f, gradient = restricted.linearise(rest, data)
        assert np.isfinite(f).any()
        assert set(gradient) >= set(rest)
        assert restricted.complete(rest)[factor] == 0


@pytest.mark.parametrize("name", ["chinchilla", "kumar_ptq", "ouyang", "outer"])
def test_a_fit_with_restrictions_keeps_them(name):
    law = make_law(name)
    theta, data = example(law)
    y = law.predict(theta, data)
    data[law.response] = y * (1 + 1e-3 * np.random.default_rng(1).normal(size=300))
    p = law.parameters[1]
    ends = sorted((theta[p.name] * 0.5, theta[p.name] * 2))
    first = law.parameters[0].name
    values = fit(law, data, fixed={first: theta[first]}, bounds={p.name: tuple(ends)}, intervals="none").values
    assert values[first] == theta[first]
    assert ends[0] <= values[p.name] <= ends[1]
    assert np.median(np.abs(law.predict(values, data) / y - 1)) < 0.01


def _alike(law, a, b):
    p, q = (next(p for p in law.parameters if p.name == name) for name in (a, b))
    return max(p.low, q.low) <= min(p.high, q.high)
