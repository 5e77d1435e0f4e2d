"""The interface of text sources: a source reads text, or token ids made elsewhere.

A *spec*, `kind:rest` or a path, names one text.  Parts of a source (train, calibration and evaluation, or the splits of
a data set) are separate texts: windows are never drawn from two of them.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ptq_eval.errors import TextSourceError


@dataclass(frozen=True, eq=False)
class Text:
    """One text: either `text` (a string) or `ids` (a 1-D array of token ids).

    `spec` is how the user named it, `name` its short name in protocols, `digest` the SHA-256 of its content.  `notes`
    accompany the results: which Python's standard library, which revision of a data set, how many rows were skipped.
    `documents` are the characters of `text` that its documents start at, ascending from 0; None where it has no marks
    of documents.
    """

    spec: str
    digest: str
    text: str | None = None
    ids: np.ndarray | None = None
    name: str = ""
    notes: tuple[str, ...] = field(default=())
    documents: np.ndarray | None = None

    def __len__(self) -> int:
        """Characters, or token ids."""
        return len(self.ids) if self.ids is not None else len(self.text or "")


class TextSource(ABC):
    """A kind of text source.  Plug-ins are classes without state."""

    name: ClassVar[str]
    help: ClassVar[str]
    examples: ClassVar[tuple[str, ...]] = ()
    """Example specs, suggested when a mistyped spec is similar."""

    @classmethod
    @abstractmethod
    def claims(cls, spec: str) -> bool:
        """Whether `spec` is of this kind, judged without reading any file."""

    @abstractmethod
    def read(self, spec: str, *, max_chars: int | None = None) -> Text:
        """The text that `spec` names; with `max_chars`, at most that many characters from its start.

        The digest covers what was read.  Raises TextSourceError.
        """


def joined(documents: Iterable[str], separator: str, max_chars: int | None) -> tuple[str, np.ndarray]:
    """Documents joined by `separator`, and the character each starts at; reading stops after `max_chars` characters."""
    parts: list[str] = []
    starts: list[int] = []
    length = -len(separator)
    for document in documents:
        parts.append(document)
        starts.append(length + len(separator))
        length += len(separator) + len(document)
        if max_chars is not None and length >= max_chars:
            break
    return separator.join(parts)[:max_chars], np.array(starts, int)


_MARKS = (
    re.compile(r"(?P<document><\|endoftext\|>)"),
    re.compile(r"^(?P<document> ?= [^=\n]+ = ?)\r?$", re.MULTILINE),  # the title of an article in WikiText
    re.compile(r"(?:\r?\n){3,}(?P<document>[^\r\n])"),
)


def marked_documents(text: str) -> np.ndarray | None:
    """The characters that the documents of a plain text start at, by the first kind of mark that it has: a token of
    the end of a text, titles of WikiText, or two blank lines; None where it has none."""
    for mark in _MARKS:
        starts = [found.start("document") for found in mark.finditer(text)]
        if starts:
            return np.array([0, *(start for start in starts if start > 0)])
    return None


def text_digest(text: str, spec: str) -> str:
    """SHA-256 of the text's UTF-8 bytes.  Raises TextSourceError for an unpaired surrogate, which has no encoding."""
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise TextSourceError(
            "the text contains an unpaired surrogate, which no tokenizer accepts",
            got=f"{error.object[error.start]!a} at character {error.start} of {spec}",
            remedy="clean the text",
        ) from error
