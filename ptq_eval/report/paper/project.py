r"""A LaTeX project on disk: `main.tex`, which is the author's, and `generated/`, which is the program's.

`main.tex` is written once.  It holds the prose, and macros in place of everything that depends on the results, so that
an author may rewrite it and still get new numbers, tables, figures and references with the next build.
A macro that the author uses and whose result is gone is kept as two bold question marks: the paper
compiles, and nobody overlooks it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptq_eval.errors import OutputFolderError, full_disk
from ptq_eval.report.common import figures as drawing
from ptq_eval.report.common.data import Frame
from ptq_eval.report.common.files import write_text
from ptq_eval.report.paper import works
from ptq_eval.report.paper.names import PREFIX
from ptq_eval.report.paper.numbers import Numbers

GENERATED, MAIN = "generated", "main.tex"
_MARK = "% Written by the program, and written anew each time.\n"
_GONE = r"\textbf{??}"
_LATEXMK = "# Yours, written once: `latexmk` alone makes main.pdf.\n$pdf_mode = 1;\n@default_files = ('main.tex');\n"


@dataclass(frozen=True)
class Written:
    """A paper that was written.

    paths: the files written.  kept: whether main.tex was there and stayed as it was.  gone: macros that it uses and
    whose results are gone.  renamed: runs that pdfTeX cannot draw, with the names they have in the paper.
    uncited: methods, laws and suites without a reference.
    """

    folder: Path
    paths: list[Path]
    kept: bool
    gone: list[str]
    renamed: Mapping[str, str] = field(default_factory=dict)
    uncited: list[str] = field(default_factory=list)


def require_own(folder: Path) -> None:
    """Raises OutputFolderError for a folder with files that is no paper of this program, OutputFullError."""
    with full_disk(folder):
        if folder.exists() and any(folder.iterdir()) and not (folder / GENERATED / "numbers.tex").exists():
            raise OutputFolderError(
                "the folder holds other files than a paper of this program",
                got=folder,
                remedy="choose another -o, or empty the folder",
            )


def write(
    folder: Path,
    main: str,
    numbers: Numbers,
    texts: Mapping[str, str],
    figures: Mapping[str, Any],
    tables: Mapping[str, Frame],
    more_works: Sequence[Path] = (),
) -> Written:
    """Write the project; main.tex only where there is none.  Raises OutputFullError.

    main: main.tex as it would be written today.  texts: LaTeX by its file's name below generated/.  figures: modules
    with `draw`, and `tables`, what each of them draws, by name.  more_works: files of BibTeX beside `works.bib`.
    """
    own, generated = folder / MAIN, folder / GENERATED
    kept = own.exists()
    text = own.read_text(encoding="utf-8", errors="replace") if kept else main
    gone = _gone(text, numbers)
    paths = [write_text(generated / name, _MARK + content) for name, content in texts.items()]
    paths.append(write_text(generated / "numbers.tex", numbers.file(dict.fromkeys(gone, _GONE))))
    cited = works.bibliography([main, text, *texts.values(), *numbers.texts.values()], more_works)
    paths.append(write_text(generated / "references.bib", cited))
    paths.append(write_text(generated / MAIN, main))
    paths += drawing.write(generated / "figures", None, figures, tables, kinds=("pdf",))
    if not kept:
        paths.append(write_text(own, main))
    if not (folder / "latexmkrc").exists():
        paths.append(write_text(folder / "latexmkrc", _LATEXMK))
    return Written(folder, paths, kept, gone)


def _gone(text: str, found: Numbers) -> list[str]:
    """The macros with our prefix that some LaTeX uses, neither defined there nor among the results."""
    code = re.sub(r"(?<!\\)%.*", "", text)
    used = dict.fromkeys(re.findall(rf"\\({PREFIX}[A-Z][A-Za-z]*)", code))
    defined = set(re.findall(rf"command\*?\{{?\\({PREFIX}[A-Za-z]+)", code))
    return [name for name in used if name not in found.texts and name not in defined]
