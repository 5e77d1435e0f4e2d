"""Oracle tests: the stacked model against transformers, and rounding against naive code in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ptq_eval.errors import OptionError
from ptq_eval.pretrain.architectures import model_config
from ptq_eval.pretrain.stacked.llama import StackedLlama
from ptq_eval.pretrain.stacked.options import RunOptions
from ptq_eval.pretrain.stacked.precision import Precision, Rounding, rounded
from ptq_eval.pretrain.stacked.trainer import initial_model
from quantizers.formats import FORMATS


def models(width, layers, count=3):
    options = [RunOptions(width=width, layers=layers, vocab=300, context=24, seed=seed) for seed in range(count)]
    return options[0], [initial_model(one) for one in options]


@pytest.mark.parametrize(("width", "layers"), [(8, 1), (32, 2), (128, 1)])
def test_oracle_losses_and_gradients_are_those_of_transformers(width, layers):
    """128 channels have two heads that share one of keys and values."""
    options, each = models(width, layers)
    stacked = StackedLlama(model_config(options), "cpu")
    ids = torch.randint(0, 300, (3, 4, 24), generator=torch.Generator().manual_seed(1))
    flat = torch.stack([stacked.layout.row(model.state_dict()) for model in each]).requires_grad_()
    losses = stacked.losses(flat, ids, Precision())
    (gradients,) = torch.autograd.grad(losses.sum(), flat)
    for k, model in enumerate(each):
        loss = model(input_ids=ids[k], labels=ids[k]).loss
        loss.backward()
        expected = stacked.layout.row({name: p.grad for name, p in model.named_parameters()})
        torch.testing.assert_close(losses[k], loss, atol=1e-5, rtol=0)
        torch.testing.assert_close(gradients[k], expected, atol=1e-5, rtol=1e-5)


def test_a_row_is_a_state_dict_and_back():
    options, (model, *_) = models(16, 2)
    layout = StackedLlama(model_config(options), "cpu").layout
    named = layout.named(layout.row(model.state_dict()))
    assert named.keys() == model.state_dict().keys()
    assert all(torch.equal(named[name], value) for name, value in model.state_dict().items())


def nearest(x, levels):
    """Naive, float64: the level next to each number."""
    return levels[np.abs(x[..., None] - levels).argmin(-1)]


def naive(x, name, shared):
    """`x` of one run rounded group by group; dimensions count from 1 in `shared`, the run's own being 0."""
    x, dims = x.double().numpy(), [d - 1 for d in shared]
    found = np.empty_like(x)
    kept = [range(n) if d not in dims else [slice(None)] for d, n in enumerate(x.shape)]
    for index in itertools.product(*kept):
        group = x[index]
        if name.isdigit():
            top = 2 ** (int(name) - 1) - 1
            scale = np.abs(group).max() / top
            found[index] = np.rint(group / scale) * scale
        else:
            levels = FORMATS[name].levels().values.double().numpy()
            scale = np.abs(group).max() / np.abs(levels).max()
            found[index] = nearest(group / scale, levels) * scale
    return found


@pytest.mark.parametrize("shared", [(1, 2), (2,), (1,)])
def test_oracle_each_run_is_rounded_as_naive_code_does(shared):
    precisions = ["full", "3", "4", "8", "16", "fp8_e4m3", "fp4_e2m1", "fp8_e4m3"]
    x = torch.randn(len(precisions), 5, 7, generator=torch.Generator().manual_seed(0))
    found = rounded(x, Rounding.of(precisions, "tensor", "cpu"), shared)
    assert torch.equal(found[0], x[0])
    for k, name in enumerate(precisions[1:], 1):
        assert not torch.equal(found[k], x[k])
        np.testing.assert_allclose(found[k].numpy(), naive(x[k], name, shared), rtol=2e-6, atol=1e-7)


def test_the_gradient_passes_straight_through():
    x = torch.randn(2, 3, 4, requires_grad=True)
    weights = torch.randn(2, 3, 4)
    (rounded(x, Rounding.of(["3", "fp8_e5m2"], "tensor", "cpu"), (1, 2)) * weights).sum().backward()
    assert torch.equal(x.grad, weights)


def test_zeros_stay_zeros():
    assert torch.equal(
        rounded(torch.zeros(2, 3, 4), Rounding.of(["4", "fp4_e2m1"], "", "cpu"), (2,)), torch.zeros(2, 3, 4)
    )


@pytest.mark.parametrize(("per", "one_scale"), [("tensor", (1, 2, 3, 4)), ("token", (2, 4)), ("head", (1, 3, 4))])
def test_what_shares_a_scale_of_keys_and_values(per, one_scale):
    x = torch.randn(1, 2, 3, 4, 8)
    precision = Precision(kv=Rounding.of(["4"], per, "cpu"))
    np.testing.assert_allclose(precision.cached(x)[0].numpy(), naive(x[0], "4", one_scale), rtol=2e-6, atol=1e-7)


def test_oracle_a_model_in_low_precision_is_one_whose_weights_were_rounded():
    options, each = models(16, 2)
    stacked = StackedLlama(model_config(options), "cpu")
    ids = torch.randint(0, 300, (3, 4, 24), generator=torch.Generator().manual_seed(1))
    flat = torch.stack([stacked.layout.row(model.state_dict()) for model in each])
    low = Precision(weights=Rounding.of(["full", "3", "8"], "channel", "cpu"))
    losses = stacked.losses(flat, ids, low)
    for k, name in enumerate(["full", "3", "8"]):
        for key, weight in each[k].named_parameters():
            if key.endswith("_proj.weight") and name != "full":
                weight.data.copy_(torch.from_numpy(naive(weight.data, name, (2,))))
        torch.testing.assert_close(losses[k], each[k](input_ids=ids[k], labels=ids[k]).loss, atol=1e-5, rtol=0)


def test_runs_that_do_not_round_at_present_are_exact():
    x = torch.randn(3, 4, 5)
    precision = Precision(weights=Rounding.of(["4", "4", "full"], "channel", "cpu"))
    precision.activate(torch.tensor([True, False, True]))
    found = precision.weight(x)
    assert not torch.equal(found[0], x[0])
    assert torch.equal(found[1:], x[1:])
    precision.activate(torch.tensor([True, True, True]))
    assert not torch.equal(precision.weight(x)[1], x[1])


@pytest.mark.parametrize("name", ["2", "17", "int", "nf4", "q4_k", "mxfp4", "fp8"])
def test_precisions_that_cannot_be_trained_in(name):
    with pytest.raises(OptionError, match="not a precision"):
        RunOptions(weights=name)


@pytest.mark.slow
def test_a_stack_with_number_formats_can_be_compiled():
    """With a backend that generates no code: what fails on a format fails in tracing."""
    options, (model, *_) = models(8, 1)
    stacked = StackedLlama(model_config(options), "cpu")
    ids = torch.randint(0, 300, (2, 2, 24), generator=torch.Generator().manual_seed(1))
    flat = torch.stack([stacked.layout.row(model.state_dict())] * 2)
    low = Precision(*(Rounding.of(["4", "fp8_e4m3"], per, "cpu") for per in ("channel", "tensor", "tensor")))
    found = torch.compile(stacked.losses, backend="eager")(flat, ids, low)
    torch.testing.assert_close(found, stacked.losses(flat, ids, low), atol=1e-5, rtol=0)
