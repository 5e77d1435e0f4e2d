"""What a text source is: something that answers with documents' text, or with token ids made elsewhere.

A source is named by a *spec*, `kind:rest` or a path, and one file holds one kind.  Parts of a source (train,
calibration, evaluation, or the splits of a dataset) are separate texts: nothing is ever drawn from two of
them.
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
    """One text: either `text` (a string) or `ids` (a 1-D array of token ids already made).

    `spec` names it, `digest` is the SHA-256 of its content, and `notes` say what a reader of the numbers must
    know (which Python's standard library, which revision of a dataset).
    """

    spec: str
    digest: str
    text: str | None = None
    ids: np.ndarray | None = None
    name: str = ""
    notes: tuple[str, ...] = field(default=())


class TextSource(ABC):
    """A kind of text source.  Plug-ins are classes with no state."""

    name: ClassVar[str]
    help: ClassVar[str]
    examples: ClassVar[tuple[str, ...]] = ()
    """Specs that work as they stand, offered when a mistyped one is near."""

    @classmethod
    @abstractmethod
    def claims(cls, spec: str) -> bool:
        """Whether `spec` is of this kind (no reading)."""

    @abstractmethod
    def read(self, spec: str, *, max_chars: int | None = None) -> Text:
        """The text that `spec` names.

        `max_chars` lets a large source stop early; the digest covers what was read.  Raises TextSourceError.
        """


def joined(documents: Iterable[str], separator: str, max_chars: int | None) -> str:
    """Documents with `separator` between them; reading stops once `max_chars` characters are there."""
    parts: list[str] = []
    length = -len(separator)
    for document in documents:
        parts.append(document)
        length += len(separator) + len(document)
        if max_chars is not None and length >= max_chars:
            break
    return separator.join(parts)[:max_chars]


def text_digest(text: str, spec: str) -> str:
    """SHA-256 of the UTF-8 bytes; TextSourceError for half a surrogate pair, which has none."""
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise TextSourceError(
            "the text holds half of a surrogate pair, which no tokenizer accepts",
            got=f"{error.object[error.start]!a} at character {error.start} of {spec}",
            remedy="clean the text",
        ) from error
