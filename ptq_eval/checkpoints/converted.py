"""Formats whose checkpoints are converted to what transformers loads, each time they are opened for the first time.

A format says where its checkpoints are, what their files say of step and D, and what a folder for transformers holds
(`content`); the folder is made once (`staging`).  A checkpoint whose files cannot be read is found all the same, with
the reason: one that is missing without a word would leave a gap in a curve.
"""

from __future__ import annotations

import re
import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ptq_eval.checkpoints.base import CheckpointFormat
from ptq_eval.checkpoints.counts import with_count
from ptq_eval.checkpoints.staging import Content, place_of, staged
from ptq_eval.errors import PtqEvalError, UnreadableCheckpointError
from ptq_eval.models.json_files import load_json
from ptq_eval.records import Checkpoint

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "vocab.json", "merges.txt",
    "generation_config.json",
)  # fmt: skip
"""Files of a tokenizer that transformers reads, which several frameworks keep beside their weights."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SEEN = "global_train_tokens_seen"


class ConvertedFormat(CheckpointFormat):
    """A format with a `content` of its own for each checkpoint."""

    converted = True

    @abstractmethod
    def about(self, place: Path) -> Checkpoint:
        """The checkpoint at a place, with step, D and what else its files say.  Raises PtqEvalError."""

    @abstractmethod
    def content(self, place: Path, given: Mapping[str, Any]) -> Content:
        """What a folder for transformers holds; `given` are entries of its configuration.  Raises PtqEvalError."""

    def sources(self, place: Path) -> Sequence[Path]:
        """The files that `content` reads."""
        return [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())

    def tokenizer_homes(self, place: Path) -> Sequence[Path]:
        """Where a tokenizer may be: beside the weights, or in the run's folder."""
        return [place, place.parent] if place.is_dir() else [place.parent]

    def _tokenizer(self, place: Path) -> dict[str, Path]:
        """The files of the first tokenizer there is, by name."""
        for home in self.tokenizer_homes(place):
            found = {name: home / name for name in TOKENIZER_FILES if (home / name).is_file()}
            if found.keys() & set(_TOKENIZERS):
                return found
        return {}

    def found(self, place: Path, step: int | None = None) -> Checkpoint:
        """What `about` says, or an unreadable checkpoint with the reason, at the step of its name."""
        blank = Checkpoint(
            "", step, None, None, str(place), self.name, place.stem if place.is_file() else place.name
        )  # fmt: skip
        try:
            known = self.about(place)
        except PtqEvalError as error:
            return blank.with_problem("unreadable", error.fault, fatal=True, remedy=error.remedy)
        return replace(known, location=blank.location, format=blank.format, revision=blank.revision)

    def local_path(self, checkpoint: Checkpoint) -> Path:
        """The folder for transformers.  Raises the PtqEvalErrors of `content`."""
        place, given = Path(checkpoint.location), dict(checkpoint.architecture_given)

        def made() -> Content:
            content, beside = self.content(place, given), self._tokenizer(place)
            known = content.texts.keys() | content.links.keys()
            return content if known & beside.keys() else replace(content, links={**content.links, **beside})

        return staged(*self._origin(checkpoint), made)

    def copy_of(self, checkpoint: Checkpoint) -> Path:
        """The folder for transformers, which need not exist yet."""
        return place_of(*self._origin(checkpoint))

    def remove(self, copy: Path, kept: frozenset[str]) -> None:
        """Delete a folder for transformers that was not there before."""
        if not kept:
            shutil.rmtree(copy, ignore_errors=True)

    def _origin(self, checkpoint: Checkpoint) -> tuple[Sequence[Path], dict[str, Any]]:
        """The files that a folder for transformers is made from, and what else decides its content."""
        place = Path(checkpoint.location)
        facts = {"format": self.name, "given": dict(checkpoint.architecture_given)}
        return [*self.sources(place), *self._tokenizer(place).values()], facts


class ConvertedFolders(ConvertedFormat):
    """A format with a folder for each checkpoint, whose name may be its step."""

    label: ClassVar[re.Pattern[str]]
    """The names that say the step, which is the first group."""

    @abstractmethod
    def holds(self, place: Path) -> bool:
        """Whether a folder is a checkpoint of this format, by names of files alone."""

    def discover(self, root: Path) -> list[Checkpoint]:
        """The folders in `root` that are checkpoints, or `root` itself; links to them (`latest`) are not counted."""
        places = [child for child in sorted(root.iterdir()) if not child.is_symlink() and self.holds(child)]
        return [self.found(place, self.step_of(place)) for place in places or [root] if self.holds(place)]

    def step_of(self, place: Path) -> int | None:
        """The step that a folder's name says."""
        match = self.label.fullmatch(place.name)
        return int(match[1]) if match else None


def mapping_of(path: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file.  Raises UnreadableCheckpointError."""
    try:
        content = load_json(path) if path.suffix == ".json" else yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        got = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise UnreadableCheckpointError(f"{path.name} cannot be read", got=got, remedy="fetch it again") from error
    if not isinstance(content, dict):
        raise UnreadableCheckpointError(f"{path.name} is no mapping", got=repr(content)[:80], remedy="fetch it again")
    return content


def part_of(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The mapping under a key; an empty one where there is none."""
    part = content.get(name)
    return part if isinstance(part, dict) else {}


def with_tokens_seen(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """With the exact D that a trainer of OLMo stores, where its state is plain values that are safe to read."""
    from ptq_eval.models.pickles import load_content

    try:
        state = load_content(path) if path.is_file() else {}
    except PtqEvalError:  # objects, which are not unpickled: the configuration says D too
        return checkpoint
    return with_count(checkpoint, state if isinstance(state, dict) else {}, _SEEN, path.name)


def is_size(value: Any) -> bool:
    """Whether an entry of a configuration is a whole number from 1 on."""
    return type(value) is int and value > 0
