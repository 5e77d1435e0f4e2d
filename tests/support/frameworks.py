"""Checkpoints in the documented layouts of frameworks that do not install beside the tests, of random weights."""

import json
import random

import numpy as np
import torch
from safetensors.torch import save_file

VOCABULARY = 96


def drawn(shape, generator):
    """Random numbers: matrices of a spread of 0.2, vectors of 0.1."""
    return torch.randn(shape, generator=generator) * (0.1 if len(shape) == 1 else 0.2)


NEOX = {
    "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64, "seq_length": 64,
    "pos_emb": "rotary", "rotary_pct": 0.5, "no_weight_tying": True, "gpt_j_residual": True, "model_parallel_size": 1,
    "train_batch_size": 8, "attention_config": [[["flash"], 2]],
}  # fmt: skip


def neox_layers(options, seed=0):
    """{layer: [state of each rank]} of GPT-NeoX, as `tests.reference.neox` reads it."""
    generator, ranks, hidden = (
        torch.Generator().manual_seed(seed),
        options["model_parallel_size"],
        options["hidden_size"],
    )
    draw = lambda *shape: drawn(shape, generator)
    one = lambda: 1 + draw(hidden)
    layers = {0: [{"word_embeddings.weight": draw(VOCABULARY // ranks, hidden)} for _ in range(ranks)]}
    for index in range(options["num_layers"]):
        norms = {f"{name}_layernorm.{part}": one() if part == "weight" else draw(hidden)
                 for name in ("input", "post_attention") for part in ("weight", "bias")}  # fmt: skip
        same = {"attention.dense.bias": draw(hidden), "mlp.linear2.bias": draw(hidden)}
        layers[index + 2] = [
            {
                **norms,
                **(same if not options["gpt_j_residual"] else {name: draw(hidden) for name in same}),
                "attention.query_key_value.weight": draw(3 * hidden // ranks, hidden),
                "attention.query_key_value.bias": draw(3 * hidden // ranks),
                "attention.dense.weight": draw(hidden, hidden // ranks),
                "mlp.linear1.weight": draw(4 * hidden // ranks, hidden),
                "mlp.linear1.bias": draw(4 * hidden // ranks),
                "mlp.linear2.weight": draw(hidden, 4 * hidden // ranks),
                "attention.rotary_emb.inv_freq": torch.ones(4),
            }
            for _ in range(ranks)
        ]
    layers[options["num_layers"] + 3] = [{"norm.weight": one(), "norm.bias": draw(hidden)}] * ranks
    if options["no_weight_tying"]:
        head = [{"final_linear.weight": draw(VOCABULARY // ranks, hidden)} for _ in range(ranks)]
        layers[options["num_layers"] + 4] = head
    return layers


def neox_run(folder, options, layers, step=250, pipeline=True):
    """`global_stepN/` as DeepSpeed and GPT-NeoX save it; without a pipeline, one file for each rank."""
    place = folder / f"global_step{step}"
    (place / "configs").mkdir(parents=True)
    sizes = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings")
    model = {name.replace("_", "-"): value for name, value in options.items() if name in sizes}
    rest = {name: value for name, value in options.items() if name not in sizes}
    (place / "configs" / "model.yml").write_text("# the model\n" + json.dumps(model))
    (place / "configs" / "setup.yml").write_text(json.dumps(rest))
    # What GPT-NeoX stores beside the weights: states of random numbers, also numpy's.
    numbers = np.random.RandomState(0).get_state()
    others = {"iteration": step, "random_rng_state": random.getstate(), "np_rng_state": numbers}
    for rank in range(options["model_parallel_size"]):
        flat = {f"sequential.{i}.{name}": own for i, states in layers.items() for name, own in states[rank].items()}
        saved = {"module": None if pipeline else flat, "optimizer": None, **others}
        torch.save(saved, place / f"mp_rank_{rank:02}_model_states.pt")
        for index, states in layers.items() if pipeline else ():
            torch.save(states[rank], place / f"layer_{index:02}-model_{rank:02}-model_states.pt")
    return place


def plain_llama(config, seed=0):
    """The tensors of a Llama under transformers' names, of a configuration without tied embeddings."""
    generator, hidden, inner = torch.Generator().manual_seed(seed), config["hidden_size"], config["intermediate_size"]
    draw = lambda *shape: drawn(shape, generator)
    size = hidden // config["num_attention_heads"]
    rows = {"q": hidden, "k": config["num_key_value_heads"] * size, "v": config["num_key_value_heads"] * size}
    found = {"model.embed_tokens.weight": draw(VOCABULARY, hidden), "model.norm.weight": 1 + draw(hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        found |= {f"{at}self_attn.{part}_proj.weight": draw(count, hidden) for part, count in rows.items()}
        found |= {f"{at}mlp.{part}_proj.weight": draw(inner, hidden) for part in ("gate", "up")}
        found |= {f"{at}{name}_layernorm.weight": 1 + draw(hidden) for name in ("input", "post_attention")}
        found |= {
            f"{at}self_attn.o_proj.weight": draw(hidden, hidden),
            f"{at}mlp.down_proj.weight": draw(hidden, inner),
        }
    return {**found, "lm_head.weight": draw(VOCABULARY, hidden)}


def nanotron_run(folder, config, tensors, metas, ranks=2, step=250):
    """`N/` of nanotron's checkpoint version 1.5, from a Llama's or Qwen2's tensors under transformers' names."""
    place = folder / str(step)
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    size, inner = config["hidden_size"] // heads, config["intermediate_size"]
    names = {
        "model.embed_tokens.weight": "model.token_position_embeddings.pp_block.token_embedding.weight",
        "model.norm.weight": "model.final_layer_norm.pp_block.weight",
        "lm_head.weight": "model.lm_head.pp_block.weight",
    }
    stored, chunks = {names[name]: own for name, own in tensors.items() if name in names}, {}
    for layer in range(config["num_hidden_layers"]):
        own, at = f"model.layers.{layer}.", f"model.decoder.{layer}.pp_block."
        for kind in ("weight", "bias"):
            if (first := f"{own}self_attn.q_proj.{kind}") in tensors:
                joined = [tensors[first.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                stored[f"{at}attn.qkv_proj.{kind}"] = torch.cat(joined)
                chunks[f"{at}attn.qkv_proj.{kind}"] = [heads * size, keys * size, keys * size]
        stored[f"{at}mlp.gate_up_proj.weight"] = torch.cat(
            [tensors[f"{own}mlp.{part}_proj.weight"] for part in ("gate", "up")]
        )
        chunks[f"{at}mlp.gate_up_proj.weight"] = [inner, inner]
        for name, new in (("self_attn.o_proj", "attn.o_proj"), ("mlp.down_proj", "mlp.down_proj"),
                          ("input_layernorm",) * 2, ("post_attention_layernorm",) * 2):  # fmt: skip
            stored[f"{at}{new}.weight"] = tensors[f"{own}{name}.weight"]
    for name, tensor in stored.items():
        *path, kind = name.split(".")
        target = place.joinpath("model", *path)
        target.mkdir(parents=True, exist_ok=True)
        if "norm" in name:
            save_file({"data": tensor.clone()}, target / f"model_{kind}.safetensors")
            continue
        dim = int("o_proj" in name or "down_proj" in name)
        for rank in range(ranks):
            pairs, parts, local, start = [], [], 0, 0
            for chunk in chunks.get(name, [tensor.shape[dim]]):
                own = chunk // ranks
                ends = [[f"{at},{at + own},None"] for at in (local, start + rank * own)]
                others = ["None,None,None"] * (tensor.dim() - 1)
                pairs.append("#".join("|".join(e + others if dim == 0 else others + e) for e in ends))
                parts.append(tensor.narrow(dim, start + rank * own, own))
                local, start = local + own, start + chunk
            about = {
                "version": "1.5",
                "local_global_slices_pairs": ";".join(pairs),
                "unsharded_shape": str(tuple(tensor.shape)).replace("96", "np.int64(96)"),  # as some versions write it
            }
            file = target / f"model_{kind}_pp-rank-0-of-1_tp-rank-{rank}-of-{ranks}.safetensors"
            save_file({"data": torch.cat(parts, dim).clone()}, file, metadata=about)
    (place / "checkpoint_metadata.json").write_text(
        json.dumps({"version": "1.5", "tp": ranks, "dp": 1, "cp": 1, "metas": metas})
    )
    (place / "model_config.json").write_text(json.dumps(config))
    return place
