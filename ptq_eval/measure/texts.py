"""The texts of a run as token windows, each cut once per tokenizer: one to evaluate on, one or several to calibrate on.

Calibration text, number of windows and their length may each be a list.  Every combination is a *condition*; several
seeds are draws of one condition, whose spread enters the errors of δ (`results.draws`).  The first condition is the one
that laws are fitted under.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ptq_eval import corpora
from ptq_eval.config.run import DEFAULT_SEQ_LEN, RunConfig
from ptq_eval.corpora.base import Text
from ptq_eval.corpora.windows import Windows, make_windows
from ptq_eval.errors import MissingTokenizerError, OptionError
from ptq_eval.models.blueprint import usable_length
from ptq_eval.models.configuration import end_of_text
from ptq_eval.models.loading import load_tokenizer
from ptq_eval.records import CalibrationDraw, Checkpoint, Progress, Selection

_SPARE_CHARS = 16
"""Characters read per token needed; more than any common tokenizer needs on average."""

_DRAWN_CHARS = 512
"""The same for windows drawn from the whole text: of a 32 times longer text."""

MAX_CHARACTERS = 2**26
"""Characters from which windows are drawn at most: a minute of tokenizing, and some hundred megabytes of memory."""


@dataclass(frozen=True)
class Request:
    """Which windows are wanted: `count` (None: all) of `length` tokens of `text`, chosen by `selection` and `seed`."""

    text: str
    count: int | None
    length: int
    selection: Selection
    seed: int


def evaluation_request(config: RunConfig, seq_len: int) -> Request:
    """The evaluation windows of `seq_len` tokens that a run asks for."""
    return Request(config.eval_text, config.eval_windows, seq_len, config.eval_sample, config.eval_seed)


def calibration_requests(config: RunConfig, seq_len: int) -> list[Request]:
    """All draws of calibration windows that a run asks for, condition by condition, the first draw of the first
    condition first.  `seq_len` is their length where none is asked for."""
    lengths = config.calib_length or (seq_len,)
    return [
        Request(text, windows, length, config.calib_sample, seed)
        for text, windows, length in product(config.calib_text, config.calib_windows, lengths)
        for seed in config.calib_seeds
    ]


def draw_of(request: Request, windows: Windows) -> CalibrationDraw:
    """What a record keeps of calibration windows."""
    seed = None if windows.sample.selection == "first" else request.seed
    return CalibrationDraw(request.text, len(windows), windows.seq_len, seed)


class Texts:
    """The texts of one run's options, as windows of any checkpoint's tokens."""

    def __init__(self, config: RunConfig, progress: Progress | None = None) -> None:
        self.config, self.progress = config, progress
        self._windows: dict[tuple[Request, str, int], Windows] = {}
        self._texts: dict[tuple[str, int | None], Text] = {}

    def cut(self, request: Request, checkpoint: Checkpoint, folder: Path, vocab_size: int) -> Windows:
        """The windows of a request for the tokenizer of a checkpoint in `folder`.

        Raises MissingTokenizerError, TextSourceError, TextTooShortError or TokenRangeError.
        """
        key = (request, checkpoint.tokenizer_sha, vocab_size)
        if key not in self._windows:
            config = self.config
            max_chars = _max_chars(request.selection, request.count, request.length)
            text = self._text(request.text, max_chars)
            if request.selection != "first" and max_chars is not None and len(text) >= max_chars:
                what = (
                    f"windows are drawn from its first {max_chars:,} {'tokens' if text.text is None else 'characters'}"
                )
                text = replace(text, notes=(*text.notes, f"{what}, where the text may go on"))
            self._windows[key] = make_windows(
                text,
                _tokenizer(text, folder, checkpoint.name, config),
                seq_len=request.length,
                count=request.count,
                selection=request.selection,
                seed=request.seed,
                vocab_size=vocab_size,
                bos=config.bos,
                separator=end_of_text(folder) if text.ids is not None else None,
                progress=self.progress,
            )
        return self._windows[key]

    def calibrations(
        self, checkpoint: Checkpoint, folder: Path, vocab_size: int, seq_len: int
    ) -> dict[CalibrationDraw, Windows]:
        """The windows of every draw of every condition, the first one first.

        Raises OptionError where two are the same, and as `cut`.
        """
        found: dict[str, tuple[Request, Windows]] = {}
        for request in calibration_requests(self.config, seq_len):
            windows = self.cut(request, checkpoint, folder, vocab_size)
            earlier = found.setdefault(windows.digest, (request, windows))[0]
            if earlier is not request:
                raise OptionError(
                    "two of the calibrations asked for are the same windows",
                    got=f"{_asked(earlier)}, and {_asked(request)}: {request.text} holds {windows.total_windows}",
                    remedy="fewer --calib-windows or draws, or a longer --calib-text",
                )
        return {draw_of(request, windows): windows for request, windows in found.values()}

    def _text(self, spec: str, max_chars: int | None) -> Text:
        if (spec, max_chars) not in self._texts:
            self._texts[spec, max_chars] = corpora.read(spec, max_chars=max_chars)
        return self._texts[spec, max_chars]


def require_usable(config: RunConfig, model: Any = None, tokenizer: Any = None) -> None:
    """Read the beginning of every text that a run asks for and cut one window, before there is a checkpoint.

    Without the model's tokenizer, text is read and not cut.  Raises TextSourceError, TextTooShortError or
    TokenRangeError.
    """
    longest = None if model is None else usable_length(model)
    seq_len = config.seq_len or min(DEFAULT_SEQ_LEN, longest or DEFAULT_SEQ_LEN)
    for request in (evaluation_request(config, seq_len), *calibration_requests(config, seq_len)):
        text = corpora.read(request.text, max_chars=_max_chars("first", 1, request.length))
        if tokenizer is not None:
            with _one_thread():
                make_windows(text, tokenizer, seq_len=request.length, count=1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tokenizers use one thread: with several, they would warn of every process that is forked later."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def _asked(request: Request) -> str:
    return f"{request.count} windows of {request.length} tokens of {request.text} with seed {request.seed}"


def _max_chars(selection: Selection, count: int | None, seq_len: int) -> int | None:
    """How much of a text is read at most, in characters."""
    if count is None:
        return None
    if selection == "first":
        return _SPARE_CHARS * seq_len * count + 100_000
    return min(_DRAWN_CHARS * seq_len * count + 100_000, max(MAX_CHARACTERS, _SPARE_CHARS * seq_len * count))


def _tokenizer(text: Text, folder: Path, name: str, config: RunConfig) -> Any:
    """The model's tokenizer, which token ids can do without unless windows begin with --bos."""
    try:
        return load_tokenizer(folder, config.trust_remote_code, name)
    except MissingTokenizerError:
        if text.ids is None or config.bos:
            raise
        return None
