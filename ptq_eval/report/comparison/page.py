"""A comparison of laws to read: `comparison.md`, `comparison.json`, a figure, and the same in a terminal.

In an output folder `report.md` has a section with the comparison, which records the digest of its measurements: if the
folder has others by now, the section begins with a note that it is out of date.  Another fit of the main job's laws
changes no measurement, hence no comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.laws.compare.ranking import Outcome
from ptq_eval.report.common import figures, files
from ptq_eval.report.common.numbers import MISSING, number, short
from ptq_eval.report.common.tables import cell, markdown
from ptq_eval.report.comparison import figure as comparison_figure
from ptq_eval.report.comparison.words import HELD_OUT, QUESTIONS, exclusion

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

NAME = "comparison"
TITLE = "Laws compared"
_AGAINST = ("held-out error", "AICc - lowest")


def read(out: Path) -> dict[str, Any] | None:
    """The comparison of records below `out`; None without one.  Raises OutputMismatchError for a damaged file."""
    keys = ("comparisons", "phase", "tests", "criterion", "laws", "by")
    found = files.read_json(out / f"{NAME}.json", keys, "ptq-eval fit OUT --laws LAW,…")
    if found is None or not found.get("records"):
        return None  # a comparison of a user's table is not about these records
    return found


def write(out: Path, found: Mapping[str, Any]) -> list[Path]:
    """Write what `ptq_eval.compare_laws` returned below `out`; the paths written.

    Raises OutputFullError, and OutputMismatchError for a damaged comparison of records.
    """
    found = _joined(read(out), found) if found["records"] else found
    drawn = figures.write(out / "figures", found, {NAME: comparison_figure}) if found["comparisons"] else []
    return [
        files.write_json(out / f"{NAME}.json", found),
        files.write_text(out / f"{NAME}.md", page(found)),
        *drawn,
    ]


def _joined(old: Mapping[str, Any] | None, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Joined with the earlier ranking or tests of the same records, unless they were repeated."""
    if old is None or any(old.get(name) != found[name] for name in ("records", "by", "loss")):
        return found
    kept = {} if found["laws"] else {name: old[name] for name in ("laws", "comparisons")}
    return {**found, **kept, "tests": found["tests"] or old["tests"]}


def section(found: Mapping[str, Any], records: str) -> str:
    """The comparison with headings of the third level, for the page of the study whose digest is `records`."""
    if found["records"] == records:
        return body(found, 3)
    pairs = dict.fromkeys(f"{one['a']}={one['b']}" for one in found["tests"])
    flags = [f"--laws {','.join(found['laws'])}"] * bool(found["laws"]) + [f"--by {found['by']}"] * bool(found["by"])
    flags += [f"--test {pair}" for pair in pairs] + [f"--loss {found['loss']}"]
    return (
        "**Out of date: this comparison was made of other measurements than this page.** "
        f"`ptq-eval fit OUT {' '.join(flags)}` makes it again.\n\n{body(found, 3)}"
    )


def header(comparison: Mapping[str, Any]) -> list[str]:
    """The columns of a ranking."""
    return ["rank", "law", *(f"without {HELD_OUT[kind]}" for kind in comparison["left_out"]), *_AGAINST, "fitted", ""]


def rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """A ranking as text: held-out errors of each kind, their mean, AICc; both ± the error of the difference."""
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
    if law.get("ignored"):
        yield f"does not depend on {' and '.join(law['ignored'])}"
    if law["given"]:
        yield "fixed: " + ", ".join(f"{name} = {value:g}" for name, value in law["given"].items())
    if law["against_best"].get("outcome") == Outcome.WORSE:
        yield "significantly worse than the best"


def _value(value: Any, error: Any, rank: int) -> str:
    if number(value) != number(value):
        return MISSING
    text = short(value)
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
    """The comparison in Markdown, a page of its own."""
    return f"# {TITLE}\n\n{body(found, 2)}"


def body(found: Mapping[str, Any], level: int) -> str:
    """Rankings with their verdicts, the figure and the questions, under headings of a level."""
    parts, mark = [], "#" * level
    for comparison in found["comparisons"]:
        parts.append(f"{mark} {cell(_title(comparison))}\n\n{_sentence(comparison['verdict'])}\n")
        if comparison["laws"]:
            parts.append(markdown(header(comparison), rows(comparison), left=2))
        parts += [f"Excluded: {name}: {exclusion(why)}.\n" for name, why in comparison.get("excluded", {}).items()]
    if found["comparisons"]:
        parts.append(f"![held-out error and AICc of each law](figures/{NAME}.png)\n\n{found['criterion']}\n")
    asked = [f"- **{cell(what)}** {_sentence(words)}" for what, words in answers(found)]
    if asked:
        parts.append(f"{mark} Questions\n\n" + "\n".join(asked) + f"\n\n{QUESTIONS}\n")
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
            for name, why in comparison.get("excluded", {}).items():
                yield Text.assemble(("excluded: ", "bold yellow"), f"{name}: {exclusion(why)}")
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
