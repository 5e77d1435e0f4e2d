"""The files that hold a checkpoint's weights: what is hashed and what is loaded are the same files.

transformers chooses among the files of a folder by rules of its own, reads an adapter or a distributed checkpoint
beside the weights, and changes these rules between versions.  So it is shown a folder of links to the hashed
files and to nothing else.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ptq_eval.errors import UnreadableCheckpointError

_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|msgpack|h5)")
_NO_WEIGHTS = re.compile(
    r"(scheduler|sampler|scaler|train\.|training_args|random_states|tokenizer).*|.*optim.*|.*rng.*"
)


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a checkpoint's weights, their index, and those that should be there and are not."""

    files: tuple[Path, ...]
    missing: tuple[str, ...] = ()
    index: Path | None = None

    def unused(self, folder: Path) -> list[str]:
        """Names of other files in `folder` that look like weights."""
        used = {path.name for path in self.files}
        names = (path.name for path in folder.iterdir() if path.is_file() and path.name not in used)
        return sorted(name for name in names if _WEIGHTS.fullmatch(name) and not _NO_WEIGHTS.fullmatch(name))


def find_weights(folder: Path) -> WeightFiles:
    """The weight files of a folder, in the order of preference of transformers: safetensors, then pickles.

    Raises UnreadableCheckpointError for an index that cannot be read or names files outside the folder.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        single, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
        if single.is_file():
            return WeightFiles((single,))
        if index.is_file():
            return _split(folder, _shards_of(index), index)
        shards = sorted(folder.glob(f"{stem}-*-of-*.{suffix}"))
        if shards:
            count = int(re.findall(r"\d+", shards[0].stem)[-1])
            return _split(folder, [index.name, *(f"{stem}-{i + 1:05d}-of-{count:05d}.{suffix}" for i in range(count))])
    return WeightFiles(tuple(path for path in (folder / "pytorch_model.pt", folder / "model.pt") if path.is_file())[:1])


@contextlib.contextmanager
def pinned(folder: Path, scratch: Path | None = None) -> Iterator[Path]:
    """A folder with links to the configuration, code and hashed weights of `folder`, and nothing else.

    It is gone afterwards, unless it is made below `scratch`.
    """
    with contextlib.ExitStack() as stack:
        if scratch is None:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ptq-eval-")))
        place = scratch / (folder.resolve().name or "model")
        place.mkdir(parents=True, exist_ok=True)
        found = find_weights(folder)
        others = [folder / "config.json", *folder.glob("*.py"), *([found.index] if found.index else [])]
        for path in (*found.files, *others):
            if path.is_file():
                (place / path.name).symlink_to(path.absolute())
        yield place


def _shards_of(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UnreadableCheckpointError(f"{index.name} cannot be read", got=repr(error)) from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise UnreadableCheckpointError(
            f"{index.name} names files outside its folder",
            got=outside[0],
            allowed="shards beside the index",
            remedy="save the model again, or put the shards beside the index",
        )
    return names


def _split(folder: Path, names: list[str], index: Path | None = None) -> WeightFiles:
    paths = [folder / name for name in names]
    return WeightFiles(
        tuple(path for path in paths if path.is_file()),
        tuple(path.name for path in paths if not path.is_file()),
        index,
    )
