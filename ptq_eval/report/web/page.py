"""`report.html`: one file that needs no network and no server, made of the sections of `report.md`.

It has the sentences and tables of `report.md` and the numbers of the CSV and JSON files, which it carries as text
and offers for download; the figures are drawn in the browser from the same text (see `data`).  Whatever comes from
outside is text: Markdown without raw HTML, and JSON in which no tag can begin.

The page forbids itself every request: a Content-Security-Policy allows only the scripts and the style that are in the
file, by their hashes, and pictures that are data.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files as package_files
from pathlib import Path
from string import Template
from typing import Any

from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.common.files import plain
from ptq_eval.report.run import page
from ptq_eval.report.web import data, markup
from ptq_eval.version import __version__

NAME = "report.html"
SCRIPTS = ("vendor/d3.min.js", "format.js", "figures.js", "layers.js", "draw.js", "tables.js", "page.js")
"""In the order in which they run."""
LIVE_SCRIPT = "live.js"
STYLE = "page.css"
_PLACE_OF_CONTROLS = "Figures"
"""The section that the switches of quantizers, bits and runs come before."""
_PLACE_OF_TABLE = "Degradation"
"""The section that the table of all measurements ends."""
_HEADING = "What post-training quantization costs"


@dataclass(frozen=True)
class Live:
    """What a page that is served has more: `banner` before its sections, which a script of its own keeps up to date.

    without: titles of sections that are not shown yet.
    """

    banner: str
    without: Collection[str] = ()


def document(
    study: Study,
    records: Sequence[Mapping[str, Any] | None] = (),
    tables: Mapping[str, Frame] | None = None,
    figures: Path | None = None,
    live: Live | None = None,
    parts: Sequence[tuple[str, str]] | None = None,
) -> str:
    """The page as HTML.

    records: of sensitivity, comparison, backtest and mixed models, as `report.run.page.sections` takes them.  tables:
    the data of figures that are known already, by name.  figures: the folder with pictures of the figures that are not
    drawn in the browser.  live: for a page that is served.  parts: the page's sections, if they are known.
    """

    embedded = data.embedded(study, tables or {}, records)

    def picture(name: str, about: str) -> str:
        return _picture(data.interactive(name, embedded["files"]), about, figures / f"{name}.png" if figures else None)

    every = page.sections(study, *records) if parts is None else parts
    parts = [part for part in every if live is None or part[0] not in live.without]
    title = f"{_HEADING}: {', '.join(study.runs)}"
    return _filled(title, parts, picture, embedded, live)


def waiting(title: str, live: Live) -> str:
    """A page that is served before there is anything to report."""
    return _filled(title, [("", f"# {_HEADING}\n")], lambda name, about: "", data.nothing(), live)


def _filled(
    title: str,
    parts: Sequence[tuple[str, str]],
    picture: markup.Picture,
    embedded: Mapping[str, Any],
    live: Live | None,
) -> str:
    style, scripts = asset(STYLE), [asset(name) for name in (*SCRIPTS, *([LIVE_SCRIPT] if live else []))]
    first, *others = [_section(*part, picture) for part in parts]
    return Template(asset("page.html")).substitute(
        policy=policy(style, scripts, served=live is not None),
        title=escape(title),
        style=style,
        version=escape(__version__),
        contents="".join(f'<li><a href="#{markup.slug(name)}">{escape(name)}</a></li>' for name, _ in parts if name),
        downloads="".join(_download(name) for name in embedded["files"] if "/" not in name),
        sections="".join([first, *([live.banner] if live else []), *others]),
        data=in_script(embedded),
        scripts="\n".join(f"<script>{text}</script>" for text in scripts),
    )


def in_script(value: Any) -> str:
    """`value` as JSON that a script element can hold: no `<` in it, so no tag or comment begins or ends there."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def policy(style: str, scripts: Sequence[str], served: bool = False) -> str:
    """The Content-Security-Policy that allows exactly these; a page that is served may ask its own server."""
    sources = {
        "default-src": "'none'",
        "script-src": " ".join(map(_hash, scripts)),
        "style-src": _hash(style),
        "img-src": "data: blob:",
        **({"connect-src": "'self'"} if served else {}),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in sources.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def asset(name: str) -> str:
    """The text of a file of this package's `assets`."""
    path = package_files("ptq_eval.report.web") / "assets"
    for part in name.split("/"):
        path = path / part
    return path.read_text(encoding="utf-8")


def _section(title: str, text: str, picture: markup.Picture) -> str:
    html = markup.render(text, title or "Report", picture)
    if not title:
        return f'<header class="lead">{html}</header>\n'
    name = markup.slug(title)
    before = '<div id="controls"></div>\n' if title == _PLACE_OF_CONTROLS else ""
    after = '<div id="measurements"></div>' if title == _PLACE_OF_TABLE else ""
    heading = f'<h2 id="{name}-heading">{escape(title)}</h2>'
    return f'{before}<section id="{name}" aria-labelledby="{name}-heading">{heading}\n{html}{after}</section>\n'


def _picture(interactive: str | None, about: str, path: Path | None) -> str:
    """A place for an interactive figure, or the picture of another one, or its description where there is none."""
    about = escape(about)
    if interactive:
        words = "This figure is drawn with JavaScript, which is switched off; the tables hold the same numbers."
        return (
            f'<figure class="chart" data-figure="{escape(interactive)}" data-about="{about}">'
            f"<noscript><p>{words}</p></noscript></figure>\n"
        )
    if path is None or not path.is_file():
        return f'<p class="note">{about}: see the folder figures.</p>\n'
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<figure class="picture"><img alt="{about}" src="data:image/png;base64,{content}"></figure>\n'


def _download(name: str) -> str:
    return f'<li><button type="button" data-download="{escape(name)}">{escape(name)}</button></li>'
