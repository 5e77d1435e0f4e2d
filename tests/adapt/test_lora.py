"""Oracle: an adapter's model, gradients and steps of AdamW against W_q + s·BA written out, with autograd and loops."""

import sys

import numpy as np
import pytest
import torch

from ptq_eval.adapt import training
from ptq_eval.adapt.lora import Adapter
from ptq_eval.adapt.noise import gradient_noise
from ptq_eval.config.adapt import AdaptConfig
from ptq_eval.errors import MissingPackageError, OptionError
from ptq_eval.measure.calibration import quantize
from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.variants import Variant
from quantizers import Scheme, get_quantizer
from tests.theory.support import build, build_gpt2, windows

BUILDERS = {"llama": build, "gpt2": build_gpt2}
FIELDS = {"rank": 2, "alpha": 6.0, "seeds": (0,), "epochs": 2, "batch_size": 2, "train_windows": 6, "noise_batches": 3}
CONFIG = AdaptConfig(**FIELDS, warmup=2, learning_rate=0.05, clip=0.5, train_text="none")
SCALE = CONFIG.alpha / CONFIG.rank


def rounded(model, bits=3):
    variant = Variant(get_quantizer("rtn"), Scheme(bits, 4))
    quantize(model, [variant], None)
    return dict(variant.weights)


def adapter_of(model, weights, seed=0):
    return Adapter(model, weights, rank=CONFIG.rank, alpha=CONFIG.alpha, seed=seed)


def written_out(model, weights, factors, ids):
    """The mean loss of the model whose layers are W_q + s·BA, differentiable in A and B."""
    named = {}
    for name, (down, up) in factors.items():
        own = weights.get(name, model.weight(name)).detach() + SCALE * (up @ down)
        module = model.linears()[name]
        named[f"{name}.weight"] = own if type(module) is torch.nn.Linear else own.T
    tied = model.module.get_output_embeddings()
    head = [key for key in named if model.module.get_submodule(key.removesuffix(".weight")) is tied]
    if not head:
        logits = torch.func.functional_call(model.module, named, kwargs={"input_ids": ids, "use_cache": False}).logits
    else:  # the head has a matrix of its own here, and the embedding its own as well
        hidden = []
        catch = tied.register_forward_pre_hook(lambda _module, args: hidden.append(args[0]))
        rest = {key: value for key, value in named.items() if key not in head}
        torch.func.functional_call(model.module, rest, kwargs={"input_ids": ids, "use_cache": False})
        catch.remove()
        logits = hidden[0] @ named[head[0]].T
    total = torch.zeros(())
    for row, own in zip(ids, logits):
        for place in range(len(row) - 1):
            total = total - own[place].log_softmax(-1)[row[place + 1]]
    return total / (ids.shape[0] * (ids.shape[1] - 1))


def start(adapter, model, seed=3):
    """Copies of A and of a B that is not zero, and the same B in the adapter."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name in model.linears():
        down, up = adapter.factors(name)
        with torch.no_grad():
            up.copy_(0.3 * torch.randn(up.shape, generator=generator))
        factors[name] = tuple(one.detach().clone().requires_grad_(True) for one in (down, up))
    return factors


@pytest.mark.parametrize("kind", BUILDERS)
def test_loss_gradients_and_merged_weights(kind):
    model = BUILDERS[kind]()
    weights, ids = rounded(model), windows(3)
    adapter = adapter_of(model, weights)
    factors = start(adapter, model)
    expected = written_out(model, weights, factors, ids)
    assert adapter.loss(ids).item() == pytest.approx(expected.item(), abs=1e-6)
    flat = [one for pair in factors.values() for one in pair]
    slow = torch.autograd.grad(expected, flat)
    own = torch.autograd.grad(adapter.loss(ids), [one for name in factors for one in adapter.factors(name)])
    for one, other in zip(own, slow):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for name, merged in adapter.merged().items():
        down, up = factors[name]
        torch.testing.assert_close(merged, (weights[name] + SCALE * up @ down).detach(), rtol=0, atol=1e-6)
    assert all(not torch.equal(model.weight(name), weights[name]) for name in weights)  # the model has its own back


def test_five_steps_of_training_are_those_of_adamw_written_out():
    model = build()
    weights, batch = rounded(model), windows(10).split(2)
    adapter = adapter_of(model, weights)
    factors = start(adapter, model)
    optimizer = torch.optim.AdamW(adapter.parameters, lr=0.0, weight_decay=0.0)
    flat = [one for pair in factors.values() for one in pair]
    first, second = ([torch.zeros_like(one) for one in flat] for _ in range(2))
    for step, ids in enumerate(batch):
        loss = written_out(model, weights, factors, ids)
        found = torch.autograd.grad(loss, flat)
        norm = sum(float(one.square().sum()) for one in found) ** 0.5
        rate = CONFIG.learning_rate * min(1.0, (step + 1) / CONFIG.warmup)
        for own, gradient, mean, square in zip(flat, found, first, second):
            gradient = gradient * min(1.0, CONFIG.clip / (norm + 1e-6))
            mean.mul_(0.9).add_(0.1 * gradient)
            square.mul_(0.999).add_(0.001 * gradient**2)
            corrected = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
            with torch.no_grad():
                own -= rate * corrected[0] / (corrected[1].sqrt() + 1e-8)
        assert training._step(adapter, optimizer, ids, CONFIG, step, lambda _: None) == pytest.approx(
            float(loss), abs=1e-5
        )
    for name, pair in factors.items():
        for own, other in zip(adapter.factors(name), pair):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-5)


def test_the_variance_of_a_gradient_is_that_of_a_loop_over_batches_and_parameters():
    model = build()
    adapter = adapter_of(model, rounded(model))
    start(adapter, model)
    batches = windows(12).split(3)
    noise = gradient_noise(adapter.loss, adapter.parameters, batches)
    every = []
    for ids in batches:
        found = torch.autograd.grad(adapter.loss(ids), adapter.parameters)
        every.append([float(number) for one in found for number in one.flatten()])
    means = [sum(column) / len(every) for column in zip(*every)]
    variance = sum((own - mean) ** 2 for row in every for own, mean in zip(row, means)) / (len(every) - 1)
    norm = sum(sum(own**2 for own in row) ** 0.5 for row in every) / len(every)
    assert noise.variance == pytest.approx(variance, rel=1e-9)
    assert noise.norm == pytest.approx(norm, rel=1e-9)
    np.testing.assert_allclose(noise.mean, means, rtol=1e-9, atol=1e-12)


def run(model, weights, seed, config=CONFIG):
    ids = windows(6).numpy()
    evaluator = Evaluator(model, windows(4, seed=9))
    return training.train(model, weights, config, ids, evaluator, seed, lambda _: None)[0]


def test_a_base_that_is_not_quantized_is_plain_lora():
    """Before training it is the checkpoint itself; after it, what peft makes of the module with its own weights."""
    import peft

    model = build()
    rows = run(model, {}, seed=5)
    evaluator = Evaluator(model, windows(4, seed=9))
    assert rows[0]["nll"] == pytest.approx(evaluator.full.nll, rel=1e-6)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    plain = build().module
    torch.manual_seed(5)
    options = {"r": CONFIG.rank, "lora_alpha": CONFIG.alpha, "target_modules": list(model.linears())}
    wrapped = peft.get_peft_model(plain, peft.LoraConfig(**options))
    mine = [one for one in wrapped.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(mine, lr=CONFIG.learning_rate, weight_decay=0.0)
    order = training.batches_of(CONFIG, windows(6).numpy(), 5)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = CONFIG.learning_rate * min(1.0, (step + 1) / 2)
        ids = order.batch(step)
        wrapped(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(mine, CONFIG.clip)
        optimizer.step()
        optimizer.zero_grad()
    held = windows(4, seed=9)
    with torch.no_grad():
        loss = float(wrapped(input_ids=held, labels=held).loss)
    assert rows[-1]["loss"] == pytest.approx(loss, abs=1e-5)
    assert rows[-1]["perplexity"] == pytest.approx(np.exp(loss), rel=1e-4)


def test_a_seed_decides_everything():
    model = build()
    weights = rounded(model)
    rows = [run(model, weights, seed) for seed in (0, 0, 1)]
    assert rows[0] == rows[1]
    assert rows[0][0]["nll"] == rows[2][0]["nll"]
    assert rows[0][-1]["nll"] != rows[2][-1]["nll"]
    state = torch.get_rng_state()
    adapter_of(model, weights, seed=4)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_peft_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"remedy: pip install 'ptq-eval\[adapt\]'") as refused:
        adapter_of(build(), {})
    assert refused.value.exit_code == 61


def test_only_the_layers_of_the_language_model_have_an_update():
    """Another part of the module may have layers whose names end alike."""
    model = build()
    model.module.tower = torch.nn.ModuleDict({"model": build().module.model})
    inside = adapter_of(model, {}).module.base_model.model
    assert not any("lora" in name for name, _ in inside.tower.named_parameters())


def test_the_batches_of_the_variance_share_no_window_and_give_it_without_bias():
    """Three batches of two are all six windows, where batches that may repeat would vary too little."""
    ids, place = windows(6, time=4).numpy().astype(np.int32), torch.device("cpu")
    ids[:, 0] = np.arange(6)
    values, factor = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.9, -0.4]), torch.ones(1, requires_grad=True)
    found = []
    for seed in range(400):
        batches = training.noise_batches(CONFIG, training.batches_of(CONFIG, ids, seed), place)
        assert sorted(torch.cat(batches)[:, 0].tolist()) == list(range(6))
        found.append(gradient_noise(lambda own: (factor * values[own[:, 0]]).mean(), [factor], batches).variance)
    assert np.mean(found) == pytest.approx(float(values.var()) / CONFIG.batch_size, rel=0.1)


def test_batches_that_would_share_windows_are_refused():
    assert AdaptConfig().noise_windows <= AdaptConfig().train_windows
    AdaptConfig(**FIELDS | {"noise_batches": 3})
    for more in ({"noise_batches": 4}, {"batch_size": 3}, {"train_windows": 5}):
        with pytest.raises(OptionError, match=r"would share windows.*at least"):
            AdaptConfig(**FIELDS | more)
