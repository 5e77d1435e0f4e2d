"""Oracle, property and recovery: which windows are drawn, and the errors of means over them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.records import Sample
from ptq_eval.sampling import (
    Covers,
    Design,
    design_of,
    effective,
    errors_needed,
    independent,
    mean_and_error,
    spread,
    standard_error,
)


def sampled(population, n, seed, documents=()):
    """(places, design) of a spread sample of a text with `population` windows."""
    return spread(population, n, seed), design_of(Sample("spread", population, documents), n)


@given(st.integers(2, 400), st.floats(1.0, 40.0), st.integers(0, 99))
def test_two_windows_come_from_each_stratum_of_equal_length(count, ratio, seed):
    total = math.ceil(count * ratio)
    places = spread(total, count, seed)
    assert len(set(places.tolist())) == count
    assert (np.diff(places) > 0).all()
    assert 0 <= places[0] <= places[-1] < total
    assert np.array_equal(places, spread(total, count, seed))
    # A pair is within its stratum, whose ends are known to one window.
    strata = design_of(Sample("spread", total), count).strata
    for stratum in range(strata.max() + 1):
        own = places[strata == stratum]
        assert len(own) == (3 if stratum == strata.max() and count % 2 else 2) or count < 4
        assert own[0] >= math.floor(2 * stratum * total / count)
        assert own[-1] <= 2 * (stratum + 1) * total / count + 1 + total / count * (stratum == strata.max())


def test_each_window_is_drawn_with_the_same_probability():
    """11.7 windows to a stratum: lengths differ, and which are longer is drawn too."""
    drawn = np.bincount(np.concatenate([spread(117, 20, seed) for seed in range(6000)]), minlength=117)
    expected = 6000 * 20 / 117
    assert np.abs(drawn - expected).max() < 5 * np.sqrt(expected)


def test_one_window_can_be_drawn():
    assert {int(spread(5, 1, seed)[0]) for seed in range(100)} == {0, 1, 2, 3, 4}
    assert math.isnan(standard_error([1.0], design_of(Sample("spread", 5), 1)))


DOCUMENTS = tuple(np.repeat(np.arange(8), [1, 9, 4, 4, 6, 3, 7, 5]).tolist())
DESIGNS = {
    "pairs": design_of(Sample("spread", 200), 21),
    "documents": design_of(
        Sample("first", None, tuple(np.repeat(np.arange(8), [1, 9, 4, 4, 6, 3, 7, 5]).tolist())), 39
    ),
    "stretches": design_of(Sample(), 30),
    "crops": design_of(Sample("crops", 100), 17),
}


@pytest.mark.parametrize("name", DESIGNS)
def test_oracle_the_error_is_that_of_a_jackknife(name):
    """Slow: leave out each unit in turn, its weight shared among the others of its stratum (Wolter 2007, 4.3)."""
    design, rng = DESIGNS[name], np.random.default_rng(1)
    n = len(design.units)
    tokens = rng.integers(90, 110, n).astype(float)
    values = tokens * rng.normal(0.1, 0.02, n)
    mean, error = mean_and_error(values, tokens, design)
    variance = 0.0
    for unit in range(design.n_units):
        own = design.strata == design.stratum_of[unit]
        size = int(np.sum(design.stratum_of == design.stratum_of[unit]))
        weight = np.where(own, size / (size - 1), 1.0) * (design.units != unit)
        gap = (weight * values).sum() / (weight * tokens).sum() - mean
        variance += (size - 1) / size * gap**2
    assert mean == pytest.approx(values.sum() / tokens.sum())
    assert error == pytest.approx(math.sqrt((1 - design.share) * variance), rel=0.04)


@pytest.mark.parametrize("name", DESIGNS)
def test_bootstrap_weights_have_the_variance_of_the_formula(name):
    design, rng = DESIGNS[name], np.random.default_rng(2)
    values = rng.normal(size=len(design.units))
    deviations = design.deviations(40_000, seed=3)
    assert deviations.shape == (40_000, len(values))
    assert np.abs(deviations.mean(0)).max() < 0.05
    means = (1 + deviations) @ (values - values.mean()) / len(values)
    assert means.std() == pytest.approx(standard_error(values, design), rel=0.03)
    assert np.array_equal(deviations[:100], design.deviations(40_000, seed=3)[:100])


def test_independent_windows_have_the_usual_error():
    values = np.random.default_rng(0).normal(size=50)
    assert standard_error(values) == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert effective(values, np.ones(50), None) == pytest.approx(50)
    assert (independent(50).freedom, math.isnan(standard_error([1.0]))) == (49, True)


def text_of_documents(rng, documents=40, length=30, between=1.0):
    """(values of the windows of a text, document of each): documents differ by much, neighbours by less."""
    sizes = rng.integers(length // 3, 2 * length, documents)
    own = np.repeat(np.arange(documents), sizes)
    return between * rng.normal(size=documents)[own] + rng.normal(size=len(own)), own


@pytest.mark.slow
def test_recovery_a_spread_sample_covers_the_text_it_was_drawn_from():
    """One text, 2,000 draws: 90 % intervals hold its mean; the first windows, taken as independent, hardly ever do."""
    from scipy import stats

    values, _ = text_of_documents(np.random.default_rng(4))
    hits = 0
    for seed in range(2000):
        places, design = sampled(len(values), 128, seed)
        error = standard_error(values[places], design)
        hits += abs(values[places].mean() - values.mean()) <= stats.t.ppf(0.95, design.freedom) * error
    assert design.share == pytest.approx(128 / len(values))
    assert 0.88 <= hits / 2000 <= 0.92


def test_recovery_all_windows_cover_other_texts_of_the_kind():
    """600 texts of 40 documents, measured whole: the mean of their kind is zero."""
    from scipy import stats

    hits, naive = 0, 0
    for seed in range(600):
        values, documents = text_of_documents(np.random.default_rng(seed))
        design = design_of(Sample("first", len(values), tuple(documents.tolist())), len(values))
        assert design.covers is Covers.TEXTS
        hits += abs(values.mean()) <= stats.t.ppf(0.95, design.freedom) * standard_error(values, design)
        naive += abs(values.mean()) <= 1.645 * standard_error(values)
    assert 0.86 <= hits / 600 <= 0.93
    assert naive / 600 < 0.5


def test_recovery_stretches_of_dependent_windows():
    """An autocorrelated sequence without marks: neighbours correlate by 0.5."""
    from scipy import stats

    hits = 0
    for seed in range(600):
        rng = np.random.default_rng(seed)
        values = np.convolve(rng.normal(size=400 + 30), 0.5 ** np.arange(31), mode="valid")
        design = design_of(None, len(values))
        assert design.covers is Covers.PASSAGES
        hits += abs(values.mean()) <= stats.t.ppf(0.95, design.freedom) * standard_error(values, design)
    assert 0.86 <= hits / 600 <= 0.93


def test_a_unit_is_a_document_and_short_ones_are_joined():
    documents = (0,) * 10 + (1, 1, 2, 3, 4, 4, 4, 4, 4, 4) + (5,) * 5 + (6,) * 2 + (7,) * 8 + (8,) * 9 + (9,) * 10
    design = design_of(Sample("first", 999, documents), len(documents))  # at least four windows to a unit
    found = [tuple(sorted({documents[i] for i in np.flatnonzero(design.units == u)})) for u in range(design.n_units)]
    assert found == [(0,), (1, 2, 3), (4,), (5,), (6, 7), (8,), (9,)]
    assert (design.freedom, design.share, design.covers) == (6, 0.0, Covers.TEXTS)


@pytest.mark.parametrize("documents", [(), (0,) * 40, tuple(np.repeat(np.arange(4), 10).tolist())])
def test_without_enough_documents_units_are_stretches_and_the_error_says_so(documents):
    design = design_of(Sample("first", None, documents), 40)
    assert design.covers is Covers.PASSAGES
    assert np.bincount(design.units).tolist() == [8] * 5  # of √40 windows or more
    assert (np.diff(design.units) >= 0).all()


def test_two_windows_of_an_earlier_record_still_have_an_error():
    assert standard_error([1.0, 3.0], design_of(None, 2)) == pytest.approx(1.0)


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(0, 50))
def test_a_random_part_of_a_spread_sample_is_a_random_sample_of_the_text(n, seed):
    rng = np.random.default_rng(seed)
    whole = design_of(Sample("spread", 400), 40)
    places = rng.permutation(40)[:n]
    some, values = whole.at(places), rng.normal(size=n)
    if n < 40 and (np.bincount(whole.strata[places])[np.unique(whole.strata[places])] < 2).any():
        expected = values.std(ddof=1) / math.sqrt(n) * math.sqrt(1 - n / 400)
        assert standard_error(values, some) == pytest.approx(expected)
    assert some.share == pytest.approx(n / 400)
    assert some.n_units == n


def test_a_random_part_of_whole_documents_keeps_them_together():
    whole = DESIGNS["documents"]
    places = np.random.default_rng(0).permutation(39)[:20]
    some = whole.at(places)
    groups = {tuple(np.flatnonzero(some.units == u)) for u in range(some.n_units)}
    assert groups == {tuple(np.flatnonzero(whole.units[places] == u)) for u in np.unique(whole.units[places])}


def test_few_units_need_more_errors():
    """Two standard errors of a normal distribution are passed in 4.6 % of cases; so is 2.87 of t with four degrees."""
    assert errors_needed([4, 1e9, math.nan, 0]) == pytest.approx([2.869, 2.0, 2.0, 2.0], abs=1e-3)


def test_clustered_windows_are_worth_fewer():
    values, documents = text_of_documents(np.random.default_rng(4))
    design = design_of(Sample("first", None, tuple(documents.tolist())), len(values))
    assert effective(values, np.ones(len(values)), design) < 0.3 * len(values)
    assert isinstance(design, Design)
