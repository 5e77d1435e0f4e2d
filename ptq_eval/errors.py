"""Everything a user can get wrong, each with a line to read and an exit code of its own.

An error says what is wrong, what was given, what is allowed and how to fix it.  The command line prints that line and
exits with the class's `exit_code`; from Python the same classes are raised.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """A remedy that names the nearest of `known`; empty if none is near."""
    folded = {str(other).lower(): str(other) for other in known}
    near = difflib.get_close_matches(str(name).lower(), folded, n=1)
    return f"did you mean {folded[near[0]]!r}?" if near else ""


class PtqEvalError(Exception):
    """Base of every error that a user can fix.  `exit_code` is distinct for each subclass."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, got: object = None, allowed: str = "", remedy: str = "") -> None:
        self.what, self.got, self.allowed, self.remedy = what, got, allowed, remedy
        facts = {"got": got, "allowed:": allowed or None}
        parts = [what, *(f"{word} {fact}" for word, fact in facts.items() if fact is not None)]
        self.fault = " | ".join(" ".join(str(part).split()) for part in parts)
        """The line without its remedy."""
        super().__init__(self.fault + (f" | remedy: {' '.join(remedy.split())}" if remedy else ""))


class OptionError(PtqEvalError):
    """A wrong value of an option (the same code as an unknown flag)."""

    exit_code = 2


class NumberFormatError(PtqEvalError):
    """A number format that is not known, or that a quantizer is not defined for."""

    exit_code = 29


class EmptyFolderError(PtqEvalError):
    """The folder is empty, or does not exist."""

    exit_code = 10


class NoCheckpointError(PtqEvalError):
    """The folder holds files, but no checkpoint of a known format."""

    exit_code = 11


class UnreadableCheckpointError(PtqEvalError):
    """A weight file is truncated, corrupt, or a shard is missing."""

    exit_code = 12


class OtherStageError(PtqEvalError):
    """A checkpoint of what follows pretraining, and none of pretraining beside it."""

    exit_code = 62


class HubError(UnreadableCheckpointError):
    """The hub cannot be reached, or does not have or give what is asked of it."""

    exit_code = 58


class ContinuationError(PtqEvalError):
    """A checkpoint from which a training cannot be continued."""

    exit_code = 60


class UnsafeCheckpointError(PtqEvalError):
    """A pickle holds more than tensors, or a checkpoint asks for remote code."""

    exit_code = 13


class NonFiniteWeightsError(PtqEvalError):
    """NaN or infinite weights."""

    exit_code = 14


class MissingTokenizerError(PtqEvalError):
    """Text or --bos needs a tokenizer, and the checkpoint has none or one without that token."""

    exit_code = 15


class TextTooShortError(PtqEvalError):
    """The text does not fill one window."""

    exit_code = 16


class TokenRangeError(PtqEvalError):
    """Token ids outside the model's vocabulary, or implausible for it."""

    exit_code = 17


class GroupSizeError(PtqEvalError):
    """Group size 0, negative, or larger than a row of some matrix."""

    exit_code = 18


class BitsError(PtqEvalError):
    """Bits outside 2 to 8, or in a table more than 64."""

    exit_code = 19


class UnknownPluginError(PtqEvalError):
    """No plug-in of that name is installed."""

    exit_code = 20

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str]) -> UnknownPluginError:
        """The error for an unknown `name` of `kind`, with the nearest known name as its remedy."""
        names = sorted(set(known))
        more = (
            ", or install a package that provides it" if kind in ("quantizer", "law", "checkpoint", "corpora") else ""
        )
        remedy = did_you_mean(name, names) or f"choose one of these{more}"
        return cls(f"unknown {kind}", got=repr(name), allowed=", ".join(names), remedy=remedy)


class OutputMismatchError(PtqEvalError):
    """The output folder holds results of another trajectory or of other options."""

    exit_code = 21


class OutputFullError(PtqEvalError):
    """The disk is full or the output folder cannot be written."""

    exit_code = 22


class OutputFolderError(PtqEvalError):
    """The output folder is a file, or below one."""

    exit_code = 32


class UnsupportedModelError(PtqEvalError):
    """The model cannot be loaded as a causal LM, or has weights that no quantizer here can treat."""

    exit_code = 23


class TextSourceError(PtqEvalError):
    """A text source cannot be read."""

    exit_code = 24


class NothingToFitError(PtqEvalError):
    """There are no measurements to fit or to report."""

    exit_code = 25


class TrajectoryFileError(PtqEvalError):
    """`trajectory.yaml` is malformed, or the tokens of a checkpoint are unknown."""

    exit_code = 26


class DeviceError(PtqEvalError):
    """The device asked for is not there, or ran out of memory."""

    exit_code = 27


class MeasurementFailedError(PtqEvalError):
    """A measurement failed; all others are made and stored."""

    exit_code = 28


class DataFileError(PtqEvalError):
    """A data file cannot be read: missing, empty, or of no known kind."""

    exit_code = 40


class ColumnError(PtqEvalError):
    """A column is missing from the data, or it is not known which one a law's variable is."""

    exit_code = 41

    @classmethod
    def of(cls, name: str, known: Iterable[str], *, why: str = "") -> ColumnError:
        """The error for a column `name` that is not among `known`, with the nearest one as its remedy."""
        names = list(known)
        remedy = did_you_mean(name, names) or "name one of these columns"
        what = f"there is no column {name!r}" + (f" ({why})" if why else "")
        return cls(what, allowed=", ".join(names) or "nothing: the table has no columns", remedy=remedy)


class ExpressionError(PtqEvalError):
    """A column's expression or a condition is not arithmetic over columns."""

    exit_code = 42


class TextColumnError(PtqEvalError):
    """A column holds text where numbers are needed."""

    exit_code = 43


class NotFiniteError(PtqEvalError):
    """A column has blank cells, NaN or infinities."""

    exit_code = 44


class NotPositiveError(PtqEvalError):
    """Parameters, tokens or bits that are zero or negative."""

    exit_code = 45


class UnitsError(PtqEvalError):
    """Parameters or tokens that look like millions or billions instead of plain counts, or over 1e6 nats per token."""

    exit_code = 46


class TooFewPointsError(PtqEvalError):
    """Too few points for the constants of the law."""

    exit_code = 47


class NotVaryingError(PtqEvalError):
    """A variable has too few distinct values: one N where two are needed, bits all equal."""

    exit_code = 48


class NegativeDeltaError(PtqEvalError):
    """Too few deltas are above zero."""

    exit_code = 49


class PlanError(PtqEvalError):
    """A question to `plan` that is incomplete, or that its constants cannot answer."""

    exit_code = 50


class NotDeterminedError(PtqEvalError):
    """The rows of a table determine no constant of the law."""

    exit_code = 51


class ExportError(PtqEvalError):
    """A file format cannot hold what was quantized, or there is something in its place already."""

    exit_code = 31


class RevisionError(PtqEvalError):
    """A git revision that does not exist, or without the folder named."""

    exit_code = 55


class LatexError(PtqEvalError):
    """LaTeX is not installed, or does not compile the paper; its sources are complete."""

    exit_code = 56


class ClusterError(PtqEvalError):
    """SLURM or Ray is missing, does not answer, or refuses a job."""

    exit_code = 57


class TaskError(PtqEvalError):
    """A task of lm-evaluation-harness that is not known, or cannot be loaded or answered."""

    exit_code = 59


class MissingPackageError(PtqEvalError):
    """A package that only this command needs is not installed."""

    exit_code = 61


class BackendError(PtqEvalError):
    """A backend that cannot be installed or used, or that fails its conformance run."""

    exit_code = 54


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write below `folder` into an OutputFullError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some space and repeat the command: what is stored is kept"
            raise OutputFullError("no space left for results", got=folder, remedy=remedy) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            what = "the output folder is a file, or below one"
            raise OutputFolderError(what, got=folder, remedy="choose another -o") from error
        got = f"{folder}: {error.strerror}"
        raise OutputFullError("the output cannot be written", got=got, remedy="choose another place for it") from error
