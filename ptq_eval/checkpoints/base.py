"""The contract of a checkpoint format, and what all formats share.

A trajectory is a set of folders whose *names* carry most of what is known: a step, sometimes a token count.
So a format is above all a naming rule, `position(model, label)`, and the same rule serves a local folder
`step1000`, a revision `step1000` in a hub cache and the id `hub:org/name@step1000`: the two hub formats ask
every installed format to read a label.  A count that the name does not settle stays unknown and says so;
nothing is guessed from the size of a model.  Weights are never touched here, see `verify`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from ptq_eval import plugins
from ptq_eval.checkpoints.foreign import recognised
from ptq_eval.checkpoints.labels import Unit
from ptq_eval.checkpoints.trainer_state import with_trainer_state
from ptq_eval.errors import PtqEvalError
from ptq_eval.models.parameters import with_counts
from ptq_eval.records import Checkpoint, Source

ASK_TOKENS = "give --tokens-per-step, --tokens or a trajectory.yaml"
UNKNOWN_TOKENS = f"tokens per step are not known; {ASK_TOKENS}"
_UNCERTAIN = "its name does not say for certain which step it is of; give "
EACH_D = "D of every checkpoint with --tokens, or list folders with steps or D in a trajectory.yaml"
UNKNOWN_STEP = _UNCERTAIN + EACH_D
POSSIBLE_STEP = f"{_UNCERTAIN}--tokens-per-step if its number is the step, otherwise {EACH_D}"

BELOW_NUMBER = 2
"""How many levels below the folder with its number a model may be: `step98/model/hf`."""

_WEIGHTS = re.compile(r"(model|pytorch_model)(.*\.(safetensors|bin)(\.index\.json)?|\.pt)")


@dataclass(frozen=True)
class Position:
    """What a checkpoint's label says: the step, D in tokens with its source, and the stage of training.

    `unit` says what `step` counts; where it is not "step", a `trainer_state.json` knows better.
    """

    step: int | None
    tokens: int | None = None
    source: Source = "unknown"
    note: str = UNKNOWN_TOKENS
    stage: str = ""
    unit: Unit = "step"


class CheckpointFormat:
    """One way in which trajectories are stored.

    A subclass sets `name` and overrides `position`, which is all a format of labelled folders needs; one that
    is laid out otherwise overrides `discover` too, and `local_path` if its checkpoints are not folders yet.
    """

    name: ClassVar[str]
    looks_like: ClassVar[str] = ""
    """How a reader recognises it, for `ptq-eval formats`."""
    configuration: ClassVar[str] = "the config.json"
    """Where the configuration of a checkpoint's model is."""
    converted: ClassVar[bool] = False
    """Whether a folder for transformers is made from a checkpoint before it is loaded."""
    scheme: ClassVar[str] = ""
    """Roots written `scheme:...` are handed to this format as they are; the others are folders."""
    fallback: ClassVar[bool] = False
    """Asked last, about folders and labels that no other format reads."""
    takes_architecture: ClassVar[bool] = False
    """Whether `architecture_given` of a checkpoint changes its configuration."""
    needs_architecture: ClassVar[bool] = False
    """Asked only where a whole configuration is given, and no other format then."""

    def position(self, model: str, label: str) -> Position | None:
        """The meaning of `label` (a folder's or a revision's name) for a model or run called `model`.

        None where the label is not of this format.
        """
        del model, label
        return None

    def discover(self, root: Path) -> list[Checkpoint]:
        """The checkpoints directly inside `root`: cheap, and empty where there are none.

        `run` is left empty, to be named after the folder, unless the format knows a better name; `./NAME` is one of
        several runs in the folder.
        """
        found = []
        for child in subfolders(root):
            position = self.position(root.name, child.name)
            if position is not None and holds_model(child):
                found.append(self.describe(child, position))
        return found

    def describe(self, folder: Path, position: Position) -> Checkpoint:
        """The checkpoint in `folder`; a `trainer_state.json` there completes what the label says."""
        checkpoint = Checkpoint(
            run="",
            step=position.step if position.unit == "step" else None,
            tokens=position.tokens,
            params=None,
            location=str(folder),
            format=self.name,
            revision=folder.name,
            tokens_source=position.source,
            tokens_note=position.note,
            stage=position.stage,
        )
        checkpoint = with_trainer_state(checkpoint, folder)
        if checkpoint.step is None and position.step is None and position.note == UNKNOWN_TOKENS:
            return replace(
                checkpoint, tokens_note=checkpoint.tokens_note if checkpoint.tokens is not None else UNKNOWN_STEP
            )
        if checkpoint.step is None:
            return replace(checkpoint, step=position.step)
        counted_steps = position.unit != "step" and checkpoint.tokens is None
        return replace(checkpoint, tokens_note=UNKNOWN_TOKENS) if counted_steps else checkpoint

    def local_path(self, checkpoint: Checkpoint) -> Path:
        """The folder that holds the checkpoint, fetched first if need be."""
        return Path(checkpoint.location)

    def small_path(self, checkpoint: Checkpoint) -> Path:
        """A folder with the checkpoint's configuration and tokenizer at least; the same as `local_path`, if fetched."""
        return self.local_path(checkpoint)

    def copy_of(self, checkpoint: Checkpoint) -> Path | None:
        """The folder that `local_path` writes, which need not exist yet; None where files are used as they are."""
        del checkpoint
        return None

    def remove(self, copy: Path, kept: frozenset[str]) -> None:
        """Delete what `local_path` wrote into a folder that `copy_of` named, except the files `kept`."""
        raise NotImplementedError(f"{self.name} makes no copies")


def read_label(model: str, label: str) -> Position | None:
    """The first installed format's reading of a label; formats are asked in order of name, fallbacks last."""
    for plugin in sorted(plugins.load_all("checkpoints").values(), key=lambda plugin: plugin.fallback):
        position = plugin().position(model, label)
        if position is not None:
            return position
    return None


def local_path(checkpoint: Checkpoint) -> Path:
    """The folder with the checkpoint's files, fetched first if its format needs that.

    Raises UnreadableCheckpointError where fetching fails, UnknownPluginError where the format is not
    installed.
    """
    return plugins.get("checkpoints", checkpoint.format)().local_path(checkpoint)


def configuration_of(checkpoint: Checkpoint) -> str:
    """Where the configuration of a checkpoint's model is.  Raises UnknownPluginError."""
    return plugins.get("checkpoints", checkpoint.format).configuration


def small_path(checkpoint: Checkpoint) -> Path:
    """A folder with a checkpoint's configuration and tokenizer at least, fetched first if its format needs that.

    Raises as `local_path`.
    """
    return plugins.get("checkpoints", checkpoint.format)().small_path(checkpoint)


def counted(checkpoint: Checkpoint) -> Checkpoint:
    """With N counted from the configuration; where that fails, `verify` says why."""
    try:
        return with_counts(checkpoint, Path(checkpoint.location))
    except PtqEvalError:
        return checkpoint


def subfolders(folder: Path) -> list[Path]:
    """The visible folders directly inside `folder`, in order of name."""
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def holds_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights, or the index of their shards, by file name alone."""
    return any(_WEIGHTS.fullmatch(child.name) for child in folder.iterdir())


def holds_model(folder: Path) -> bool:
    """Whether a folder holds weights in any form, a configuration or a trainer's state, by file name alone."""
    files = ("config.json", "trainer_state.json")
    return holds_weights(folder) or any((folder / name).is_file() for name in files) or recognised(folder)
