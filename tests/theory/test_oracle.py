"""Oracle: noise, curvature, slope and damage against slow calculations that share no code with them."""

import copy
import itertools

import numpy as np
import pytest
import torch

from ptq_eval.measure.calibration import quantize
from ptq_eval.measure.variants import Variant
from ptq_eval.theory import ALL
from ptq_eval.theory.curvature import Perturbation, fisher, noise_variance, output_damage, slope
from ptq_eval.theory.sensitivity import measure, rows
from quantizers import LayerStats, Scheme, get_quantizer
from tests.theory.support import build, build_gpt2, windows

LAYER = "model.layers.0.self_attn.o_proj"


@pytest.fixture(scope="module")
def model():
    return build()


def perturbed(model, bits=4, group_size=4):
    """Variant and perturbation of RTN on every layer."""
    variant = Variant(get_quantizer("rtn"), Scheme(bits, group_size))
    quantize(model, [variant], None)
    return variant, Perturbation.of(model, variant.weights, variant.scheme)


def log_probability(model, ids, changes):
    """Log-probabilities [n, time − 1, vocabulary] of the model with some weights replaced, differentiable in them."""
    named = {f"{name}.weight": weight for name, weight in changes.items()}
    out = torch.func.functional_call(model.module, named, kwargs={"input_ids": ids, "use_cache": False})
    return out.logits[:, :-1].log_softmax(-1)


@pytest.mark.parametrize(("bits", "symmetric"), itertools.product((3, 4, 6, 8), (False, True)))
def test_variance_against_rounding_of_random_weights(bits, symmetric):
    """Every weight of many groups rounded on its own, in numpy; the ends of a group, 2 weights of 256, are special."""
    size, random = 256, np.random.default_rng(bits)
    weights = random.uniform(-1, 1, (400, size))
    low, high = weights.min(1, keepdims=True), weights.max(1, keepdims=True)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    scale = (high - low) / (2**bits - 1)
    zero = 2 ** (bits - 1) if symmetric else np.round(-low / scale)
    rounded = scale * (np.clip(np.round(weights / scale) + zero, 0, 2**bits - 1) - zero)
    predicted = noise_variance(torch.tensor(weights), Scheme(bits, size, symmetric)).numpy()
    np.testing.assert_allclose(predicted, np.broadcast_to(scale**2 / 12, weights.shape), rtol=1e-5)
    assert np.square(rounded - weights).mean() == pytest.approx(predicted.mean(), rel=0.03)


LARGEST_IS_EXACT = {"nf4": 0.87, "nvfp4": 0.75, "q4_k": 0.79, "q6_k": 0.82}
"""In blocks of 16 to 64 the weight that sets the scale is on or near its level, and the outer cells are the widest."""


@pytest.mark.parametrize("name", ["int4_narrow", "mxfp4", "mxfp6_e2m3", "fp8_e4m3", *LARGEST_IS_EXACT])
def test_variance_of_a_format_against_rounding_of_random_weights(name):
    """The first groups are zeros, which are exact."""
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    weight[:, :256] = 0
    scheme = Scheme.of(name, 128 if name[:3] in ("int", "fp8") else "default")
    error = get_quantizer("rtn").quantize(weight, scheme).dequantize() - weight
    predicted = noise_variance(weight, scheme)
    assert (predicted[:, :256] == 0).all()
    ratio = error.square().sum().item() / predicted.sum().item()
    assert ratio == pytest.approx(LARGEST_IS_EXACT.get(name, 1.0), rel=0.05)


def test_output_damage_is_the_expected_error_of_the_output():
    """½ tr(H·E[εᵀε]) against the output of a layer whose weights are drawn off by a uniform error, again and again."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator) * torch.arange(1, 7)
    weight = torch.randn(5, 6, generator=generator)
    variance = noise_variance(weight, Scheme(3, 3))
    predicted = output_damage(variance, LayerStats.from_inputs(inputs).hessian.diagonal())
    uniform = torch.rand(20000, 5, 6, generator=generator) - 0.5
    error = uniform * (12 * variance).sqrt()
    moved = torch.einsum("nij,tj->nti", error, inputs).square().sum(-1).mean()
    assert float(moved) == pytest.approx(predicted, rel=0.02)


@pytest.mark.slow
def test_expected_damage_against_the_whole_fisher_matrix(model):
    """½ tr(FΣ) and √(½ tr((FΣ)²)) of one layer, with F from the Jacobian of every logit by every weight."""
    ids = windows(600)
    weight = model.weight(LAYER).detach().clone()
    one = Perturbation({LAYER: torch.zeros_like(weight)}, {LAYER: noise_variance(weight, Scheme(3, 4))})
    jacobian = torch.func.jacfwd(lambda w: log_probability(model, ids, {LAYER: w}))
    score = jacobian(weight).flatten(-2).flatten(0, 1)  # [tokens, vocabulary, weights]
    probability = log_probability(model, ids, {}).exp().flatten(0, 1)
    matrix = torch.einsum("tc,tci,tcj->ij", probability, score, score) / len(score)
    weighted = matrix * one.variance[LAYER].flatten()
    (found,) = fisher(model, ids, [one], draws=2)
    place = found.layers.index(LAYER)
    part = slice(place, place + 1)
    expected = found.expected[:, place]
    error = expected.std(ddof=1) / len(expected) ** 0.5
    assert abs(expected.mean() - 0.5 * float(weighted.trace())) < 4 * error
    assert error < 0.1 * expected.mean()
    assert found.scatter(part) == pytest.approx((0.5 * float((weighted @ weighted).trace())) ** 0.5, rel=0.2)


def test_damage_of_the_error_itself_against_the_second_derivative_of_kl(model):
    """½ εᵀFε of all layers together against ½ d²/ds² KL(p(0) ‖ p(sε)) by differentiating twice."""
    ids = windows(4)
    _, one = perturbed(model)
    with torch.no_grad():
        reference = log_probability(model, ids, {})

    def kl(s):
        changes = {name: model.weight(name) + s * error for name, error in one.error.items()}
        moved = log_probability(model, ids, changes)
        return (reference.exp() * (reference - moved)).sum(-1).mean()

    second = torch.func.grad(torch.func.grad(kl))(torch.zeros(()))
    (found,) = fisher(model, ids, [one], draws=400)
    squares = 0.5 * np.square(found.projection.sum(-1))
    error = squares.std() / squares.size**0.5
    assert abs(found.quadratic().mean() - 0.5 * float(second)) < 4 * error
    assert error < 0.1 * float(second)


def test_slope_against_autograd(model):
    ids = windows(5)
    _, one = perturbed(model)
    weights = {name: model.weight(name).detach().clone().requires_grad_(True) for name in model.linears()}
    loss = -log_probability(model, ids, weights).gather(-1, ids[:, 1:, None]).mean()
    by_weight = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()))))
    ((first, spread),) = slope(model, ids, [one])
    for place, name in enumerate(model.linears()):
        expected = float((by_weight[name] * one.error[name]).sum())
        assert first[place] == pytest.approx(expected, rel=1e-3, abs=1e-6)
        deviation = float((by_weight[name] ** 2 * one.variance[name]).sum().sqrt())
        assert spread[place] == pytest.approx(deviation, rel=1e-3)


def test_factored_curvature_and_output_error_against_statistics(model):
    """`output_error` from the LayerStats of a hooked pass, `kfac` = ½·½ Σ G_ii·H_jj·Δ²/12 from its own gradients."""
    ids = windows(30)
    _, one = perturbed(model)
    seen = []
    handle = model.linears()[LAYER].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.logits(ids)
    handle.remove()
    diagonal = LayerStats.from_inputs(seen[0]).hessian.diagonal()
    (found,) = fisher(model, ids, [one], draws=40)
    place = found.layers.index(LAYER)
    assert found.output_error[place] == pytest.approx(0.5 * float((one.variance[LAYER] * diagonal).sum()), rel=1e-4)

    probe = torch.zeros(*seen[0].shape[:2], model.weight(LAYER).shape[0], requires_grad=True)
    handle = model.linears()[LAYER].register_forward_hook(lambda _module, _args, out: out + probe)
    logits = model.module(input_ids=ids, use_cache=False).logits[:, :-1]
    handle.remove()
    total, draws = torch.zeros(probe.shape[-1]), 160
    torch.manual_seed(0)  # and enough draws: the scatter of 40 is a large part of the tolerance
    for _ in range(draws):
        labels = torch.distributions.Categorical(logits=logits.detach()).sample()
        loss = -logits.log_softmax(-1).gather(-1, labels[..., None]).sum()
        (gradient,) = torch.autograd.grad(loss, probe, retain_graph=True)
        total += gradient.square().sum((0, 1)) / (draws * labels.numel())
    expected = 0.25 * float((total[:, None] * diagonal * one.variance[LAYER]).sum())
    assert found.kfac[place] == pytest.approx(expected, rel=0.1)


def test_each_layer_against_replacing_it_by_hand(model):
    """δ and its standard error from a deep copy with one weight overwritten, window by window."""
    ids = windows(12)
    variant, _ = perturbed(model, bits=2)
    (found,) = measure(model, ids, [variant])

    def losses(module):
        with torch.no_grad():
            logits = module(input_ids=ids).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return nll.view(len(ids), -1).mean(1).double()

    before = losses(model.module)
    assert set(found) == {*model.linears(), ALL}
    for name in found:
        changed = copy.deepcopy(model.module)
        for layer in model.linears() if name == ALL else [name]:
            with torch.no_grad():
                changed.get_submodule(layer).weight.copy_(variant.weights[layer])
        difference = losses(changed) - before
        mean, error = found[name]["delta"]
        assert mean == pytest.approx(float(difference.mean()), abs=2e-6)
        assert error == pytest.approx(float(difference.std()) / len(ids) ** 0.5, abs=2e-6)


@pytest.mark.parametrize("make", [build, build_gpt2])
def test_rows_hold_together(make):
    """Sums over layers, the joint row, and a second order that approaches KL as steps become small."""
    model = make()
    variant, one = perturbed(model, bits=8)
    (table,) = rows(model, windows(16, seed=3), windows(16, seed=3), [variant], draws=60)
    layers, joint = table[:-1], table[-1]
    assert joint["layer"] == ALL
    assert joint["weights"] == model.quantized_params()
    for name in ("predicted", "kfac", "output_error", "slope"):
        assert joint[name] == pytest.approx(sum(row[name] for row in layers), rel=1e-6)
    assert joint["spread"] ** 2 == pytest.approx(sum(row["spread"] ** 2 for row in layers))
    assert joint["quadratic"] == pytest.approx(joint["kl"], rel=0.1)
    assert joint["delta"] == pytest.approx(joint["slope"], abs=5 * joint["kl"])
    assert joint["noise_ratio"] == pytest.approx(
        sum(float(e.square().sum()) for e in one.error.values()) / sum(float(v.sum()) for v in one.variance.values())
    )
