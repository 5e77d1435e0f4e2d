"""Oracle: each assumption by itself against the whole Hessian of KL, and against noise of which all is known."""

import numpy as np
import pytest
import torch

from ptq_eval.measure.calibration import quantize
from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.variants import Variant
from ptq_eval.theory import assumptions
from ptq_eval.theory.curvature import Perturbation
from quantizers import Scheme, get_quantizer
from tests.theory.support import build, build_gpt2, windows

BUILDERS = {"llama": build, "gpt2": build_gpt2}


def perturbation(model, bits):
    variant = Variant(get_quantizer("rtn"), Scheme(bits, 4))
    quantize(model, [variant], None)
    return Perturbation.of(model, {k: w for k, w in variant.weights.items() if k != "lm_head"}, variant.scheme)


def kl(model, ids, error, share):
    """KL(W ‖ W + share·error) in float64, written out."""
    module = model.module.double()

    def predictions(weights):
        named = {}
        for name, own in weights.items():
            plain = type(model.linears()[name]) is torch.nn.Linear
            named[f"{name}.weight"] = own if plain else own.T
        logits = torch.func.functional_call(module, named, kwargs={"input_ids": ids, "use_cache": False}).logits
        return logits[:, :-1].log_softmax(-1)

    with torch.no_grad():
        own = {name: model.weight(name).double() for name in error}
        before = predictions(own)
        after = predictions({name: own[name] + share * error[name].double() for name in error})
    module.float()
    return float((before.exp() * (before - after)).sum(-1).mean())


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_second_order_of_an_error_is_the_curvature_along_it(kind):
    """Against a second difference of KL in float64; the error itself has orders beyond the second."""
    model, ids = BUILDERS[kind](), windows(6)
    one = perturbation(model, 3)
    found = assumptions.measured(model, Evaluator(model, ids), one, predicted=0.1)
    step = 1e-4
    exact = (kl(model, ids, one.error, step) + kl(model, ids, one.error, -step)) / 2 / step**2
    assert found["quadratic"] == pytest.approx(exact, rel=0.01)
    assert abs(kl(model, ids, one.error, 1.0) / exact - 1) > 0.03


def test_drawn_noise_is_uniform_in_a_cell_and_its_kl_that_of_both_signs():
    model, ids = build(), windows(6)
    one = perturbation(model, 4)
    noise = assumptions.uniform(one.variance, torch.Generator().manual_seed(3))
    pooled = torch.cat([(noise[name] / (12 * one.variance[name]).sqrt()).flatten() for name in noise])
    assert pooled.abs().max() <= 0.5
    assert float(pooled.square().mean()) == pytest.approx(1 / 12, rel=0.1)
    found = assumptions.measured(model, Evaluator(model, ids), one, predicted=0.1, seed=3)
    both = [kl(model, ids, noise, sign) for sign in (1.0, -1.0)]
    assert found["uniform"] == pytest.approx(np.mean(both), rel=1e-3)
    step = 1e-4
    exact = (kl(model, ids, noise, step) + kl(model, ids, noise, -step)) / 2 / step**2
    assert found["uniform_quadratic"] == pytest.approx(exact, rel=0.01)


def test_what_is_drawn_does_not_depend_on_the_order_in_which_a_method_gives_its_layers():
    model, ids = build(), windows(3)
    variant = Variant(get_quantizer("rtn"), Scheme(3, 4))
    quantize(model, [variant], None)
    backwards = dict(reversed(variant.weights.items()))
    one, other = (Perturbation.of(model, weights, variant.scheme) for weights in (variant.weights, backwards))
    assert list(other.variance) == list(other.error) == list(one.variance) == list(model.linears())
    found = [assumptions.measured(model, Evaluator(model, ids), each, predicted=0.1) for each in (one, other)]
    assert found[0] == found[1]


def test_an_error_of_zero_costs_nothing():
    model = build()
    nothing = {name: torch.zeros_like(model.weight(name)) for name in model.linears()}
    found = assumptions.measured(model, Evaluator(model, windows(3)), Perturbation(nothing, nothing), predicted=0.0)
    assert set(found) == {"uniform", "uniform_quadratic", "quadratic"}
    assert max(map(abs, found.values())) < 1e-7
