"""Files that do not hold what their names say: pointers, web pages, texts, weights of another format, nothing at all.

A download that failed and a clone without its large files leave files of the right names, which readers call corrupt.
Their first bytes say what they are, and so what to do.  The table is our own: libraries that know types of files by
their first bytes do not know the pointers.
"""

from __future__ import annotations

import re
from pathlib import Path

from ptq_eval.errors import PtqEvalError, UnreadableCheckpointError

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
_PICKLE = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]")
_SAFETENSORS = re.compile(rb".{6}\x00\x00\{", re.DOTALL)
_STORES = {".git/annex": "git annex get", ".dvc": "dvc pull", "dvc/cache": "dvc pull"}
"""What links into these folders are fetched by."""
_START = 256
"""Bytes of a file that say what it is."""
_BESIDE = re.compile(r"config\.json|(tokenizer|spiece|vocab)\S*\.(json|model|txt)|\S+\.index\.json")
"""Files that are never empty."""
_READ = (".json", ".txt", ".model", ".tiktoken", ".jinja", ".py", ".bpe", ".vocab", ".yaml")
"""How the names of files end that are read besides weights."""


def placeholder(folder: Path, weights: tuple[Path, ...] = ()) -> PtqEvalError | None:
    """The error for a pointer of git-lfs or an empty file among the files of a folder that are read: its `weights`, and
    whatever is no weights; and for weights that are a broken link.  `folder` may be a single file."""
    beside = (path for path in sorted(folder.iterdir()) if path.suffix in _READ) if folder.is_dir() else ()
    for file in () if weights else sorted([*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        if file.is_symlink() and not file.exists():
            what, got = f"{file.name} is a link to a file that does not exist", str(file.readlink())
            by = next((tool for kind, tool in _STORES.items() if kind in got), "hf download")
            return UnreadableCheckpointError(what, got=got, remedy=f"fetch it again (`{by}`), or copy the file")
    for file in (*weights, *beside):
        if not file.is_file():
            continue
        with file.open("rb") as stream:
            start = stream.read(_START)
        if found := _instead(file.name, start, file in weights):
            return UnreadableCheckpointError(f"{file.name} is {found[0]}, not the file itself", remedy=found[1])
        if not start and (file in weights or _BESIDE.fullmatch(file.name)):
            what = f"{file.name} is empty (0 bytes)"
            return UnreadableCheckpointError(what, remedy="fetch it again (`git lfs pull`, `hf download`)")
    return None


def _instead(name: str, start: bytes, of_weights: bool) -> tuple[str, str] | None:
    """What a file that begins with `start` is instead of what its name says, and the remedy; None where it is that."""
    for pattern, what, remedy in (*_INSTEAD, *(_OTHER_WEIGHTS if of_weights else ())):
        if pattern.match(start):
            return what, remedy
    if of_weights and name.endswith(".safetensors") and _PICKLE.match(start):
        return "a pickle of PyTorch", f"rename it to {name.removesuffix('.safetensors')}.bin (pytorch_model.bin)"
    if of_weights and not name.endswith(".safetensors") and _SAFETENSORS.match(start):
        return "a safetensors file", "rename it to model.safetensors"
    text = start.decode("ascii", errors="replace") if of_weights and start else "\ufffd"
    if text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable() and "\ufffd" not in text:
        return f"text ({text.splitlines()[0][:80]!r})", _AGAIN
    return None
