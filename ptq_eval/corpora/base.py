"""The interface of text sources: a source reads text, or token ids made elsewhere.

A *spec*, `kind:rest` or a path, names one text.  Parts of a source (train, calibration and evaluation, or the splits of
a data set) are separate texts: windows are never drawn from two of them.
"""

from __future__ import annotations

import hashlib
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
    """

    spec: str
    digest: str
    text: str | None = None
    ids: np.ndarray | None = None
    name: str = ""
    notes: tuple[str, ...] = field(default=())


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


def joined(documents: Iterable[str], separator: str, max_chars: int | None) -> str:
    """Documents joined by `separator`; reading stops after `max_chars` characters."""
    parts: list[str] = []
    length = -len(separator)
    for document in documents:
        parts.append(document)
        length += len(separator) + len(document)
        if max_chars is not None and length >= max_chars:
            break
    return separator.join(parts)[:max_chars]


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
