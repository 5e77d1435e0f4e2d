"""Oracle: what single tokens say, against full logits of both models; contract: what a record keeps of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.scoring import Scores
from ptq_eval.measure.sweep import _record
from ptq_eval.measure.tokens import PERCENTILES, per_token, summary
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.records import Measurement
from ptq_eval.results.tokens import COLUMNS, of_tokens
from ptq_eval.sampling import design_of, independent
from tests.measure.test_evaluate import KINDS, rounded
from tests.support import models as core_models
from tests.support.steps import measured

WINDOWS, TIME = 10, 24


def naive(model, ids, weights):
    """(KL, loss before, loss after) of every scored token, [windows, tokens] each, in float64 from full logits."""
    with torch.no_grad():
        p = model.logits(ids)[:, :-1].double().softmax(-1)
        with model.carrying(model.parameters_of(weights)):
            q = model.logits(ids)[:, :-1].double().softmax(-1)
    targets = ids[:, 1:, None]
    kl = (p * (p.log() - q.log())).sum(-1)
    return kl.numpy(), *(-each.gather(-1, targets)[..., 0].log().numpy() for each in (p, q))


def percentile(values, percent):
    """Between the two nearest of the sorted values, by linear interpolation."""
    ordered = sorted(values.ravel().tolist())
    place = percent / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return (1 - (place - low)) * ordered[low] + (place - low) * ordered[high]


def agrees(found, kl, before, after):
    change = np.exp(-after) - np.exp(-before)
    for percent in PERCENTILES:
        assert found["kl"][f"{percent:g}"] == pytest.approx(percentile(kl, percent), rel=1e-4, abs=1e-5)
        assert found["delta_p"][f"{percent:g}"] == pytest.approx(percentile(change, percent), rel=1e-4, abs=1e-6)
    assert found["delta_p_sums"] == pytest.approx(change.sum(1).tolist(), rel=1e-4, abs=1e-5)
    assert found["delta_p2_sums"] == pytest.approx((change**2).sum(1).tolist(), rel=1e-4, abs=1e-7)
    moments = [np.mean(before * after) - before.mean() * after.mean(), before.var(), after.var()]
    assert found["loss_correlation"] == pytest.approx(moments[0] / math.sqrt(moments[1] * moments[2]), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_summary_is_that_of_full_logits(kind):
    architecture, include_head, _ = KINDS[kind]
    model = LanguageModel(core_models.build(architecture), include_head=include_head)
    ids = core_models.ids(WINDOWS, TIME)
    for bits in (2, 8):
        variant = rounded(model, bits)
        ((_, scores),) = Evaluator(model, ids, batch=3, tokens=True).score([variant])
        agrees(summary(scores.tokens), *naive(model, ids, variant))


def test_scores_are_the_same_with_single_tokens_and_without():
    model, ids = LanguageModel(core_models.build("llama")), core_models.ids(WINDOWS, TIME)
    variants = [rounded(model, bits) for bits in (2, 4)]
    with_tokens = Evaluator(model, ids, batch=4, tokens=True).score(variants)
    without = Evaluator(model, ids, batch=4).score(variants)
    for (_, mine), (_, theirs) in zip(with_tokens, without):
        assert theirs.tokens == []
        assert (mine.nll, mine.kl, mine.agree) == (theirs.nll, theirs.kl, theirs.agree)
    assert Evaluator(model, ids, batch=4, tokens=True).score(variants[::-1]) == with_tokens[::-1]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.floats(0, 3), st.integers(0, 999))
def test_any_numbers_are_summarised_as_by_sorting(windows, time, spread, seed):
    rng = np.random.default_rng(seed)
    kl, before = rng.exponential(spread, (windows, time)), rng.exponential(3, (windows, time)).astype(np.float32)
    after = np.abs(before + rng.normal(0, spread + 0.01, before.shape)).astype(np.float32)
    found = summary(per_token(*(torch.tensor(v.astype(np.float32).ravel()) for v in (kl, before, after)), windows))
    if windows * time > 1:
        agrees(found, kl, *(v.astype(float) for v in (before, after)))
    else:
        assert found["loss_correlation"] is None
        assert list(found["kl"].values()) == pytest.approx([float(kl[0, 0])] * len(PERCENTILES), rel=1e-6)


def test_identical_models_have_no_change_at_all():
    model, ids = LanguageModel(core_models.build("llama")), core_models.ids(WINDOWS, TIME)
    own = {name: model.weight(name).clone() for name in model.linears()}
    ((_, scores),) = Evaluator(model, ids, tokens=True).score([own])
    found = summary(scores.tokens)
    assert set(found["delta_p"].values()) == {0.0}
    assert found["loss_correlation"] == pytest.approx(1)


def test_scores_are_kept_to_the_last_bit():
    scores = Scores(
        [1.5, 2.5], [0.1, 0.2], [3, 4], [np.float32([0.1, 2, 3]).tobytes(), np.float32([1, 2, 3]).tobytes()]
    )
    assert Scores.from_lists(scores.to_lists()) == scores
    assert scores.at([1]).tokens == scores.tokens[1:]


@pytest.fixture(scope="module")
def records(saved, small):
    return measured(saved("llama").parent, **{**small, "quantizers": ("rtn",), "bits": (2, 4), "eval_windows": 40})


def test_a_record_has_the_summary_and_comes_back(records):
    _, (full, *quantized) = records
    assert full.tokens == {}
    for record in quantized:
        assert record.tokens.keys() == {"kl", "delta_p", "loss_correlation", "delta_p_sums", "delta_p2_sums"}
        assert len(record.tokens["delta_p_sums"]) == len(record.nll) == 40
        assert record.tokens["kl"]["0"] <= sum(record.kl) / sum(record.n_tokens) <= record.tokens["kl"]["100"]
        assert Measurement.from_dict(record.to_dict()) == record


def test_a_record_of_an_earlier_version_has_no_such_columns(records):
    _, (_, record, _) = records
    old = record.to_dict()
    del old["tokens"]
    assert of_tokens(Measurement.from_dict(old), None) == {}


def test_columns_are_of_the_record_with_errors_over_windows(records):
    """Against a bootstrap over windows, of the ratio of sums each time."""
    _, (_, record, _) = records
    design = independent(len(record.nll))
    row = of_tokens(record, design)
    assert set(row) == set(COLUMNS)
    sums, squares, tokens = (np.array(v) for v in (*_sums(record), record.n_tokens))
    draws = np.random.default_rng(0).integers(0, len(tokens), (4000, len(tokens)))
    means = sums[draws].sum(1) / tokens[draws].sum(1)
    rms = np.sqrt(squares[draws].sum(1) / tokens[draws].sum(1))
    assert row["delta_p"] == pytest.approx(sums.sum() / tokens.sum())
    assert row["delta_p_rms"] == pytest.approx(math.sqrt(squares.sum() / tokens.sum()))
    assert row["delta_p_se"] == pytest.approx(means.std(), rel=0.08)
    assert row["delta_p_rms_se"] == pytest.approx(rms.std(), rel=0.08)
    whole = design_of(record.trial.sample, len(record.nll))
    assert of_tokens(record, whole)["delta_p_rms_se"] != row["delta_p_rms_se"]


def _sums(record):
    return record.tokens["delta_p_sums"], record.tokens["delta_p2_sums"]


def test_a_failed_record_has_none(records):
    work, (_, record, _) = records
    scores = Scores([math.nan] * 40, list(record.kl), list(record.agree), [np.float32([0, 1, 1]).tobytes()] * 40)
    failed = _record(work, record.trial, scores)
    assert failed.status == "failed"
    assert failed.tokens == {}
