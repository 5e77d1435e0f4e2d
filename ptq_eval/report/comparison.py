"""A comparison of laws to read: `comparison.md`, `comparison.json`, a figure, and the same in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.report import comparison_figure, figures, files
from ptq_eval.report.numbers import MISSING, number, short
from ptq_eval.report.tables import markdown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

NAME = "comparison"
_AGAINST = ("held-out error", "AICc - lowest")


def write(out: Path, found: Mapping[str, Any]) -> list[Path]:
    """Write what `ptq_eval.compare` returned below `out`; the paths written.  Raises OutputFullError."""
    drawn = figures.write(out / "figures", found, {NAME: comparison_figure}) if found["comparisons"] else []
    return [
        files.write_json(out / f"{NAME}.json", found),
        files.write_text(out / f"{NAME}.md", page(found)),
        *drawn,
    ]


def header(comparison: Mapping[str, Any]) -> list[str]:
    """The columns of a ranking."""
    return ["rank", "law", *(f"without {text}" for text in comparison["left_out"].values()), *_AGAINST, "fitted", ""]


def rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """A ranking as text: errors of each kind of leaving out, their mean, AICc; both ± the error of the difference."""
    return [
        [
            str(law["rank"]),
            law["name"],
            *(short(law["held_out"][kind]) for kind in comparison["left_out"]),
            _value(law["held_out_error"], law["against_best"]["error_se"], law["rank"]),
            _value(law["delta_aicc"], law["against_best"]["aicc_se"], law["rank"]),
            f"{law['n_free']} constants",
            "; ".join(_remarks(law)),
        ]
        for law in comparison["laws"]
    ]


def _remarks(law: Mapping[str, Any]) -> Iterator[str]:
    if law["note"]:
        yield law["note"]
    if law["given"]:
        yield "held: " + ", ".join(f"{name} = {value:g}" for name, value in law["given"].items())
    if law["against_best"]["told_apart"]:
        yield "worse than the best"


def _value(value: Any, error: Any, rank: int) -> str:
    if number(value) != number(value):
        return MISSING
    text = f"{number(value):.3g}"
    return text if rank == 1 or number(error) != number(error) else f"{text} ± {number(error):.2g}"


def _title(comparison: Mapping[str, Any]) -> str:
    what = "delta" if comparison["response"] == "delta" else "loss"
    size = f"{comparison['n_points']} points, {comparison['n_clusters']} {comparison['clusters']}"
    return f"{comparison['label']}: laws of {what} ({size})"


def answers(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what was asked, the answer in words) of the tests of phase and of equal constants."""
    for one in found["phase"]:
        yield f"{one['label']}: tokens or learning rate?", one["verdict"]
    for one in found["tests"]:
        yield f"{one['label']}: {one['a']} = {one['b']}?", one["verdict"]


def page(found: Mapping[str, Any]) -> str:
    """The comparison in Markdown."""
    parts = ["# Laws compared\n"]
    for comparison in found["comparisons"]:
        parts.append(f"## {_title(comparison)}\n\n{_sentence(comparison['verdict'])}\n")
        if comparison["laws"]:
            parts.append(markdown(header(comparison), rows(comparison), left=2))
        parts += [f"Set aside: {name}: {why}.\n" for name, why in comparison["set_aside"].items()]
    if found["comparisons"]:
        parts.append(f"![held-out error and AICc of each law](figures/{NAME}.png)\n\n{found['criterion']}\n")
    asked = list(answers(found))
    if asked:
        parts.append("## Questions\n\n" + "\n".join(f"- **{what}** {_sentence(words)}" for what, words in asked) + "\n")
    return "\n".join(parts)


def _sentence(text: str) -> str:
    """With a capital, unless it begins with the name of a constant, and a full stop."""
    return f"{text}." if "_" in text.split(maxsplit=1)[0] else f"{text[0].upper()}{text[1:]}."


class Rendered:
    """A rich renderable of a comparison."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Rankings with their verdicts, then the questions."""
        from rich.text import Text

        for comparison in self.found["comparisons"]:
            if comparison["laws"]:
                yield _table(comparison)
            yield Text(_sentence(comparison["verdict"]))
            for name, why in comparison["set_aside"].items():
                yield Text.assemble(("set aside: ", "bold yellow"), f"{name}: {why}")
            yield Text("")
        for what, words in answers(self.found):
            yield Text.assemble((f"{what} ", "bold"), _sentence(words))


def _table(comparison: Mapping[str, Any]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=_title(comparison), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, name in enumerate(header(comparison)):
        drawn.add_column(name, justify="left" if i in (1, len(header(comparison)) - 1) else "right")
    for row in rows(comparison):
        drawn.add_row(*(Text(text) for text in row))
    return drawn
