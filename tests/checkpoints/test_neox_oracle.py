"""Oracle: GPT-NeoX's folders give the logits that its ranks compute, in either layout and however many there are."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ptq_eval.checkpoints import discover, local_path, verify_all
from ptq_eval.models.language_model import LanguageModel
from tests.reference.neox import neox_logits
from tests.support.frameworks import NEOX, VOCABULARY, neox_layers, neox_run

IDS = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


def read(folder):
    (checkpoint,) = verify_all(discover([folder]))
    assert not checkpoint.fatal, checkpoint.fatal
    assert (checkpoint.format, checkpoint.step, checkpoint.tokens) == ("neox", 250, 250 * 8 * 64)
    return LanguageModel.load(local_path(checkpoint)).logits(IDS)


def loss(logits):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), IDS[:, 1:].flatten())


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("pipeline", [True, False])
@pytest.mark.parametrize(
    "more",
    [{}, {"gpt_j_residual": False, "no_weight_tying": False}, {"bias_gelu_fusion": True, "rotary_pct": 1}],
    ids=["pythia", "sequential, tied", "fused"],
)
def test_the_loss_is_that_of_its_ranks(tmp_path, ranks, pipeline, more):
    options = {**NEOX, "model_parallel_size": ranks, **more}
    layers = neox_layers(options)
    neox_run(tmp_path / "run", options, layers, pipeline=pipeline)
    found, known = read(tmp_path / "run"), neox_logits(layers, options, IDS)
    assert abs(loss(found) - loss(known)) < 1e-5 * loss(known)
    assert (found - known).abs().max() < 1e-4 * known.abs().max()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("keys", [2, 4])
@pytest.mark.parametrize("legacy", [True, False])
def test_llamas_are_read_too(tmp_path, ranks, keys, legacy):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCABULARY,
            num_key_value_heads=keys, rms_norm_eps=1e-6, max_position_embeddings=64, rope_theta=10_000,
        )
    ).eval()  # fmt: skip
    state = {name: own.detach() for name, own in model.state_dict().items()}
    part = lambda name, dim: state[name].chunk(ranks, dim)
    ends = ((0, "word_embeddings.weight", "model.embed_tokens.weight"), (6, "final_linear.weight", "lm_head.weight"))
    layers = {index: [{name: own} for own in part(stored, 0)] for index, name, stored in ends}
    for block in range(2):
        at = f"model.layers.{block}."
        q, k, v = (part(f"{at}self_attn.{letter}_proj.weight", 0) for letter in "qkv")
        gate, up, down = (part(f"{at}mlp.{name}_proj.weight", int(name == "down")) for name in ("gate", "up", "down"))
        layers[block + 2] = []
        for rank in range(ranks):
            by_head = (
                torch.stack([own[rank].unflatten(0, (4 // ranks, 8)) for own in (q, k, v)], 1) if keys == 4 else None
            )
            layers[block + 2].append(
                {
                    "input_layernorm.scale": state[f"{at}input_layernorm.weight"],
                    "post_attention_layernorm.scale": state[f"{at}post_attention_layernorm.weight"],
                    "attention.query_key_value.weight": by_head.flatten(0, 2)
                    if keys == 4
                    else torch.cat([q[rank], k[rank], v[rank]]),
                    "attention.dense.weight": part(f"{at}self_attn.o_proj.weight", 1)[rank],
                    **(
                        {"mlp.w1.weight": gate[rank], "mlp.w3.weight": up[rank], "mlp.w2.weight": down[rank]}
                        if legacy
                        else {"mlp.linear1.weight": torch.cat([up[rank], gate[rank]]), "mlp.linear2.weight": down[rank]}
                    ),
                }
            )
    layers[5] = [{"norm.scale": state["model.norm.weight"]}] * ranks
    options = {
        **NEOX, "model_parallel_size": ranks, "rotary_pct": 1, "gpt_j_residual": False, "norm": "rmsnorm",
        "rms_norm_epsilon": 1e-6, "activation": "swiglu", "use_bias_in_mlp": False, "use_bias_in_attn_linear": False,
        **({"num_kv_heads": keys} if keys != 4 else {}),
    }  # fmt: skip
    neox_run(tmp_path / "run", options, layers)
    with torch.no_grad():
        known = model(IDS).logits
    found = read(tmp_path / "run")
    assert abs(loss(found) - loss(known)) < 1e-5 * loss(known)
    assert (found - known).abs().max() < 1e-5 * known.abs().max()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"pos_emb": "learned"}, "pos_emb = learned"),
        ({"gpt_j_tied": True}, "gpt_j_tied"),
        ({"attention_config": [[["mamba"], 2]]}, "mamba"),
        ({"norm": "scalenorm"}, "scalenorm"),
        ({"hidden_size": None}, "hidden_size"),
        ({"model_parallel_size": 2}, "layer_00-model_01"),
    ],
)
def test_other_models_are_refused_with_the_option_that_differs(tmp_path, more, text):
    layers = neox_layers(NEOX)
    place = neox_run(tmp_path / "run", NEOX, layers)
    (place / "configs" / "setup.yml").write_text(json.dumps({**NEOX, **more}))
    (place / "configs" / "model.yml").unlink()
    (checkpoint,) = verify_all(discover([tmp_path / "run"]))
    (problem,) = checkpoint.fatal
    assert text in str(problem)
