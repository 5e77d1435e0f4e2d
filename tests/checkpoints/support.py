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
