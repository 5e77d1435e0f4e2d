"""The embedded text: the source code of the running Python's standard library.

Every machine that runs this package has it, so no network is needed and nothing is redistributed.  A hash of its
dotted name assigns each module to one of three parts, `stdlib:train` (80 %), `stdlib:calibration` (10 %) and
`stdlib:evaluation` (10 %), so a module belongs to the same part under every version of Python; within a part, modules
are sorted by that hash.  Excluded are tests, what pip installed, and the packages `encodings` and `pydoc_data`, which
are tables of data rather than code.  The text differs slightly between versions of Python; its digest and the version
are recorded with every number.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ptq_eval.corpora.base import Text, TextSource, joined
from ptq_eval.errors import TextSourceError

PARTS = ("train", "calibration", "evaluation")
REFERENCE_PYTHON = "3.11"
SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings", "pydoc_data"}
)


def part_of(module: str) -> str:
    """The part that the module with this dotted name belongs to."""
    bucket = int.from_bytes(hashlib.sha256(module.encode()).digest()[:4], "big") % 10
    return "evaluation" if bucket == 9 else "calibration" if bucket == 8 else "train"


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module that is not excluded."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in SKIPPED]  # what pip installed is not even listed
        for path in map(Path(folder).joinpath, files):
            if path.suffix == ".py" and path.stem not in SKIPPED:
                yield ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"), path


class StandardLibrary(TextSource):
    """`stdlib[:train|calibration|evaluation]`."""

    name = "stdlib"
    help = "stdlib:PART: source code of the running Python's standard library; PART is " + ", ".join(PARTS)
    examples = tuple(f"stdlib:{part}" for part in PARTS)

    @classmethod
    def claims(cls, spec: str) -> bool:
        """`stdlib` or `stdlib:part`."""
        return spec.split(":")[0] == cls.name

    def read(self, spec: str, *, max_chars: int | None = None) -> Text:
        """The part's modules joined by blank lines.  Raises TextSourceError for an unknown part."""
        part = spec.partition(":")[2] or "evaluation"
        if part not in PARTS:
            raise TextSourceError("unknown part of the standard library", got=part, allowed=", ".join(PARTS))
        chosen = [(name, path) for name, path in modules() if part_of(name) == part]
        chosen.sort(key=lambda item: hashlib.sha256(item[0].encode()).digest())
        if not chosen:
            raise TextSourceError(
                "this Python has no source code of its standard library",
                got=sysconfig.get_paths()["stdlib"],
                remedy="name your own texts with --eval-text and --calib-text",
            )
        contents = (path.read_text(encoding="utf-8", errors="replace") for _, path in chosen)
        text, starts = joined(contents, "\n\n", max_chars)
        notes = [f"standard library of Python {platform.python_version()}, {len(chosen)} modules"]
        if platform.python_version().rpartition(".")[0] != REFERENCE_PYTHON:
            notes.append(
                f"this Python is not {REFERENCE_PYTHON}, on whose library the embedded trajectory was trained and its "
                "published numbers were measured: the text, and so every number, differs slightly"
            )
        return Text(
            spec=f"stdlib:{part}",
            digest=hashlib.sha256(text.encode()).hexdigest(),
            text=text,
            name=f"stdlib-{part}",
            notes=tuple(notes),
            documents=starts,
        )
