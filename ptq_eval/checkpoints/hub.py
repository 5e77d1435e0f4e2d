"""Revisions on the Hugging Face hub: `hub:org/name@step1000` or `hub:org/name@{step1000,step2000}`.

The id alone says which checkpoints there are, so discovering them needs no network; weights are fetched into
the usual cache when a checkpoint is first opened.  Safetensors are fetched if there are any, pickles only
otherwise, and nothing from subfolders, which hold copies in other formats.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ptq_eval.checkpoints.base import CheckpointFormat, Position, read_label
from ptq_eval.checkpoints.numbered import place_revision
from ptq_eval.errors import NoCheckpointError, UnreadableCheckpointError
from ptq_eval.records import Checkpoint

_ID = re.compile(r"hub:(?P<model>[\w.-]+(?:/[\w.-]+)?)(?:@(?:\{(?P<many>[^{}]+)\}|(?P<one>[^{}]+)))?")
_SMALL = ["*.json", "*.model", "*.txt", "*.tiktoken", "*.py"]


class Hub(CheckpointFormat):
    """`hub:` ids with one or several revisions; without any, `main`."""

    name = "hub"
    scheme = "hub"

    def discover(self, root: Path | str) -> list[Checkpoint]:
        """One checkpoint per revision, in the order given.  Raises NoCheckpointError for a malformed id."""
        match = _ID.fullmatch(str(root))
        if not match:
            raise NoCheckpointError(
                "not a hub id", got=root, allowed="hub:org/name, hub:org/name@rev, hub:org/name@{rev,rev}"
            )
        model = match["model"]
        names = match["many"].split(",") if match["many"] else [match["one"] or "main"]
        return [self._checkpoint(model, name.strip()) for name in names if name.strip()]

    def _checkpoint(self, model: str, revision: str) -> Checkpoint:
        run, position = place_revision(model, revision, read_label(model, revision))
        location = f"hub:{model}@{revision}"
        return replace(self.describe(Path(location), position or Position(None)), run=run, revision=revision)

    def local_path(self, checkpoint: Checkpoint) -> Path:
        """Fetch the revision into the hub's cache.  Raises UnreadableCheckpointError where that fails."""
        from huggingface_hub import snapshot_download

        model = checkpoint.location.removeprefix("hub:").partition("@")[0]

        def fetch(weights: str) -> Path:
            return Path(
                snapshot_download(
                    model,
                    revision=checkpoint.revision,
                    allow_patterns=[*_SMALL, weights],
                    ignore_patterns=["*/*"],
                )
            )

        try:
            folder = fetch("*.safetensors")
            return folder if any(folder.glob("*.safetensors")) else fetch("pytorch_model*.bin")
        except Exception as error:  # the hub's own errors, and its HTTP client's, whichever it uses
            raise UnreadableCheckpointError(
                f"{checkpoint.location} cannot be fetched",
                got=type(error).__name__,
                remedy="check the id, the revision and the network; a private model needs `hf auth login`",
            ) from error
