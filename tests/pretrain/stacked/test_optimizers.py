"""Oracle tests: stacked optimizers against torch's own, one run at a time."""

from __future__ import annotations

import pytest
import torch

from ptq_eval.pretrain.architectures import model_config
from ptq_eval.pretrain.stacked.llama import Layout
from ptq_eval.pretrain.stacked.optimizers import StackedAdamW, StackedMuon, clipped
from ptq_eval.pretrain.stacked.options import RunOptions

LAYOUT = Layout(model_config(RunOptions(width=8, layers=1, vocab=260, context=8)))
RATES, DECAYS, BETAS, FIRST = (1e-2, 3e-3), (0.1, 0.0), ((0.9, 0.95), (0.8, 0.99)), 1


def gradients(step):
    return torch.randn(2, sum(LAYOUT.sizes), generator=torch.Generator().manual_seed(step))


def separate(k, adamw, muon=()):
    """Parameters of run k by name, as torch's optimizers leave them after four steps."""
    named = {name: p[k].clone().requires_grad_() for name, p in LAYOUT.views(gradients(99)).items()}
    optimizers = [
        torch.optim.AdamW(
            [
                {"params": [p for p in map(named.get, adamw) if p.dim() > 1], "weight_decay": DECAYS[k]},
                {"params": [p for p in map(named.get, adamw) if p.dim() == 1], "weight_decay": 0.0},
            ],
            lr=RATES[k], betas=BETAS[k],
        )
    ]  # fmt: skip
    if muon:
        optimizers.append(
            torch.optim.Muon(
                [named[name] for name in muon], lr=RATES[k], weight_decay=DECAYS[k], adjust_lr_fn="match_rms_adamw"
            )
        )
    for step in range(4):
        for name, gradient in LAYOUT.views(gradients(step)).items():
            named[name].grad = gradient[k].clone()
        for optimizer in optimizers:
            optimizer.step()
    return LAYOUT.row(named)


def stacked(optimizer):
    weights = gradients(99).clone()
    for step in range(4):
        optimizer.step(weights, gradients(step), RATES, [step + 1] * 2)
    return weights


def test_oracle_adamw_is_torchs():
    found = stacked(StackedAdamW(LAYOUT.decays("cpu"), DECAYS, BETAS, 2))
    for k in range(2):
        torch.testing.assert_close(found[k], separate(k, [*LAYOUT.shapes]), atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch 2.9 has Muon first")
def test_oracle_muon_is_torchs():
    optimizer = StackedMuon(LAYOUT, "cpu", DECAYS, BETAS, 2)
    optimizer.dtype = torch.bfloat16
    found, rest = stacked(optimizer), [name for name in LAYOUT.shapes if name not in LAYOUT.in_blocks]
    for k in range(2):
        expected = separate(k, rest, [*LAYOUT.in_blocks])
        torch.testing.assert_close(found[k], expected, atol=2e-3, rtol=1e-3)


def test_each_run_is_clipped_by_its_own_norm():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [30.0, 40.0]])
    found = clipped(rows, torch.tensor([1.0, 1.0, 10.0]))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.3, 0.4], [6.0, 8.0]]), atol=1e-5, rtol=1e-5)


def test_steps_of_a_run_are_counted_apart():
    """A branch starts with the trunk's moments at another step than the runs beside it."""
    one = StackedAdamW(LAYOUT.decays("cpu"), DECAYS, BETAS, 2)
    found = gradients(99).clone()
    one.step(found, gradients(0), RATES, [1, 1000])
    expected = gradients(99).clone()
    StackedAdamW(LAYOUT.decays("cpu"), DECAYS, BETAS, 2).step(expected, gradients(0), RATES, [1, 1])
    assert torch.equal(found[0], expected[0])
    assert not torch.equal(found[1], expected[1])
