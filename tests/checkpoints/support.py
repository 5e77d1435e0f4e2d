"""What the tests of this folder share: a tiny Llama's configuration, a tiny tokenizer, a reading of problems."""

import json

from safetensors.torch import load_file, save_file

from ptq_eval.checkpoints import discover, error_for, verify

HIDDEN = 32


def llama_config(**changes):
    from transformers import LlamaConfig

    return LlamaConfig(
        **{
            "hidden_size": HIDDEN,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 48,
            "tie_word_embeddings": True,
            **changes,
        }
    )


def write_tokenizer(folder, words=("a", "b")):
    from tokenizers import Tokenizer, models

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: i for i, word in enumerate(["<unk>", *words])}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).save(str(folder / "tokenizer.json"))


def codes(checkpoint):
    return [problem.code for problem in checkpoint.problems]


def one(folder, **options):
    """The first checkpoint in a folder, verified."""
    return verify(discover([folder])[0], **options)


def only_problem(root):
    """The one problem of the first checkpoint under `root`, which excludes it, and its error."""
    found = verify(discover([root])[0])
    (problem,) = found.problems
    assert problem.fatal
    assert "\n" not in str(problem)
    return problem, error_for(found, problem)


def touch_checkpoint(folder, **changes):
    """A folder that looks like a checkpoint by its names: `discover` opens no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").touch()
    config = {
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 48, "tie_word_embeddings": True, **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rewrite(folder, change):
    """Rewrite the weights by `change(tensors)`, which returns a mapping of them or changes them in place."""
    tensors = load_file(folder / "model.safetensors")
    changed = change(tensors)
    tensors = changed if isinstance(changed, dict) else tensors
    save_file({n: x.clone() for n, x in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def nanochat_run(folder, era, steps, meta=None, vocab=61):
    """Checkpoints as nanochat of an era saves them, with random weights: 3 layers of width 32, contexts of 300."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    width, keys, layers, rows = 32, 16, 3, -(-vocab // 64) * 64
    shapes = {"transformer.wte.weight": (rows, width), "lm_head.weight": (rows, width)}
    for layer in range(layers):
        at = f"transformer.h.{layer}."
        shapes |= {f"{at}attn.c_{part}.weight": (keys if part in "kv" else width, width) for part in ("q", "k", "v")}
        shapes |= {f"{at}attn.c_proj.weight": (width, width), f"{at}mlp.c_fc.weight": (4 * width, width)}
        shapes |= {f"{at}mlp.c_proj.weight": (width, 4 * width)}
        if era in "CDE" and layer % 2 == (layers - 1) % 2:
            shapes |= {f"value_embeds.{layer}.weight": (rows, keys)}
            shapes |= {f"{at}attn.ve_gate.weight": (2, 32 if era == "C" else 12)}
    if era != "A":
        shapes |= {"resid_lambdas": (layers,), "x0_lambdas": (layers,)}
    if era == "E":
        shapes |= {"smear_gate.weight": (1, 24), "smear_lambda": (1,), "backout_lambda": (1,)}
    sizes = {"sequence_len": 300, "vocab_size": vocab, "n_layer": layers, "n_head": 4, "n_kv_head": 2, "n_embd": width}
    pattern = {} if era == "A" else {"window_pattern": "SL"}
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tensors = {name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for name, shape in shapes.items()}
        torch.save(tensors, folder / f"model_{step:06d}.pt")
        about = {"step": step, "val_bpb": 2.5, "model_config": {**sizes, **pattern}, "user_config": {}}
        about |= {"total_batch_size": 4096, "device_batch_size": 2} if meta is None else meta
        (folder / f"meta_{step:06d}.json").write_text(json.dumps(about))
    return folder
