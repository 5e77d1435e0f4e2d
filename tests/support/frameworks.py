"""Checkpoints in the documented layouts of frameworks that do not install beside the tests, of random weights."""

import json
import random

import numpy as np
import torch

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
