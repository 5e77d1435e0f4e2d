"""Damaged checkpoints of every format that is converted: one line each, and nothing in them is executed."""

import gzip
import pickle
import random
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.checkpoints.listing import listing
from ptq_eval.errors import PtqEvalError
from tests.support.frameworks import NEOX, neox_layers, neox_run, plain_llama

FIXTURES = Path(__file__).parent / "fixtures"
OF = {
    "nanochat": "nanochat/d3", "nanogpt": "nanogpt/plain", "litgpt": "litgpt/llama", "olmo": "olmo/tied",
    "olmo_core": "olmo_core/llama", "torchtitan": "torchtitan/flat", "nanotron": "nanotron/tp2",
}  # fmt: skip
"""The stored fixture of each format that has one."""
OPTIONAL = re.compile(
    r".*(train\.pt|hyperparameters\.yaml|trajectory\.yaml|expected\.npz|latest\.txt)|250/config\.yaml|.*/mp_rank_\S+"
)
"""Files without which a checkpoint is measured all the same, or not of the checkpoint."""
CONFIG = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 96,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def neox(root, pipeline):
    options = {**NEOX, "model_parallel_size": 2}
    neox_run(root, options, neox_layers(options), pipeline=pipeline)


def state_dict(root, pickled):
    root.mkdir(parents=True)
    tensors = plain_llama(CONFIG)
    torch.save({"model": tensors, "step": 250}, root / "ckpt.pt") if pickled else save_file(
        tensors, root / "step_250.safetensors"
    )


MADE = {
    "neox": lambda root: neox(root, True), "neox alone": lambda root: neox(root, False),
    "state_dict": lambda root: state_dict(root, True), "state_dict safe": lambda root: state_dict(root, False),
    **{name: lambda root, own=own: shutil.copytree(FIXTURES / own, root) for name, own in OF.items()},
}  # fmt: skip
"""What writes a checkpoint of each format into a folder that is not there yet."""


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def _flipped(content):
    """With the bits of the last 64 bytes turned."""
    return content[:-64] + bytes(value ^ 0xFF for value in content[-64:])


def _bomb(path, trap):
    content = pickle.dumps(Bomb(trap))
    if path.suffix in (".pt", ".pth"):
        torch.save({"model": Bomb(trap), "model_args": {}, "weight": Bomb(trap)}, path)
    else:
        path.write_bytes(content)


def _a_row_less(path, trap):
    """The first matrix of a file, shorter by a row."""
    cut = lambda tensors: {**tensors, (name := next(n for n in tensors if tensors[n].dim() == 2)): tensors[name][:-1]}
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as content:
            about, tensors = content.metadata(), {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        save_file({name: own.clone() for name, own in cut(tensors).items()}, path, metadata=about)
        return
    content = torch.load(path, weights_only=False)
    key = next((key for key in ("model", "module") if isinstance(content.get(key), dict)), None)
    torch.save({**content, key: cut(content[key])} if key else cut(content), path)


DAMAGE = {
    "empty": lambda path, trap: path.write_bytes(b""),
    "tenth": lambda path, trap: path.write_bytes(path.read_bytes()[: path.stat().st_size // 10]),
    "half": lambda path, trap: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its end": lambda path, trap: path.write_bytes(path.read_bytes()[:-20]),
    "zeros": lambda path, trap: path.write_bytes(bytes(path.stat().st_size)),
    "a page": lambda path, trap: path.write_text("<!doctype html><html><body>404</body></html>"),
    "a pointer": lambda path, trap: path.write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n"),
    "a list": lambda path, trap: path.write_text("[1, 2]"),
    "code": _bomb,
    "gone": lambda path, trap: path.unlink(),
    "a folder": lambda path, trap: (path.unlink(), path.mkdir()),
    "another pickle": lambda path, trap: path.write_bytes(pickle.dumps({"a": [1, 2]})),
    "a row less": _a_row_less,
    "a flipped end": lambda path, trap: path.write_bytes(_flipped(path.read_bytes())),
    "noise": lambda path, trap: path.write_bytes(random.Random(0).randbytes(path.stat().st_size)),
    "compressed": lambda path, trap: path.write_bytes(gzip.compress(path.read_bytes())),
    "nested": lambda path, trap: path.write_text("[" * 1200),
    "a number": lambda path, trap: path.write_text("42"),
    "nothing in it": lambda path, trap: path.write_text("{}"),
    "another mapping": lambda path, trap: path.write_text('{"a": {"b": 1}}'),
}


@cache
def files(name):
    """The first files of a checkpoint, two of each kind."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "run"
        MADE[name](root)
        found = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
    needed = [file for file in found if name == "neox alone" or not OPTIONAL.fullmatch(file)]
    kinds = [Path(file).suffix for file in needed]
    return [file for place, file in enumerate(needed) if kinds[:place].count(kinds[place]) < 2]


def hidden(file, how):
    """Whether damage may change nothing of the model: the end of YAML or of the optimizer's state; no matrix."""
    if how == "a row less":
        return Path(file).suffix not in (".pt", ".pth", ".safetensors")
    if how == "a flipped end" and file.endswith(".safetensors"):
        return True  # other numbers
    return how in ("without its end", "a flipped end") and file.endswith((".yaml", ".distcp"))


CASES = [(name, file, how) for name in MADE for file in files(name) for how in DAMAGE if not hidden(file, how)]


def test_every_format_has_twenty_cases():
    read = {row["checkpoints"] for row in listing() if row["status"] == "converted"}
    assert read == {name.split()[0] for name in MADE}
    assert all(sum(case[0].split()[0] == name for case in CASES) >= 20 for name in read)


@pytest.mark.parametrize(("name", "file", "how"), CASES, ids=lambda value: str(value).replace("/", "-"))
def test_a_damaged_file_is_one_line_and_nothing_is_executed(tmp_path, name, file, how):
    root, trap = tmp_path / "run", tmp_path / "trap"
    MADE[name](root)
    DAMAGE[how](root / file, trap)
    given = {"architecture": CONFIG} if name.startswith("state_dict") else {}
    try:
        found = verify_all(discover([root], overrides=given))
        assert found
        lines = [str(problem) for checkpoint in found for problem in checkpoint.fatal]
        assert lines, found
    except PtqEvalError as error:
        lines = [str(error)]
    assert all("\n" not in line and len(line) < 800 for line in lines)
    assert not any(word in line for line in lines for word in ("Traceback", "KeyError(", "object at 0x"))
    assert not trap.exists()
