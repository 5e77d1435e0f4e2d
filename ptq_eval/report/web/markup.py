"""The sections of `report.md` as HTML, by a Markdown library: both pages are made of the same text.

Names of runs, messages of errors and whatever else comes from outside is text.  Raw HTML and links are switched off;
the one tag that the tables use is the line break.  Pictures become what the caller makes of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

if TYPE_CHECKING:
    from markdown_it.renderer import RendererProtocol
    from markdown_it.rules_inline import StateInline

Picture = Callable[[str, str], str]
"""(name of the figure, its description) -> HTML."""

_BREAK = "<br>"
_OFF = ("html_block", "html_inline", "link", "autolink", "reference", "image", "lheading", "code")
_IMAGE = re.compile(r"!\[([^\]\n]*)\]\(figures/([^\s)/\\]+)\.png\)")


def render(text: str, title: str, picture: Picture) -> str:
    """The Markdown of one section as HTML; `title` names its tables to those who cannot see them."""
    parser, env = _parser(), {"title": title, "tables": 0}
    tokens: list[Token] = []
    for token in parser.parse(text, env):
        if token.type == "inline" and (found := _IMAGE.fullmatch(token.content)) and tokens[-1].tag == "p":
            tokens[-1] = Token("html_block", "", 0, content=picture(found[2], found[1]))
        elif not (token.tag == "p" and token.nesting < 0 and tokens[-1].type == "html_block"):
            tokens.append(token)
    return parser.renderer.render(tokens, parser.options, env)


def slug(title: str) -> str:
    """An id for a section."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(list(_OFF))
    parser.inline.ruler.push("line_break_tag", _line_break)
    for name, rule in (
        ("table_open", _table_open),
        ("table_close", _table_close),
        ("th_open", _cell_open),
        ("td_open", _cell_open),
    ):
        parser.add_render_rule(name, rule)
    return parser


def _line_break(state: StateInline, silent: bool) -> bool:
    if not state.src.startswith(_BREAK, state.pos):
        return False
    if not silent:
        state.push("hardbreak", "br", 0)
    state.pos += len(_BREAK)
    return True


def _table_open(renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    env["tables"] += 1
    label = escape(f"{env['title']}, table {env['tables']}")
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>\n'


def _table_close(renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return "</table></div>\n"


def _cell_open(renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """A cell; its alignment is a class, because the page forbids styles in attributes."""
    token = tokens[index]
    scope = ' scope="col"' if token.tag == "th" else ""
    right = ' class="right"' if "right" in str(token.attrGet("style")) else ""
    return f"<{token.tag}{scope}{right}>"
