"""Oracle: quantized activations and cache against models written out with quantize–dequantize by hand."""

import pytest
import torch
from transformers import Exaone4Config, NanoChatConfig

from ptq_eval.errors import UnsupportedModelError
from ptq_eval.measure.simulation import Simulation, Transform
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.models.nanochat import NanochatConfig, NanochatForCausalLM
from ptq_eval.runtime import Cache, Rounding
from quantizers.stats import Rotation
from tests.reference import runtime as naive
from tests.support.models import HIDDEN, VOCAB, build, ids, randomised
from tests.support.moe import ExpertsConfig

ARCHITECTURES = ("llama", "gpt2", "gpt-neox", "qwen3", "nanochat", "gemma3")
SEPARATE_KEYS = ("llama", "qwen3", "nanochat", "gemma3")
CLOSE = 1e-6


@pytest.fixture(scope="module")
def models():
    """models(architecture) -> a tiny model with random weights; each is built once."""
    built = {}

    def get(architecture):
        if architecture not in built:
            built[architecture] = _nanochat() if architecture == "nanochat" else build(architecture)
        return LanguageModel(built[architecture], name=architecture)

    return get


def _nanochat():
    config = NanochatConfig(
        vocab_size=VOCAB, padded_vocab_size=VOCAB + 8, sequence_len=64, n_layer=4, n_head=4, n_kv_head=2, n_embd=HIDDEN,
        window_pattern="SL", short_window=5, qk_scale=1.2, residual_weights=True, gate_channels=12, smear=True,
        backout=True,
    )  # fmt: skip
    return randomised(NanochatForCausalLM(config).eval(), 0)


def simulated(model, text, *roundings, calibration=None, **more):
    """Logits of the model as it rounds."""
    before = model.logits(text)
    simulation = Simulation(model, *roundings, **more)
    simulation.prepare(model.parameters_of({}), text, calibration)
    with simulation.running():
        found = model.logits(text)
    assert torch.equal(model.logits(text), before), "nothing stays behind"
    return found


def expected(model, architecture, text, rounders):
    """Logits of the model written out."""
    with torch.no_grad():
        return naive.NAIVE[architecture](dict(model.module.state_dict()), text, model.module.config, rounders)


def require_close(found, wanted):
    """To 1e-6 of the largest logit; a code rounded the other way would be seen at once."""
    assert (found - wanted).abs().max() <= CLOSE * wanted.abs().max()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_written_out_model_is_the_model(models, architecture):
    model, text = models(architecture), ids(3, 16)
    require_close(model.logits(text), expected(model, architecture, text, naive.Rounders()))


@pytest.mark.parametrize("per", ["token", "channel", "tensor"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activations(models, architecture, per):
    model, text = models(architecture), ids(3, 16)
    found = simulated(model, text, Rounding("int4", 4, per))
    wanted = naive.Rounders(inputs=lambda x: naive.integers(x, 4, naive.INPUT_DIMS[per]))
    require_close(found, expected(model, architecture, text, wanted))


@pytest.mark.parametrize(("keys", "values"), [("channel", "token"), ("token", "channel"), ("tensor", "tensor")])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cache(models, architecture, keys, values):
    model, text = models(architecture), ids(3, 16)
    found = simulated(model, text, None, Cache(Rounding("int3", 3, keys), Rounding("int3", 3, values)))
    wanted = naive.Rounders(
        keys=lambda x: naive.integers(x, 3, naive.CACHE_DIMS[keys]),
        values=lambda x: naive.integers(x, 3, naive.CACHE_DIMS[values]),
    )
    require_close(found, expected(model, architecture, text, wanted))


@pytest.mark.parametrize("keys", ["channel", "token", "tensor"])
@pytest.mark.parametrize("architecture", SEPARATE_KEYS)
def test_keys_before_the_rotary_embedding(models, architecture, keys):
    model, text = models(architecture), ids(3, 16)
    found = simulated(model, text, None, Cache(Rounding("int3", 3, keys), Rounding("int8", 8, "token"), "before"))
    wanted = naive.Rounders(
        early_keys=lambda x: naive.integers(x, 3, naive.CACHE_DIMS[keys]),
        values=lambda x: naive.integers(x, 8, (3,)),
    )
    require_close(found, expected(model, architecture, text, wanted))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activations_and_cache_in_eight_bit_floats(models, architecture):
    model, text = models(architecture), ids(3, 16)
    form = lambda per: Rounding("fp8_e4m3", 8, per)
    found = simulated(model, text, form("token"), Cache(form("channel"), form("token")))
    wanted = naive.Rounders(
        inputs=lambda x: naive.e4m3(x, (2,)), keys=lambda x: naive.e4m3(x, (2,)), values=lambda x: naive.e4m3(x, (3,))
    )
    require_close(found, expected(model, architecture, text, wanted))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_static_ranges_are_those_of_the_calibration_windows(models, architecture):
    """Values are read in a fixed order, so the n-th call of the written-out model is the n-th range."""
    model, text, calibration = models(architecture), ids(3, 16), ids(4, 16, seed=1)
    seen = []

    def note(x):
        seen.append((x.amin((0, 2), keepdim=True).clamp(max=0), x.amax((0, 2), keepdim=True).clamp(min=0)))
        return x

    static = Rounding("int4", 4, "channel", "static", "digest")
    cache = Cache(static, Rounding("int8", 8, "token"))
    found = simulated(model, text, None, cache, calibration=calibration)
    expected(model, architecture, calibration, naive.Rounders(keys=note))
    places = iter(seen)
    wanted = naive.Rounders(
        keys=lambda x: naive.on_grid(x, 4, *next(places)), values=lambda x: naive.integers(x, 8, (3,))
    )
    require_close(found, expected(model, architecture, text, wanted))


def test_static_ranges_of_inputs(models):
    model, text, calibration = models("llama"), ids(3, 16), ids(4, 16, seed=1)
    seen = []

    def note(x):
        seen.append((x.amin().clamp(max=0), x.amax().clamp(min=0)))
        return x

    found = simulated(model, text, Rounding("int8", 8, "tensor", "static", "digest"), calibration=calibration)
    expected(model, "llama", calibration, naive.Rounders(inputs=note))
    places = iter(seen)
    wanted = naive.Rounders(inputs=lambda x: naive.on_grid(x, 8, *next(places)))
    require_close(found, expected(model, "llama", text, wanted))


def test_what_a_quantizer_does_to_inputs_is_done_before_they_are_rounded(models):
    """W·x = (W·diag(s)·Q)·(Qᵀ(x/s)): with scaled and rotated weights the rounded model is this one."""
    model, text = models("llama"), ids(3, 16)
    scale = torch.linspace(0.5, 2, HIDDEN)
    hadamard = torch.tensor([[1.0, 1], [1, -1]])
    rotation = Rotation(torch.tensor([1.0, -1] * (HIDDEN // 2)), hadamard / 2**0.5)
    names = [name for name, module in model.linears().items() if module.in_features == HIDDEN]
    transforms = {name: Transform(scale, rotation) for name in names}

    def inputs(x):
        if x.shape[-1] != HIDDEN:
            return naive.integers(x, 4, (2,))
        turned = ((x * rotation.signs).unflatten(-1, (-1, 2)) @ rotation.matrix).flatten(-2) / scale
        found = naive.integers(turned, 4, (2,)) * scale
        return (found.unflatten(-1, (-1, 2)) @ rotation.matrix.T).flatten(-2) * rotation.signs

    found = simulated(model, text, Rounding("int4", 4, "token"), transforms=transforms)
    require_close(found, expected(model, "llama", text, naive.Rounders(inputs=inputs)))


@pytest.mark.parametrize("count", [7, 8])
def test_keys_are_told_apart_where_there_are_as_many_heads_as_tokens_in_the_trial(count):
    """Gemma's norm of keys reads [windows, heads, tokens, channels], Llama's projection [windows, tokens, channels]."""
    cache = Cache(Rounding("int3", 3, "token"), Rounding("int8", 8, "token"), "before")
    for architecture in ("llama", "gemma3"):
        sizes = {"hidden_size": 4 * count, "head_dim": 4, "num_attention_heads": count, "num_key_value_heads": count}
        model = LanguageModel(build(architecture, **sizes))
        simulation = Simulation(model, None, cache)
        simulation.prepare(model.parameters_of({}), ids(1, 16))
        laid = [own.heads for own in simulation._attention.values()]
        assert laid == [count if architecture == "llama" else 0] * 2


def changed(model, text, changes):
    """The logits where what these modules of every attention return is changed."""
    hooks = [
        getattr(layer.self_attn, name).register_forward_hook(lambda _own, _args, out, change=change: change(out))
        for layer in model.module.model.layers
        for name, change in changes.items()
    ]
    logits = model.logits(text)
    for hook in hooks:
        hook.remove()
    return logits


def test_a_norm_of_keys_after_the_rotary_embedding_is_not_ahead_of_it():
    """transformers' nanochat rotates keys and norms them then; what is rounded ahead is the projection's output."""
    model, text = LanguageModel(build(NanoChatConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    ))), ids(3, 16)  # fmt: skip
    rounding = Rounding("int3", 3, "channel"), Rounding("int8", 8, "token")
    found = simulated(model, text, None, Cache(*rounding, "before"))
    by_head = lambda x: naive.integers(x.unflatten(-1, (2, -1)), 8, (3,)).flatten(-2)
    rounders = {"k_proj": lambda x: naive.integers(x, 3, (1,)), "v_proj": by_head}
    require_close(found, changed(model, text, rounders))


def test_layers_without_a_rotary_embedding_have_their_keys_rounded_behind_the_norm():
    """EXAONE 4 norms keys in all layers, and rotates those of layers with a sliding window alone."""
    model, text = LanguageModel(build(Exaone4Config(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ))), ids(3, 16)  # fmt: skip
    rounding = Rounding("int3", 3, "channel"), Rounding("int8", 8, "token")
    found = simulated(model, text, None, Cache(*rounding, "before"))
    by_head = lambda x: naive.integers(x.unflatten(-1, (2, -1)), 8, (3,)).flatten(-2)
    rounders = {"k_norm": lambda x: naive.integers(x, 3, (2,)), "v_proj": by_head}
    require_close(found, changed(model, text, rounders))


@pytest.mark.parametrize("architecture", ["gpt2", "gpt-neox"])
def test_keys_without_a_projection_of_their_own_are_not_rounded_before_the_rotary_embedding(models, architecture):
    model = models(architecture)
    simulation = Simulation(model, None, Cache(Rounding("int4", 4, "channel"), Rounding("int4", 4, "token"), "before"))
    with pytest.raises(UnsupportedModelError, match="keys have no projection of their own"):
        simulation.prepare(model.parameters_of({}), ids(1, 8))


def test_a_model_without_the_attention_interface_is_refused():
    model = LanguageModel(build("gptj"), name="some gptj")
    cache = Cache(Rounding("int4", 4, "channel"), Rounding("int4", 4, "token"))
    activations = Simulation(model, Rounding("int8", 8, "token"))
    activations.prepare(model.parameters_of({}), ids(1, 8))
    with pytest.raises(UnsupportedModelError, match="does not read keys and values through transformers' attention"):
        Simulation(model, None, cache).prepare(model.parameters_of({}), ids(1, 8))


@pytest.mark.parametrize("static", [False, True])
def test_inputs_that_no_longer_are_windows_are_rounded_per_token_alone(static):
    """Experts read the tokens that the router sends them, of all windows of a batch."""
    model, text = LanguageModel(build(ExpertsConfig()), name="experts"), ids(3, 16)
    found = simulated(model, text, Rounding("int4", 4, "token"))
    alone = torch.cat([simulated(model, row, Rounding("int4", 4, "token")) for row in text.split(1)])
    assert (found - model.logits(text)).abs().max() > 0.01
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
    rounding = Rounding("int4", 4, "tensor", *(("static", "digest") if static else ()))
    with pytest.raises(UnsupportedModelError, match=r"not kept window by window .* remedy: --activation-per token"):
        simulated(model, text, rounding, calibration=text)
