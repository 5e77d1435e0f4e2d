"""Oracle: loss, KL and agreement against torch.nn.functional in float64; paired errors against a bootstrap."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ptq_eval.measure.calibration import quantize
from ptq_eval.measure.evaluate import batch_size, evaluate
from ptq_eval.measure.scoring import Factored, Whole, scorer
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.results.table import mean_and_error
from quantizers import Scheme, get_quantizer
from tests.support import models as core_models
from tests.support.steps import measured

ROWS, COLUMNS = 10, 24
TOKENS = COLUMNS - 1


@pytest.fixture(scope="module")
def model():
    return LanguageModel(core_models.build("llama"))


@pytest.fixture(scope="module")
def ids():
    return core_models.ids(ROWS, COLUMNS)


@pytest.fixture(scope="module")
def variants(model):
    return [rounded(model, bits) for bits in (2, 3, 8)]


def rounded(model, bits):
    variant = Variant(get_quantizer("rtn"), Scheme(bits, 16))
    quantize(model, [variant], None)
    return variant.weights


def oracle(model, ids, weights):
    """(nll, kl, agree) per window, in float64."""
    with torch.no_grad():
        p = functional.log_softmax(model.logits(ids)[:, :-1].double(), -1)
        with model.carrying(model.parameters_of(weights)):
            q = functional.log_softmax(model.logits(ids)[:, :-1].double(), -1)
    nll = functional.cross_entropy(q.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    kl = functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    return nll.sum(1).tolist(), kl.sum(1).tolist(), (p.argmax(-1) == q.argmax(-1)).sum(1).tolist()


KINDS = {
    "tied head": ("llama", False, Factored),
    "transposed weights": ("gpt2", False, Factored),
    "head with a bias": ("gptj", False, Factored),
    "scaled logits": ("cohere", False, Whole),
    "quantized head": ("llama", True, Factored),
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_of_scoring_equal_torch_in_float64(kind, ids):
    architecture, include_head, way = KINDS[kind]
    model = LanguageModel(core_models.build(architecture), include_head=include_head)
    assert type(scorer(model, ids)) is way
    for bits in (2, 8):
        variant = rounded(model, bits)
        full, (score,) = evaluate(model, ids, [variant], batch=3)
        nll, kl, agree = oracle(model, ids, variant)
        assert full.nll == pytest.approx(oracle(model, ids, {})[0], rel=1e-6)
        assert score.nll == pytest.approx(nll, rel=1e-6)
        assert score.kl == pytest.approx(kl, abs=1e-5 * TOKENS)
        assert score.agree == agree


def test_scores_equal_torch_in_float64(model, ids, variants):
    full, scores = evaluate(model, ids, variants)
    assert full.nll == pytest.approx(oracle(model, ids, {})[0], rel=1e-6)
    assert full.kl == full.agree == []
    for variant, score in zip(variants, scores):
        nll, kl, agree = oracle(model, ids, variant)
        assert score.nll == pytest.approx(nll, rel=1e-6)
        assert score.kl == pytest.approx(kl, abs=1e-5 * TOKENS)
        assert score.agree == agree
    assert min(scores[0].kl) > 0.1, "the models compared are too much alike for this test"
    assert 0 < sum(scores[0].agree) < ROWS * TOKENS


def test_scores_do_not_depend_on_the_batch_beyond_rounding(model, ids, variants):
    results = [evaluate(model, ids, variants, batch=batch) for batch in (1, 3, ROWS)]
    for full, scores in results[1:]:
        assert full.nll == pytest.approx(results[0][0].nll, rel=1e-6)
        for score, first in zip(scores, results[0][1]):
            assert score.nll == pytest.approx(first.nll, rel=1e-6)
            assert score.kl == pytest.approx(first.kl, abs=1e-5 * TOKENS)


def test_scores_are_bit_identical_again_and_in_any_company(model, ids, variants):
    """What resuming rests on: a variant's scores do not depend on the others in the same sweep."""
    full, scores = evaluate(model, ids, variants)
    assert evaluate(model, ids, variants) == (full, scores)
    assert evaluate(model, ids) == (full, [])
    for variant, score in zip(variants, scores):
        assert evaluate(model, ids, [variant]) == (full, [score])
    assert evaluate(model, ids, variants[::-1])[1] == scores[::-1]


def test_identical_weights_lose_nothing(model, ids):
    own = {name: model.weight(name).clone() for name in model.linears()}
    full, (score,) = evaluate(model, ids, [own])
    assert score.nll == pytest.approx(full.nll, abs=1e-6 * TOKENS)
    assert score.kl == pytest.approx([0.0] * ROWS, abs=1e-6 * TOKENS)
    assert score.agree == [TOKENS] * ROWS


@settings(max_examples=15, deadline=None)
@given(noise=st.floats(0, 1), seed=st.integers(0, 1000))
def test_kl_is_never_negative_beyond_rounding(noise, seed):
    model = LanguageModel(core_models.build("gpt2", seed=seed % 3))
    generator = torch.Generator().manual_seed(seed)
    variant = {
        name: model.weight(name) + noise * torch.randn(model.weight(name).shape, generator=generator)
        for name in model.linears()
    }
    _, (score,) = evaluate(model, core_models.ids(4, 16, seed=seed), [variant])
    assert min(score.kl) >= -1e-6 * 15


def test_a_tie_for_the_first_place_is_an_agreement():
    """Every logit is 0 before and after: the first of the equals is as good as any other."""
    module = core_models.build("gpt-neox")
    module.get_output_embeddings().weight.data.zero_()
    model, ids = LanguageModel(module), core_models.ids()
    _, (score,) = evaluate(model, ids, [rounded(model, 2)])
    assert score.agree == [ids.shape[1] - 1] * len(ids)
    assert score.nll == pytest.approx([(ids.shape[1] - 1) * math.log(core_models.VOCAB)] * len(ids), rel=1e-6)
    assert score.kl == pytest.approx([0.0] * len(ids), abs=1e-5)


def test_the_batch_is_a_function_of_shapes(model):
    assert batch_size(model, 24) == batch_size(LanguageModel(core_models.build("llama", seed=5)), 24) >= 1
    assert batch_size(model, 2**24) == 1
    assert batch_size(model, 2) > batch_size(model, 200) > 1


def test_every_window_is_ticked_once_per_model(model, ids, variants):
    ticks = []
    evaluate(model, ids, variants, batch=4, tick=ticks.append)
    assert sum(ticks) == ROWS * (1 + len(variants))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_are_scored_in_float32(saved, ids, dtype):
    model = LanguageModel.load(saved("llama"), dtype=dtype)
    full, (score,) = evaluate(model, ids, [rounded(model, 4)])
    assert full.nll == pytest.approx(oracle(model, ids, {})[0], rel=1e-6)
    nll, kl, _ = oracle(model, ids, rounded(model, 4))
    assert score.nll == pytest.approx(nll, rel=1e-6)
    assert score.kl == pytest.approx(kl, abs=1e-5 * TOKENS)


def test_attention_is_the_fused_kernel_where_there_is_one(saved):
    """And the record says which it was."""
    for architecture in ("llama", "gpt2"):
        assert LanguageModel.load(saved(architecture)).module.config._attn_implementation == "sdpa"


@pytest.fixture(scope="module")
def records(saved, small):
    options = {**small, "quantizers": ("rtn",), "bits": (2, 4), "eval_windows": 200}
    return measured(saved("llama").parent, **options)


def test_delta_s_error_is_that_of_a_bootstrap_over_windows(records):
    """Oracle: 4,000 resamples of whole windows, the ratio of sums each time."""
    _, (full, *quantized) = records
    assert full.provenance["attention"] == "sdpa"
    rng = np.random.default_rng(0)
    for record in quantized:
        difference, tokens = np.subtract(record.nll, full.nll), np.asarray(record.n_tokens)
        delta, error = mean_and_error(difference, tokens)
        draws = rng.integers(0, len(tokens), (4000, len(tokens)))
        resampled = difference[draws].sum(1) / tokens[draws].sum(1)
        assert delta == pytest.approx(record.loss - full.loss, abs=1e-12)
        assert error == pytest.approx(resampled.std(), rel=0.06)
    unpaired = math.hypot(*(mean_and_error(r.nll, r.n_tokens)[1] for r in (full, quantized[1])))
    assert error < unpaired / 2, "pairing gains nothing"


def test_the_error_of_windows_of_unequal_length_is_that_of_a_bootstrap():
    rng = np.random.default_rng(1)
    tokens = rng.integers(20, 200, 300)
    values = tokens * rng.normal(0.1, 0.05, 300)
    mean, error = mean_and_error(values, tokens)
    draws = rng.integers(0, 300, (4000, 300))
    assert mean == pytest.approx(values.sum() / tokens.sum())
    assert error == pytest.approx((values[draws].sum(1) / tokens[draws].sum(1)).std(), rel=0.06)
    assert math.isnan(mean_and_error([1.0], [2])[1])


def test_bits_per_byte_are_those_of_the_scored_text(records, tokenizer, texts):
    """The text is ASCII: the bytes of a window's scored tokens are their characters."""
    work, (full, *_) = records
    decoded = [tokenizer.decode(window[1:]) for window in work.evaluation.ids]
    assert full.n_bytes == tuple(map(len, decoded))
    nats = sum(full.nll)
    assert full.bits_per_byte == pytest.approx(nats / math.log(2) / sum(map(len, decoded)))
    assert full.perplexity == pytest.approx(math.exp(nats / sum(full.n_tokens)))
    with open(texts.evaluation, encoding="utf-8") as handle:
        assert decoded[0] in handle.read()
