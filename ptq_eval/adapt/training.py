"""One adapter, trained: a base, a seed, and what is measured before the first epoch and after each.

The order of windows is a pure function of the seed (`pretrain.data.Batches`), and so are the first values of A: bases
of different bits see the same batches from the same start, and differ by their weights alone.  For evaluation the
update is merged and measured like any variant, so losses are paired with those of any other, window by window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ptq_eval.adapt.lora import Adapter
from ptq_eval.adapt.noise import gradient_noise
from ptq_eval.config.adapt import AdaptConfig
from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.pretrain.data import Batches
from ptq_eval.pretrain.schedule import factor

Tick = Callable[[int], None]


def batches_of(config: AdaptConfig, windows: Any, seed: int) -> Batches:
    """The batches of training `windows` [n, time] in the order of a seed.  Raises TextTooShortError."""
    return Batches(windows.reshape(-1), context=windows.shape[1], batch_size=config.batch_size, seed=seed)


def noise_batches(config: AdaptConfig, batches: Batches, device: torch.device) -> list[Tensor]:
    """The batches of the gradient's variance, [batch, time] each: the first of the first epoch, with no window twice.

    Drawn without replacement from N windows, their variance has no bias, whatever N: means of B values of variance S²
    have Var(g_i) = S²/B·(1 − B/N) (Cochran 1977, "Sampling techniques", theorem 2.2) and Cov(g_i, g_j) = −S²/N, and the
    difference, S²/B, is what is estimated.  Needs `config.noise_windows` windows.
    """
    return [batches.batch(step).to(device) for step in range(config.noise_batches)]


def steps_per_epoch(config: AdaptConfig, windows: Any) -> int:
    """Whole batches of an epoch."""
    return len(windows) // config.batch_size


def train(
    model: LanguageModel,
    weights: Mapping[str, Tensor],
    config: AdaptConfig,
    windows: Any,
    evaluator: Evaluator,
    seed: int,
    tick: Tick,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train an adapter on the base `weights` {layer: [out, in]} and training `windows` [n, time], int32.

    Returns a row per epoch, the first before any step, and what it cost.  A row: epoch, steps, tokens, loss and
    perplexity on the evaluation windows, kl (of this model from the checkpoint, nats per token), train_loss (mean over
    the epoch's steps), gradient_norm, mean_gradient_norm and gradient_variance (see `noise`, at the end of the epoch),
    and nll, the sum over each evaluation window.  tick(1) after each step and each evaluation.
    """
    device, started, processor = model.device, time.monotonic(), time.process_time()
    adapter = Adapter(model, weights, rank=config.rank, alpha=config.alpha, seed=seed)
    batches = batches_of(config, windows, seed)
    optimizer = torch.optim.AdamW(adapter.parameters, lr=0.0, weight_decay=0.0)
    per_epoch, rows, spent = steps_per_epoch(config, windows), [], {"training": 0.0, "measuring": 0.0}
    fixed = noise_batches(config, batches, device)
    losses: list[float] = []
    for epoch in range(config.epochs + 1):
        begun = time.monotonic()
        if epoch:
            losses = [
                _step(adapter, optimizer, batches.batch(step).to(device), config, step, tick)
                for step in range((epoch - 1) * per_epoch, epoch * per_epoch)
            ]
        spent["training"] += time.monotonic() - begun
        begun = time.monotonic()
        rows.append({**_place(epoch, per_epoch, config, windows), **_measured(adapter, evaluator, fixed, losses)})
        spent["measuring"] += time.monotonic() - begun
        tick(1)
    seconds = {"seconds": time.monotonic() - started, "seconds_cpu": time.process_time() - processor}
    cost = {**seconds, **{f"seconds_{name}": value for name, value in spent.items()}}
    steps = config.epochs * per_epoch
    return rows, {**cost, "steps": steps, "tokens": rows[-1]["tokens"], "trained_parameters": adapter.size}


def _place(epoch: int, per_epoch: int, config: AdaptConfig, windows: Any) -> dict[str, int]:
    steps = epoch * per_epoch
    return {"epoch": epoch, "steps": steps, "tokens": steps * config.batch_size * windows.shape[1]}


def _step(
    adapter: Adapter, optimizer: torch.optim.Optimizer, ids: Tensor, config: AdaptConfig, step: int, tick: Tick
) -> float:
    """One step of AdamW; the loss before it."""
    rate = config.learning_rate * factor("constant", step, warmup=config.warmup, total=0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = adapter.loss(ids)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(adapter.parameters, config.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    tick(1)
    return float(loss.detach())


def _measured(adapter: Adapter, evaluator: Evaluator, fixed: list[Tensor], losses: list[float]) -> dict[str, Any]:
    noise = gradient_noise(adapter.loss, adapter.parameters, fixed)
    ((_, scores),) = evaluator.score([adapter.merged()])
    tokens = len(scores.nll) * (evaluator.ids.shape[1] - 1)
    loss = math.fsum(scores.nll) / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "kl": math.fsum(scores.kl) / tokens,
        "train_loss": sum(losses) / len(losses) if losses else None,
        "gradient_norm": noise.norm,
        "mean_gradient_norm": float(noise.mean.norm()),
        "gradient_variance": noise.variance,
        "nll": scores.nll,
    }
