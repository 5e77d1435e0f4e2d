"""Contract and oracle: calibration windows that advance in chunks give what one batch gives."""

import threading

import pytest
import torch

from ptq_eval.measure import calibration
from ptq_eval.measure import paused_forward as lockstep
from ptq_eval.measure.calibration import chunks_of, input_groups, quantize
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from quantizers import QuantizationError, Scheme, get_quantizer
from quantizers.rtn import RTN
from tests.support import models as core_models
from tests.support.moe import ExpertsConfig
from tests.support.quantizers import Spy

SCHEME = Scheme(3, 16)
ARCHITECTURES = ("llama", "gpt2", "gpt-neox", "opt", "gptj", "experts", "cold experts")


def built(architecture):
    chosen = {"experts": ExpertsConfig(), "cold experts": ExpertsConfig(cold=1)}.get(architecture, architecture)
    return LanguageModel(core_models.build(chosen))


@pytest.fixture
def small_chunks(monkeypatch):
    """Two windows of 24 tokens a chunk, the last one of a single window."""
    monkeypatch.setattr(calibration, "_CHUNK_TOKENS", {"cpu": 48})


@pytest.fixture
def ids():
    return core_models.ids(7, 24)


def variants_of(model, ids, *, sequential):
    kinds = [("gptq", 2), ("gptq", 4)] if sequential else [("gptq", 3), ("awq", 3), ("gptq", 2)]
    variants = [Variant(get_quantizer(name), Scheme(bits, 16)) for name, bits in kinds]
    quantize(model, variants, ids, sequential=sequential)
    return variants


def test_chunks_are_a_function_of_shapes(small_chunks, ids):
    model = built("llama")
    assert [len(chunk) for chunk in chunks_of(model, ids)] == [2, 2, 2, 1]
    assert [len(chunk) for chunk in chunks_of(model, core_models.ids(3, 64))] == [1, 1, 1], "one window at least"


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunks_give_what_one_batch_gives(architecture, sequential, ids, monkeypatch):
    whole = variants_of(built(architecture), ids, sequential=sequential)
    monkeypatch.setattr(calibration, "_CHUNK_TOKENS", {"cpu": 48})
    for variant, expected in zip(variants_of(built(architecture), ids, sequential=sequential), whole):
        assert variant.skipped == expected.skipped
        assert variant.weights.keys() == expected.weights.keys()
        off = torch.cat([(variant.weights[name] - expected.weights[name]).abs().flatten() for name in variant.weights])
        assert (off > 1e-5).float().mean() < 0.001


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_token_is_counted_once(architecture, ids, monkeypatch):
    """Also for an expert that the first windows do not reach: chunks wait for each other in the model's order."""
    Spy.seen.clear()
    quantize(built(architecture), [Variant(Spy(), SCHEME)], ids)
    whole = list(Spy.seen)
    Spy.seen.clear()
    monkeypatch.setattr(calibration, "_CHUNK_TOKENS", {"cpu": 24})
    model = built(architecture)
    assert {frozenset(g) for g in input_groups(model, ids)} == {frozenset(g) for g in input_groups(model, ids)}
    quantize(model, [Variant(Spy(), SCHEME)], ids)
    assert [(size, tokens) for size, _, _, tokens in Spy.seen] == [(size, tokens) for size, _, _, tokens in whole]
    for one, other in zip(Spy.seen, whole):
        assert torch.allclose(one[1], other[1], rtol=1e-4, atol=1e-5 * float(other[1].abs().max()))


def test_chunks_are_bit_identical_from_run_to_run(small_chunks, ids):
    one, other = (variants_of(built("llama"), ids, sequential=True) for _ in range(2))
    for a, b in zip(one, other):
        assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


def test_an_error_ends_every_thread_and_leaves_no_hook(small_chunks, ids):
    model, before = built("llama"), threading.active_count()
    failing = Variant(get_quantizer("gptq"), Scheme(3, 1000))
    quantize(model, [failing], ids)
    assert "group_size" in failing.failure
    assert threading.active_count() == before
    assert not any(module._forward_pre_hooks for module in model.linears().values())

    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("inside the model")

    model.module.model.layers[1].mlp.act_fn.forward = broken
    with pytest.raises(ZeroDivisionError, match="inside the model"):
        quantize(model, [Variant(get_quantizer("gptq"), SCHEME)], ids)
    assert threading.active_count() == before


def test_one_chunk_needs_no_thread(ids, monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("a thread was made")

    monkeypatch.setattr(lockstep, "_Chunk", never)
    assert variants_of(built("llama"), ids, sequential=False)[0].weights


class Grid(RTN):
    """Writes down each call, and fails for any grid that has 2 bits in it."""

    calls = []
    needs_stats = True

    def quantize_grid(self, weights, schemes, stats=None):
        self.calls.append((len(weights), [scheme.bits for scheme in schemes]))
        if any(scheme.bits == 2 for scheme in schemes):
            raise QuantizationError("2 is too few")
        return super().quantize_grid(weights, schemes, stats)


def test_variants_of_one_quantizer_are_solved_in_one_call_and_alone_where_that_fails(ids):
    model = built("llama")
    Grid.calls.clear()
    variants = [Variant(Grid(), Scheme(bits, 16)) for bits in (3, 4)]
    quantize(model, variants, ids)
    assert Grid.calls == [(len(group), [3, 4]) for group in input_groups(model, ids)]
    Grid.calls.clear()
    variants = [Variant(Grid(), Scheme(bits, 16)) for bits in (2, 4)]
    quantize(model, variants, ids)
    assert Grid.calls[:3] == [(3, [2, 4]), (3, [2]), (3, [4])]
    assert variants[0].skipped == dict.fromkeys(model.linears(), "2 is too few")
    assert not variants[0].weights
    assert variants[1].weights.keys() == model.linears().keys()


def test_sequential_variants_share_their_first_input(ids):
    model = built("llama")
    Grid.calls.clear()
    quantize(model, [Variant(Grid(), Scheme(bits, 16)) for bits in (3, 4)], ids, sequential=True)
    groups = [len(group) for group in input_groups(model, ids)]
    alone = [[(size, [bits]) for size in groups[1:]] for bits in (3, 4)]
    assert Grid.calls == [(groups[0], [3, 4]), *alone[0], *alone[1]]


def test_schemes_are_solved_together_only_as_far_as_memory_goes(ids):
    """One at a time, or some at a time: the same weights as all at once."""
    model, bits = built("llama"), [3, 4, 5, 8]
    sizes = [(len(group), sum(model.weight(name).numel() for name in group)) for group in input_groups(model, ids)]
    largest = max(size for _, size in sizes)
    found = {}
    for at_once in (0, 1, 2, 4):
        Grid.calls.clear()
        variants = [Variant(Grid(), Scheme(b, 16)) for b in bits]
        quantize(model, variants, ids, memory=calibration._PER_SCHEME * largest * at_once)
        most = [(count, max(1, at_once * largest // size)) for count, size in sizes]
        assert Grid.calls == [(count, bits[i : i + k]) for count, k in most for i in range(0, len(bits), k)]
        found[at_once] = [variant.weights for variant in variants]
    for some in found.values():
        for variant, other in zip(some, found[4]):
            assert all(torch.equal(variant[name], other[name]) for name in model.linears())
