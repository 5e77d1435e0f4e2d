"""What the tests of the command line share."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

WORDS = ("total", "item", "return", "radius", "for", "in", "items", "def", "area", "0.5")


@dataclass
class Answer:
    """What a command said, and the exit code it left with."""

    code: int
    out: str
    err: str

    def refuses(self, code, *said):
        """The command left with `code` after one line on stderr that says all of `said`."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("ptq-eval: ")
        assert "Traceback" not in self.out + self.err
        for words in said:
            assert words in lines[0]
        assert self.code == code, lines[0]


def last_of_each(arguments):
    """The arguments without flags that occur again later, and their values; --option and the like are kept."""
    kept, places = list(arguments), {}
    flags = [(place, str(one)) for place, one in enumerate(kept) if str(one).startswith("--")]
    for place, flag in flags:
        if flag in places and flag not in ("--option", "--fixed", "--tied", "--bounds", "--start", "--test"):
            kept[places[flag]] = kept[places[flag] + 1] = None
        places[flag] = place
    return [one for one in kept if one is not None]


def write_text(path, kind):
    """A text of some thousand tokens."""
    lines = (" ".join(WORDS[(i * (j + kind + 3) + j) % len(WORDS)] for j in range(8)) for i in range(400))
    path.write_text("\n".join(lines))
    return path.read_text()


@lru_cache(maxsize=1)
def tokenizer(text):
    from ptq_eval.pretrain.data import train_tokenizer

    return train_tokenizer(text, 300)


def save_checkpoint(folder, text, *, seed=0, step=None, dtype=None, **changes):
    """A Llama of a few thousand parameters with its tokenizer, and what HF Trainer writes beside it."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    fields = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "tie_word_embeddings": True,
        **changes,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**fields), dtype=dtype or torch.float32)
    model.save_pretrained(folder)
    tokenizer(text).save_pretrained(folder)
    if step is not None:
        state = {"global_step": step, "max_steps": 1000, "num_input_tokens_seen": step * 4096, "log_history": []}
        (Path(folder) / "trainer_state.json").write_text(json.dumps(state))
    return model


def rewrite(folder, change):
    """Change a checkpoint's tensors in place: `change` gets {name: tensor} and changes it in place."""
    from safetensors.torch import load_file, save_file

    path = Path(folder) / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def records(out):
    """The lines stored so far, whole ones only."""
    lines = []
    for path in sorted((Path(out) / "records").glob("*.jsonl")):
        lines += path.read_bytes().split(b"\n")[:-1]  # a line that was cut short has no end
    return lines


def start(*arguments, before="", **options):
    """`ptq-eval` as a process of its own; `before` is Python that runs first."""
    code = f"import sys; sys.argv[0] = 'ptq-eval'\n{before}\nfrom ptq_eval.cli.main import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(os.fspath, last_of_each(arguments))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A test runner in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def numbers(out):
    """The stored records without what may differ between two identical measurements."""
    return [{name: value for name, value in json.loads(line).items() if name != "provenance"} for line in records(out)]


@contextmanager
def largest_file(size):
    """No file may grow beyond `size` bytes: the system refuses, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def mounted(folder, options):
    """A file system of its own at `folder`."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
