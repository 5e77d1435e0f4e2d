"""Files that do not hold what their names say: pointers, web pages, texts, weights of another format, nothing at all.

A download that failed and a clone without its large files leave files of the right names, which readers call corrupt.
Their first bytes say what they are, and so what to do.  The table is our own: libraries that know types of files by
their first bytes do not know the pointers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ptq_eval.errors import PtqEvalError, UnreadableCheckpointError
from ptq_eval.models.weight_files import WeightFiles

_AGAIN = "fetch it again"
_INSTEAD = (
    (re.compile(rb"version https://git-lfs"), "a git-lfs pointer", "run `git lfs pull` in its repository"),
    (re.compile(rb"# xet version"), "a pointer of Xet", "fetch the file itself with `hf download`"),
    (re.compile(rb"/annex/objects/"), "a pointer of git-annex", "run `git annex get` in its repository"),
    (re.compile(rb"\s*<(!doctype html|html|head|\?xml)", re.IGNORECASE), "a web page", "download it again: an address "
     "on the hub has /resolve/ in place of /blob/, and some models need `hf auth login`"),
)  # fmt: skip
"""What files hold instead of their content, by how they begin: any that is read."""
_OTHER_WEIGHTS = (
    (re.compile(rb"GGUF"), "a GGUF file", "measure the original"),
    (re.compile(rb"\x1f\x8b|BZh|\x28\xb5\x2f\xfd|\xfd7zXZ"), "a compressed file", "decompress it"),
    (re.compile(rb"\x89HDF"), "an HDF5 file (Keras, TensorFlow)", _AGAIN),
)
"""The same for weights."""
_A_PICKLE = (
    re.compile(rb"PK\x03\x04|\x80[\x02-\x05]"), "a pickle of PyTorch", "rename it to {}.bin (pytorch_model.bin)"
)  # fmt: skip
_SAFETENSORS = (
    re.compile(rb".{6}\x00\x00\{", re.DOTALL), "a safetensors file", "rename it to model.safetensors"
)  # fmt: skip
_TEXT = (re.compile(rb"(?=[\t\r\n -~]+\Z)[^\r\n]{0,80}"), "text ({!r})", _AGAIN)
"""Weights of one kind in a file whose name is of another, and files of printable characters alone."""
_NAMES = ("model*.safetensors", "pytorch_model*.bin", "model.pt", "pytorch_model.pt")
"""Names of weights."""
_STORES = {".git/annex": "git annex get", ".dvc": "dvc pull", "dvc/cache": "dvc pull"}
"""What links into these folders are fetched by."""
_START = 256
"""Bytes of a file that say what it is."""
_BESIDE = re.compile(r"config\.json|(tokenizer|spiece|vocab)\S*\.(json|model|txt)|\S+\.index\.json")
"""Files that are never empty."""
_READ = (".json", ".txt", ".model", ".tiktoken", ".jinja", ".py", ".bpe", ".vocab", ".yaml")
"""How the names of files end that are read besides weights."""


def placeholder(folder: Path) -> PtqEvalError | None:
    """The error for the first file of a folder, besides weights, that is read and does not hold what its name says."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        needed = _BESIDE.fullmatch(path.name) is not None
        if path.suffix in _READ and (error := _no_file(path, needed) or _no_content(path, needed, _INSTEAD)):
            return error
    return None


def pointer(path: Path) -> PtqEvalError | None:
    """The error for a file that holds a pointer to its content, or a web page."""
    return _no_content(path, False, _INSTEAD)


def placeholder_of(folder: Path, weights: WeightFiles) -> PtqEvalError | None:
    """The same for the weights of a folder: those found, and where some are not found, whatever has their names."""
    missing = weights.missing or not weights.files
    named = [path for name in _NAMES for path in sorted(folder.glob(name))] if missing else []
    errors = (*(_no_file(path, True) for path in named), *map(_no_weights, weights.files))
    return next((error for error in errors if error is not None), None)


def _no_file(path: Path, needed: bool) -> PtqEvalError | None:
    """The error for something that has the name of a file and is none; reading from a pipe would never end."""
    if path.is_file() or not (needed or path.exists()):
        return None
    again = "fetch or save the file again"
    if not path.exists():
        got = str(path.readlink())
        by = next((tool for kind, tool in _STORES.items() if kind in got), "hf download")
        what, remedy = (
            f"{path.name} is a link to a file that does not exist",
            f"fetch it again (`{by}`), or copy the file",
        )
        return UnreadableCheckpointError(what, got=got, remedy=remedy)
    if path.is_dir():
        remedy = "move its files into the folder above, or " + again
        return UnreadableCheckpointError(f"{path.name} is a folder, not a file", remedy=remedy) if needed else None
    return UnreadableCheckpointError(f"{path.name} is a pipe, a socket or a device, not a file", remedy=again)


def _no_content(path: Path, needed: bool, kinds: Iterable[tuple[re.Pattern[bytes], str, str]]) -> PtqEvalError | None:
    """The error for a file that holds one of `kinds`, or nothing although it is `needed`."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        start = stream.read(_START)
    if needed and not start:
        what = f"{path.name} is empty (0 bytes)"
        return UnreadableCheckpointError(what, remedy="fetch it again (`git lfs pull`, `hf download`)")
    for pattern, what, remedy in kinds:
        if match := pattern.match(start):
            what = f"{path.name} is {what.format(match[0].decode(errors='replace'))}, not the file itself"
            return UnreadableCheckpointError(what, remedy=remedy.format(path.stem))
    return None


def _no_weights(path: Path) -> PtqEvalError | None:
    safetensors = path.suffix == ".safetensors"
    return _no_content(
        path, True, (*_INSTEAD, *_OTHER_WEIGHTS, *((_A_PICKLE,) if safetensors else (_SAFETENSORS,)), _TEXT)
    )
