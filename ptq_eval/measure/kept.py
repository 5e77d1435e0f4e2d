"""Parts of unfinished work, kept on disk as they are made, so that a process that is killed repeats little of it.

The folder of one checkpoint holds `parts.jsonl`, an append-only file of [name, value] lines (what a layer's quantizing
noted, what a batch of windows scored), and tensors beside it.  A part counts from the moment its line is written, after
its tensors; lines that belong together are written at once.  Numbers return bit for bit.  The folder has one writer,
holds for one version of this program and its libraries on one kind of device, and is removed once the records are
written.  Disk that it takes is bounded where variants are grouped (`sweep`).

Tensors are mapped into memory when they are read: the operating system may drop their pages at any time, so variants
that wait here take no memory.  For large models that alone is worth it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ptq_eval import plugins
from ptq_eval.errors import OutputFullError, full_disk

Found = TypeVar("Found")

SECONDS = 20.0
"""Work that is kept as a whole, such as sums over windows, is written again after so long."""


class OnDisk(MutableMapping[str, Tensor]):
    """Tensors by name in a folder, one file each; reading one maps its file into memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def adopt(self, name: str) -> bool:
        """Take over the file of an earlier process; whether there is one."""
        path = self._path(name)
        if path.exists():
            self._files[name] = path
        return path.exists()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._files[name] = self._path(name)
        _write({"weight": tensor}, self._files[name])

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor("weight")

    def __delitem__(self, name: str) -> None:
        self._files.pop(name).unlink()

    def clear(self) -> None:
        """Delete all files."""
        for name in list(self._files):
            del self[name]

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class Sums(Mapping[str, Tensor]):
    """Sums over windows that grow in memory and are written whole now and then; read from their file."""

    def __init__(self, path: Path) -> None:
        self._path, self._last = path, time.monotonic()

    @property
    def parts(self) -> int:
        """How many parts the sums hold that were written last."""
        if not self._path.exists():
            return 0
        with safe_open(self._path, framework="pt") as file:
            return int(file.metadata()["parts"])

    def resume(self, tensors: Mapping[str, Tensor]) -> int:
        """Put what was written last into `tensors`; how many parts of the sums it holds."""
        parts = self.parts
        for name, tensor in tensors.items() if parts else ():
            tensor.copy_(self[name])
        return parts

    def clear(self) -> None:
        """Delete what was written."""
        self._path.unlink(missing_ok=True)

    def keep(self, tensors: Mapping[str, Tensor], parts: int, *, last: bool) -> None:
        """Write the sums of `parts`, if these are all or the last time is long enough ago."""
        if last or time.monotonic() - self._last > SECONDS:
            _write(tensors, self._path, {"parts": str(parts)})
            self._last = time.monotonic()

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._path, framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        with safe_open(self._path, framework="pt") as file:
            return iter(file.keys())

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Kept:
    """The parts of one checkpoint's work in `folder`, those of an earlier process included.

    Raises OutputFullError where no space is left.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts: dict[str, list[Any]] = {}
        self._waiting: list[bytes] | None = None
        self._file = folder / "parts.jsonl"
        with full_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._read()

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path | None, device: str) -> Iterator[Kept]:
        """What is kept in `folder`, which is removed at the end or after an error, and stays where this process is
        interrupted or the disk is full.  Without a folder, or where another process has it, in one that does not
        outlive the context."""
        with contextlib.ExitStack() as stack:
            if folder is None or not stack.enter_context(_held(folder)):
                yield cls(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ptq-eval-"))))
                return
            made_with = {"device": device, **plugins.versions("ptq-eval", "torch", "transformers", "numba")}
            home = folder / "parts"
            kept = cls(home)
            if kept.once("made with", lambda: made_with) != made_with:
                shutil.rmtree(home)
                kept = cls(home)
                kept.add("made with", made_with)
            try:
                yield kept
            except OutputFullError:  # no record says that this failed: repeating the command goes on from here
                raise
            except Exception:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)

    def parts(self, name: str) -> list[Any]:
        """The values that were added under a name, in order."""
        return self._parts.get(name, [])

    def add(self, name: str, value: Any) -> None:
        """Keep a value of JSON under a name."""
        line = json.dumps([name, value], default=_plain).encode() + b"\n"
        self._parts.setdefault(name, []).append(value)
        if self._waiting is None:
            self._append(line)
        else:
            self._waiting.append(line)

    def once(self, name: str, compute: Callable[[], Found]) -> Found:
        """A value of JSON, computed unless it is kept already."""
        if name not in self._parts:
            self.add(name, compute())
        return self._parts[name][0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is added within the context is kept as a whole or not at all."""
        self._waiting = []
        try:
            yield
            self._append(b"".join(self._waiting))
        finally:
            self._waiting = None

    def tensors(self, name: str) -> OnDisk:
        """A place for tensors."""
        return OnDisk(self.folder / name)

    def sums(self, name: str) -> Sums:
        """A place for sums over windows."""
        return Sums(self.folder / f"{name}.safetensors")

    def _append(self, data: bytes) -> None:
        with full_disk(self.folder), self._file.open("ab") as file:
            file.write(data)

    def _read(self) -> None:
        """The parts of an earlier process; a line that it did not finish is removed, with all that follow."""
        good = 0
        with self._file.open("ab+") as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    name, value = json.loads(line)
                except ValueError:
                    break
                self._parts.setdefault(name, []).append(value)
                good += len(line)
            file.truncate(good)


def once(kept: Kept | None, name: str, compute: Callable[[], Found]) -> Found:
    """As `Kept.once`; computed where nothing is kept."""
    return compute() if kept is None else kept.once(name, compute)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Whether this process has a folder for itself within the context."""
    try:
        import fcntl
    except ImportError:  # no advisory locks on this system
        yield False
        return
    with full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _write(tensors: Mapping[str, Tensor], path: Path, facts: dict[str, str] | None = None) -> None:
    """Replace a file of tensors as a whole."""
    partial = path.with_name(f".{path.name}")
    whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with full_disk(path.parent):
        try:
            save_file(whole, partial, facts)
        except SafetensorError as error:  # of the operating system, as text
            raise OSError(errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error)) from error
        partial.replace(path)


def _plain(value: Any) -> Any:
    """A number of numpy or torch as one of Python."""
    return value.item()
