"""The texts of a run: read once, cut into windows once per tokenizer, and described for `run.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ptq_eval import corpora
from ptq_eval.config import RunConfig
from ptq_eval.corpora.base import Text
from ptq_eval.corpora.overlap import overlap
from ptq_eval.corpora.windows import Windows, make_windows
from ptq_eval.models.loading import load_tokenizer
from ptq_eval.records import Checkpoint

_SPARE_CHARS = 16
"""Characters read per token needed; more than any common tokenizer needs on average."""

_CROP_CHARS = 512
"""The same for random crops, which are drawn from a 32 times longer part of the text."""


class Texts:
    """The evaluation and the calibration text of one run's options, as windows of any checkpoint's tokens."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._windows: dict[tuple[str, str, int, int], Windows] = {}
        self._texts: dict[tuple[str, int | None], Text] = {}

    def cut(self, role: str, checkpoint: Checkpoint, folder: Path, vocab_size: int, seq_len: int) -> Windows:
        """The windows of the "evaluation" or "calibration" text for the tokenizer of a checkpoint in `folder`.

        Raises MissingTokenizerError, TextSourceError, TextTooShortError or TokenRangeError.
        """
        key = (role, checkpoint.tokenizer_sha, seq_len, vocab_size)
        if key not in self._windows:
            calibrating = role == "calibration"
            count = self.config.calib_windows if calibrating else self.config.eval_windows
            seed = self.config.calib_seed if calibrating else None
            chars_per_token = _SPARE_CHARS if seed is None else _CROP_CHARS
            max_chars = None if count is None else chars_per_token * seq_len * count + 100_000
            text = self._text(self.config.calib_text if calibrating else self.config.eval_text, max_chars)
            trust = self.config.trust_remote_code
            bos = self.config.bos
            tokenizer = load_tokenizer(folder, trust, checkpoint.name) if text.ids is None or bos else None
            self._windows[key] = make_windows(
                text, tokenizer, seq_len=seq_len, count=count, seed=seed, vocab_size=vocab_size, bos=bos
            )
        return self._windows[key]

    def _text(self, spec: str, max_chars: int | None) -> Text:
        if (spec, max_chars) not in self._texts:
            self._texts[spec, max_chars] = corpora.read(spec, max_chars=max_chars)
        return self._texts[spec, max_chars]


def describe_windows(windows: Windows) -> dict[str, Any]:
    """A text's entry in `run.json`: its protocol, digests and notes."""
    return {
        "spec": windows.spec,
        "protocol": windows.protocol,
        "digest": windows.digest,
        "text_digest": windows.text_digest,
        "windows": len(windows.ids),
        "available": windows.total_windows,
        "notes": list(windows.notes),
    }


def describe_overlap(calibration: Windows, evaluation: Windows) -> dict[str, Any]:
    """The entry in `run.json` of how much of the evaluation text occurs in the calibration text."""
    found = overlap(calibration, evaluation)
    return {
        "share_of_windows": found.share_of_windows,
        "share_of_ngrams": found.share_of_ngrams,
        "flagged": found.flagged,
        "message": found.message,
    }
