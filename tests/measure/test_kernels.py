"""Oracle: the blockwise sums against torch in float64, with and without numba; contract: what they do to odd logits."""

import math

import pytest
import torch

from ptq_eval.measure.kernels import plain
from ptq_eval.measure.kernels.sums import Sums
from ptq_eval.measure.scoring import fastest

TOKENS, VOCABULARY = 7, 333


@pytest.fixture(params=["torch", "numba"])
def reduce(request):
    if request.param == "torch":
        return plain
    pytest.importorskip("numba")
    from ptq_eval.measure.kernels import cpu

    return cpu


def reduced(module, z, q, targets, columns):
    """(full, variant) sums over blocks of so many columns."""
    full, variant = (Sums.zero(len(z), z.device) for _ in range(2))
    for first in range(0, z.shape[1], columns):
        block = (each[:, first : first + columns].contiguous() for each in (z, q))
        ours, theirs = block
        e = torch.empty_like(ours)
        module.full_precision(ours, e, targets, first, full)
        module.variant(theirs, e, targets, first, full, variant)
    return full, variant


def logits(spread=4.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = spread * torch.randn(TOKENS, VOCABULARY, generator=generator)
    q = z + 0.3 * spread * torch.randn(TOKENS, VOCABULARY, generator=generator)
    return z, q, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


@pytest.mark.parametrize("columns", [1, 64, 100, VOCABULARY])
@pytest.mark.parametrize(("spread", "offset"), [(0.01, 0.0), (4.0, 0.0), (30.0, -200.0), (4.0, 1000.0)])
def test_sums_equal_torch_in_float64(reduce, columns, spread, offset):
    z, q, targets = logits(spread)
    z, q = z + offset, q + offset
    full, variant = reduced(reduce, z, q, targets, columns)
    log_p, log_q = (each.double().log_softmax(-1) for each in (z, q))
    close = {"rtol": 1e-6, "atol": 1e-6 + 3e-7 * abs(offset)}
    torch.testing.assert_close(full.nll(), -log_p.gather(1, targets[:, None])[:, 0], **close)
    torch.testing.assert_close(variant.nll(), -log_q.gather(1, targets[:, None])[:, 0], **close)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(full.kl(variant), kl, rtol=1e-5, atol=2e-6 * (1 + spread) + 1e-6 * abs(offset))
    assert full.top.long().tolist() == z.argmax(-1).tolist()
    assert variant.top.tolist() == q.gather(1, z.argmax(-1)[:, None])[:, 0].tolist()
    assert variant.highest.tolist() == q.amax(-1).tolist()


def test_a_loss_is_the_same_to_the_last_bit_with_variants_and_without(reduce):
    z, q, targets = logits()
    full, _ = reduced(reduce, z, q, targets, 100)
    alone = Sums.zero(TOKENS, z.device)
    for first in range(0, VOCABULARY, 100):
        reduce.full_precision(z[:, first : first + 100].contiguous(), None, targets, first, alone)
    assert torch.equal(alone.nll(), full.nll())


def test_equal_logits_have_no_kl_at_all(reduce):
    z, _, targets = logits()
    full, variant = reduced(reduce, z, z, targets, 100)
    assert full.kl(variant).tolist() == [0.0] * TOKENS


def test_entries_that_a_model_masks_count_for_nothing(reduce):
    """The least float32 in place of minus infinity, as models write it."""
    z, q, targets = logits()
    kept, targets = VOCABULARY // 2, targets % (VOCABULARY // 2)
    expected = reduced(reduce, z[:, :kept].contiguous(), q[:, :kept].contiguous(), targets, kept)
    for each in (z, q):
        each[:, kept:] = torch.finfo(torch.float32).min
    found = reduced(reduce, z, q, targets, 100)
    torch.testing.assert_close(found[1].nll(), expected[1].nll(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[0].kl(found[1]), expected[0].kl(expected[1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("least", [-math.inf, torch.finfo(torch.float32).min, torch.finfo(torch.bfloat16).min])
@pytest.mark.parametrize("masked", [slice(0, 100), slice(0, 130), slice(100, 200), slice(290, None)], ids=str)
def test_a_whole_block_may_be_masked(reduce, masked, least):
    """The first, one between, the last; and a target among them is infinitely unlikely."""
    z, q, targets = logits()
    allowed = [entry for entry in range(VOCABULARY) if entry not in range(VOCABULARY)[masked]]
    places = torch.arange(TOKENS) * 7
    expected = reduced(reduce, z[:, allowed].contiguous(), q[:, allowed].contiguous(), places, len(allowed))
    for each in (z, q):
        each[:, masked] = least
    targets = torch.tensor(allowed)[places]
    found = reduced(reduce, z.clone(), q.clone(), targets, 100)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one.nll(), other.nll(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[0].kl(found[1]), expected[0].kl(expected[1]), rtol=0, atol=1e-5)
    targets[3] = range(VOCABULARY)[masked][5]
    full, variant = reduced(reduce, z, q, targets, 100)
    assert [math.isinf(loss) for loss in full.nll()] == [token == 3 for token in range(TOKENS)]
    assert [math.isinf(loss) for loss in variant.nll()] == [token == 3 for token in range(TOKENS)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_give_a_loss_that_is_none(reduce, value):
    z, q, targets = logits()
    z[2, 5] = q[3, 7] = value
    full, variant = reduced(reduce, z, q, targets, 100)
    assert [math.isfinite(loss) for loss in full.nll().tolist()] == [token != 2 for token in range(TOKENS)]
    assert [math.isfinite(loss) for loss in variant.nll().tolist()] == [token != 3 for token in range(TOKENS)]


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_the_compiled_kernels_are_used_where_numba_is(backend, monkeypatch):
    from quantizers import kernels

    monkeypatch.setattr(kernels, "backend", lambda device: backend)
    if backend == "numba":
        pytest.importorskip("numba")
    assert fastest(torch.device("cpu")).__name__.rpartition(".")[2] == {"torch": "plain", "numba": "cpu"}[backend]
