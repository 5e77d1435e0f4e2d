"""Results of the benchmarks as files: one JSON file each, and one page made from them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Outcome

_HEADER = """# Benchmarks

Made by `python -m benchmarks` from the JSON files beside it, which hold every repetition. Where a line does not say
otherwise, the value is the median of the repetitions; in brackets, the smallest and the largest. A ratio compares two
things timed by turns; seconds hold for the machine named.
"""


def save(out: Path, name: str, command: str, outcome: Outcome, facts: dict[str, Any], seconds: float) -> None:
    """Write `out/name.json` and the figures."""
    out.mkdir(parents=True, exist_ok=True)
    for file, figure in outcome.figures.items():
        figure.savefig(out / file, dpi=120)
    content = {
        "name": name,
        "command": command,
        "claims": [claim.to_dict() for claim in outcome.claims],
        "details": outcome.details,
        "figures": list(outcome.figures),
        "environment": facts,
        "seconds": seconds,
    }
    (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_page(out: Path, names: Sequence[str]) -> str:
    """Write `out/README.md` from the results that are there; its text."""
    results = [
        json.loads((out / f"{name}.json").read_text("utf-8")) for name in names if (out / f"{name}.json").exists()
    ]
    lines = [_HEADER, "| measured | value | limit | met |", "|---|---|---|---|"]
    for result in results:
        lines += [_row(claim) for claim in result["claims"]]
    for result in results:
        lines += ["", *_section(result)]
    text = "\n".join(lines) + "\n"
    (out / "README.md").write_text(text, encoding="utf-8")
    return text


def _row(claim: dict[str, Any]) -> str:
    unit = f" {claim['unit']}" if claim["unit"] else ""
    value = f"{_number(claim['value'])}{unit}"
    if claim["low"] != claim["high"]:
        value += f" ({_number(claim['low'])} – {_number(claim['high'])})"
    limit = "" if claim["limit"] is None else f"{claim['sense']} {_number(claim['limit'])}{unit}"
    met = {None: "", True: "yes", False: "**no**"}[claim["met"]]
    return f"| {claim['what']} | {value} | {limit} | {met} |"


def _section(result: dict[str, Any]) -> list[str]:
    facts = result["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    changed = f" with {facts['changed_files']} changed files" if facts["changed_files"] else ""
    lines = [
        f"## {result['name']}",
        "",
        f"`{result['command']}` took {result['seconds']:.0f} s on {facts['cores_used']} of {facts['cores_present']}"
        f" cores ({facts['processor']}, {facts['threads']} threads, load {facts['load_average']:.1f} before),"
        f" {facts['time']}; Python {facts['python']}, {versions}; commit {facts['commit'][:12] or 'unknown'}{changed};"
        f" seed {facts['seed']}.",
    ]
    for file in result.get("figures", ()):
        lines += ["", f"![{result['name']}]({file})"]
    for name, detail in result["details"].items():
        if isinstance(detail, dict) and "parts" in detail:
            lines += ["", *_parts(name, detail)]
        elif isinstance(detail, dict) and "columns" in detail:
            lines += ["", *_table(name, detail)]
    return lines


def _table(name: str, detail: dict[str, Any]) -> list[str]:
    """A detail {"columns": names, "rows": lists of values, "note": text} under its name."""
    lines = [f"**{name}.** {detail.get('note', '')}".rstrip(), ""]
    lines += [f"| {' | '.join(detail['columns'])} |", "|---" * len(detail["columns"]) + "|"]
    for row in detail["rows"]:
        cells = [_number(value) if isinstance(value, float) else "" if value is None else str(value) for value in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _parts(name: str, detail: dict[str, Any]) -> list[str]:
    windows, length = detail["evaluation_windows"]
    calibrating = detail["calibration_windows"][0] if detail["calibration_windows"] else 0
    rows = [
        f"| {part} | {t['wall']:.3f} | {t['wall_share']:.1%} | {t['cpu']:.3f} | {t['cpu_share']:.1%} |"
        for part, t in detail["parts"].items()
    ]
    return [
        f"Parts of a sweep of {detail['trials']} trials, {name}: {windows} windows of {length} tokens in batches of"
        f" {detail['batch']}, {calibrating} calibration windows.",
        "",
        "| part | wall s | share | CPU s | share |",
        "|---|---|---|---|---|",
        *rows,
    ]


def _number(value: float) -> str:
    return f"{value:.5g}"
