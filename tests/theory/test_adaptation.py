"""Oracle: what an update can absorb, and how the variance of gradients grows, against slow calculations."""

import numpy as np
import pytest
import torch

from ptq_eval.adapt.lora import Adapter
from ptq_eval.measure.calibration import quantize
from ptq_eval.measure.variants import Variant
from ptq_eval.theory.adaptation import gradient_response, kronecker_factors, residual_share
from quantizers import Scheme, get_quantizer
from tests.theory.support import build, windows


def test_no_update_of_a_rank_leaves_less_than_the_residual_share():
    """Alternating least squares in the weighted norm, from several starts, reaches it and not less."""
    random = np.random.default_rng(0)
    error, rank = random.normal(size=(7, 9)), 2
    roots = [random.normal(size=(size, size)) for size in (9, 7)]
    inputs, outputs = (root @ root.T / len(root) for root in roots)

    def cost(left):
        return np.trace(outputs @ left @ inputs @ left.T)

    best = np.inf
    for start in range(4):
        up = np.random.default_rng(start).normal(size=(7, rank))
        for _ in range(300):
            down = -np.linalg.solve(up.T @ outputs @ up, up.T @ outputs @ error)
            up = -error @ inputs @ down.T @ np.linalg.inv(down @ inputs @ down.T)
        best = min(best, cost(error + up @ down))
    share = residual_share(torch.tensor(error), torch.tensor(inputs), torch.tensor(outputs), rank)
    assert share == pytest.approx(best / cost(error), rel=1e-6)
    assert residual_share(torch.tensor(error), torch.tensor(inputs), torch.tensor(outputs), 7) == pytest.approx(0)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(256, 256, 4), (256, 768, 8), (1024, 256, 8)])
def test_of_white_noise_an_update_absorbs_its_largest_directions(rows, columns, rank):
    """As docs/theory.md says: nearly r(√m + √n)²/(mn), well above the share of degrees of freedom."""
    noise = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) - 0.5
    absorbed = 1 - residual_share(noise, torch.eye(columns), torch.eye(rows), rank)
    most = rank * (rows**0.5 + columns**0.5) ** 2 / (rows * columns)
    freedom = rank * (rows + columns - rank) / (rows * columns)
    assert 0.9 * most < absorbed < most
    assert absorbed > 1.5 * freedom


def test_the_factor_of_inputs_is_their_second_moment():
    model, ids, name = build(), windows(6), "model.layers.0.self_attn.o_proj"
    inputs, _ = kronecker_factors(model, ids)[name]
    seen = []
    handle = model.linears()[name].register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    model.logits(ids)
    handle.remove()
    rows = seen[0].flatten(0, 1)
    expected = sum(torch.outer(row, row) for row in rows) / (len(ids) * (ids.shape[1] - 1))
    torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_variance_of_gradients_grows_as_predicted_where_the_noise_is_fine():
    """At 5 bits, by noise that is drawn here and variances over gradients that are stacked."""
    model, scheme = build(), Scheme(4, 4)
    batches = windows(16, seed=2).split(2)
    options = {"rank": 2, "alpha": 2.0, "seed": 1}
    found = gradient_response(model, scheme, batches, pairs=24, **options)
    plain, growth = found["plain"], found["growth"]

    def variance(weights):
        adapter = Adapter(model, weights, **options)
        found = []
        for ids in batches:
            parts = torch.autograd.grad(adapter.loss(ids), adapter.parameters)
            found.append(torch.cat([part.flatten().double() for part in parts]))
        return float(torch.stack(found).var(0).sum())

    assert plain == pytest.approx(variance({}), rel=1e-9)
    variant = Variant(get_quantizer("rtn"), Scheme(5, 4))
    quantize(model, [variant], None)
    steps = {name: weight - model.weight(name) for name, weight in variant.weights.items()}
    random, grown = torch.Generator().manual_seed(7), []
    for _ in range(24):
        weights = {}
        for name in steps:
            own = model.weight(name)
            groups = own.reshape(own.shape[0], -1, 4)
            high, low = groups.amax(-1).clamp(min=0), groups.amin(-1).clamp(max=0)
            step = ((high - low) / (2**5 - 1)).repeat_interleave(4, 1)
            weights[name] = step * (torch.rand(own.shape, generator=random) - 0.5)
        both = [variance({name: model.weight(name) + sign * weights[name] for name in steps}) for sign in (1, -1)]
        grown.append(sum(both) / 2 - plain)
    error = np.std(grown, ddof=1) / len(grown) ** 0.5
    assert abs(np.mean(grown) - growth / (2**5 - 1) ** 2) < 4 * error + 0.2 * abs(np.mean(grown))
