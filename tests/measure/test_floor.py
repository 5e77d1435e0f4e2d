"""Oracle and contract: what delta would be for no reason, against slow calculations that share no code with it."""

import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.measure import floor
from ptq_eval.measure.calibration import quantize
from ptq_eval.measure.floor import Floor, Slopes, Unmeasured, moved, places
from ptq_eval.measure.gradients import mean_gradient
from ptq_eval.measure.kept import Kept
from ptq_eval.measure.memory import Budget
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from quantizers import Scheme, get_quantizer
from tests.theory.support import build, build_gpt2, windows


def mean_loss(model, ids, weights):
    """The mean loss per token of the model with these weights, differentiable in them."""
    named = {f"{name}.weight": weight for name, weight in weights.items()}
    out = torch.func.functional_call(model.module, named, kwargs={"input_ids": ids, "use_cache": False})
    return torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def by_autograd(model, ids):
    weights = {name: model.weight(name).detach().clone().requires_grad_() for name in model.linears()}
    return dict(zip(weights, torch.autograd.grad(mean_loss(model, ids, weights), list(weights.values()))))


def rounded(model, bits=4):
    variant = Variant(get_quantizer("rtn"), Scheme(bits, 4))
    quantize(model, [variant], None)
    return variant.weights


def session(model, ids, total=1e12, offloaded=False):
    return SimpleNamespace(model=model, evaluation=ids, budget=Budget(total), offloaded=offloaded, kept=None)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_gradient_is_that_of_the_mean_loss(batch):
    model, ids = build(), windows(8)
    found, wanted = mean_gradient(model, ids, batch=batch), by_autograd(model, ids)
    for name in model.linears():
        assert torch.allclose(found[name], wanted[name], atol=1e-6), name


def test_the_gradient_of_a_transposed_matrix_is_out_by_in():
    model = build_gpt2()
    for name, gradient in mean_gradient(model, windows(4)).items():
        assert gradient.shape == model.weight(name).shape


def test_the_spread_of_roundings_is_that_of_flipped_rows():
    model, ids = build(), windows(16)
    gradient = by_autograd(model, ids)
    weights = rounded(model)
    generator = torch.Generator().manual_seed(0)
    moves = torch.zeros(20_000)
    for name, weight in weights.items():
        rows = (gradient[name] * (weight - model.weight(name))).sum(1)
        signs = torch.randint(2, (len(moves), len(rows)), generator=generator) * 2.0 - 1
        moves += signs @ rows
    same = Slopes(gradient, gradient)
    assert same.rounding(model, weights) == pytest.approx(float(moves.std()), rel=0.03)


@pytest.mark.slow
def test_two_samples_leave_out_their_own_noise():
    """One gradient of few windows overstates the spread; the product of two halves does not, on average."""
    model, weights = build(), rounded(build())
    whole = windows(4000, seed=5)
    gradient = by_autograd(model, whole)
    truth = Slopes(gradient, gradient).rounding(model, weights) ** 2
    crossed, single = [], []
    for start in range(0, 4000, 16):
        ids = whole[start : start + 16]
        a, b, both = by_autograd(model, ids[0::2]), by_autograd(model, ids[1::2]), by_autograd(model, ids)
        crossed.append(product(model, weights, a, b))
        single.append(product(model, weights, both, both))
    error = np.std(crossed) / math.sqrt(len(crossed))
    assert abs(np.mean(crossed) - truth) < 4 * error + 0.1 * truth
    assert np.mean(single) > truth + 4 * error


def product(model, weights, first, second):
    """The variance before it is cut off at zero."""
    errors = {name: weight - model.weight(name) for name, weight in weights.items()}
    return sum(float((first[n] * e).sum(1) @ (second[n] * e).sum(1)) for n, e in errors.items())


def test_more_bits_leave_less_to_chance():
    model, ids = build(), windows(32)
    slopes = Slopes.of(model, ids)
    spreads = [slopes.rounding(model, rounded(model, bits)) for bits in (8, 4)]
    assert 0 < spreads[0] < spreads[1] / 4


def test_arithmetic_in_float32_moves_nothing_and_in_bfloat16_something():
    ids = windows(16)
    narrow = build()
    narrow.module.to(torch.bfloat16)
    for model, bounds in ((build(), (0.0, 1e-6)), (narrow, (1e-5, 1.0))):
        nll = floor.evaluate(model, ids)[0].nll
        found = Floor(session(model, ids)).numerics(nll)["numerics"]
        assert bounds[0] <= found <= bounds[1]


@pytest.mark.parametrize("threads", [1, 2])
def test_windows_are_scored_again_on_one_thread(threads, monkeypatch):
    """Two threads of a process that has one core spend their time waiting for each other."""
    seen, scored = [], floor.evaluate
    monkeypatch.setattr(floor, "evaluate", lambda *a, **o: seen.append(torch.get_num_threads()) or scored(*a, **o))
    model, ids, before = build(), windows(8), torch.get_num_threads()
    nll = scored(model, ids)[0].nll
    torch.set_num_threads(threads)
    try:
        Floor(session(model, ids)).numerics(nll)
        assert (seen, torch.get_num_threads()) == ([1], threads)
    finally:
        torch.set_num_threads(before)


@given(common=st.floats(-1e-2, 1e-2), spread=st.floats(0, 1e-2), evaluated=st.integers(16, 1000))
def test_what_moves_all_windows_alike_does_not_average_out(common, spread, evaluated):
    alternating = np.array([1.0, -1.0] * 8)
    found = moved(common + spread * alternating, evaluated)
    variance = spread**2 * 16 / 15
    expected = 2 * (max(0.0, common**2 - variance / 16) + variance / evaluated)
    assert found == pytest.approx(math.sqrt(expected), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("ids", "options", "why"),
    [
        (windows(8), {"offloaded": True}, Unmeasured.OFFLOADED),
        (windows(1), {}, Unmeasured.ONE_WINDOW),
        (windows(8), {"total": 1000}, Unmeasured.MEMORY),
    ],
)
def test_what_is_not_measured_says_why(ids, options, why):
    model = build()
    found = Floor(session(model, ids, **options))
    assert found.rounding(rounded(model)) == {"rounding_unmeasured": why.value}
    assert found.second_order() == {"second_order_unmeasured": why.value}
    assert found.nbytes == 0


def test_a_layer_without_backward_pass_leaves_the_floor_unknown():
    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *_):
            raise NotImplementedError("no backward pass")

    model = build()
    layer = model.module.get_submodule("model.layers.0")
    layer.register_forward_hook(lambda _m, _i, out: Refuses.apply(out) if torch.is_tensor(out) else out)
    assert isinstance(model, LanguageModel)
    assert Floor(session(model, windows(8))).slopes is Unmeasured.NO_GRADIENT


@given(count=st.integers(1, 40), of=st.integers(1, 200))
def test_places_are_spread_and_inside(count, of):
    found = places(count, of)
    assert len(found) == min(count, of) == len(set(found))
    assert 0 <= min(found) <= max(found) < of


def test_one_slope_is_in_memory_where_they_are_kept(tmp_path, monkeypatch):
    """The first is on disk alone while the second is computed, and no number changes."""
    made, before = [], []

    def noted(*arguments, **options):
        before.append(sum(one() is not None for one in made))
        mean = mean_gradient(*arguments, **options)
        made.extend(map(weakref.ref, mean.values()))
        return mean

    model, ids = build(), windows(6)
    expected = Slopes.of(model, ids)
    monkeypatch.setattr(floor, "mean_gradient", noted)
    slopes = Slopes.of(model, ids, Kept(tmp_path / "parts"))
    assert before == [0, 0]
    for own, other in ((slopes.first, expected.first), (slopes.second, expected.second)):
        assert all(torch.equal(own[name], other[name]) for name in other)
