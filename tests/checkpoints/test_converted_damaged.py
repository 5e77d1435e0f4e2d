"""Damaged checkpoints of every format that is converted: one line each, and nothing in them is executed."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.errors import PtqEvalError

FIXTURES = Path(__file__).parent / "fixtures"
OF = {
    "nanochat": "nanochat/d3", "nanogpt": "nanogpt/plain", "litgpt": "litgpt/llama", "olmo": "olmo/tied",
    "olmo_core": "olmo_core/llama", "torchtitan": "torchtitan/flat",
}  # fmt: skip
OPTIONAL = {"train.pt", "hyperparameters.yaml", "trajectory.yaml", "expected.npz"}
"""Files without which a checkpoint is measured all the same, or not of the checkpoint."""


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def _flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes(value ^ 0xFF for value in content[middle : middle + 64]) + content[middle + 64 :]


def _bomb(path, trap):
    content = pickle.dumps(Bomb(trap))
    if path.suffix in (".pt", ".pth"):
        torch.save({"model": Bomb(trap), "model_args": {}, "weight": Bomb(trap)}, path)
    else:
        path.write_bytes(content)


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
}


def files(name):
    root = FIXTURES / OF[name]
    found = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
    return [file for file in found if Path(file).name not in OPTIONAL][:4]


def hidden(file, how):
    """Whether the end of a file may hold nothing of the model: a last entry of YAML, the optimizer's state."""
    return how == "without its end" and file.endswith((".yaml", ".distcp"))


CASES = [(name, file, how) for name in OF for file in files(name) for how in DAMAGE if not hidden(file, how)]


@pytest.mark.parametrize(("name", "file", "how"), CASES, ids=lambda value: str(value).replace("/", "-"))
def test_a_damaged_file_is_one_line_and_nothing_is_executed(tmp_path, name, file, how):
    root, trap = tmp_path / "run", tmp_path / "trap"
    shutil.copytree(FIXTURES / OF[name], root)
    DAMAGE[how](root / file, trap)
    try:
        found = verify_all(discover([root]))
        assert found
        lines = [str(problem) for checkpoint in found for problem in checkpoint.fatal]
        assert lines, found
    except PtqEvalError as error:
        lines = [str(error)]
    assert all("\n" not in line and len(line) < 800 for line in lines)
    assert not any(word in line for line in lines for word in ("Traceback", "KeyError(", "object at 0x"))
    assert not trap.exists()
