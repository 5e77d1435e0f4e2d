"""Results of the benchmarks as files: one JSON file each, and one page made from them all.

What cannot be measured here (another package's environment that cannot be built, a control group that cannot be made)
is in an outcome's details under `LEFT_OUT`, a sentence or several, and on the page.  A run that measured less than
a stored result never replaces it: it is written beside it as `name.partial.json`, which the page mentions.
"""

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

LEFT_OUT = "left out"
"""The detail that holds a sentence, or several, on what could not be measured."""


def save(out: Path, name: str, command: str, outcome: Outcome, facts: dict[str, Any], seconds: float) -> Path:
    """Write `out/name.json`, or `out/name.partial.json` where the first has more claims, and figures; the file."""
    out.mkdir(parents=True, exist_ok=True)
    whole, partial = out / f"{name}.json", out / f"{name}.partial.json"
    stored = json.loads(whole.read_text("utf-8")) if whole.exists() else {"claims": [], "details": {}}
    nothing = _measured(stored["details"]) and not (outcome.claims or _measured(outcome.details))
    file = partial if nothing or len(outcome.claims) < len(stored["claims"]) else whole
    if file == whole:
        partial.unlink(missing_ok=True)
        for figure, drawn in outcome.figures.items():
            drawn.savefig(out / figure, dpi=120)
    content = {
        "name": name,
        "command": command,
        "claims": [claim.to_dict() for claim in outcome.claims],
        "details": outcome.details,
        "figures": list(outcome.figures),
        "environment": facts,
        "seconds": seconds,
    }
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return file


def left_out(details: dict[str, Any]) -> list[str]:
    """The sentences that say what was not measured."""
    found = details.get(LEFT_OUT, ())
    return [found] if isinstance(found, str) else list(found)


def _measured(details: dict[str, Any]) -> bool:
    return any(name != LEFT_OUT for name in details)


def write_page(out: Path, names: Sequence[str]) -> str:
    """Write `out/README.md` from the results that are there; its text."""
    results = [
        json.loads((out / f"{name}.json").read_text("utf-8")) for name in names if (out / f"{name}.json").exists()
    ]
    lines = [_HEADER, "| measured | value | limit | met |", "|---|---|---|---|"]
    for result in results:
        lines += [_row(claim) for claim in result["claims"]]
    gpu = out / "gpu.json"
    if gpu.exists():
        found = json.loads(gpu.read_text("utf-8"))
        device = found["environment"].get("gpu", found["environment"]["device"])
        lines += [_row({**claim, "what": f"on {device}: {claim['what']}"}) for claim in found["claims"]]
    missing = [f"`{name}`" for name in names if not (out / f"{name}.json").exists()]
    missing += [] if gpu.exists() else ["anything on a GPU (`python -m benchmarks.gpu --out .../gpu.json`)"]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    for result in results:
        lines += ["", *_section(result)]
        partial = out / f"{result['name']}.partial.json"
        if partial.exists():
            lines += ["", *_later(json.loads(partial.read_text("utf-8")), partial.name)]
    text = "\n".join(lines) + "\n"
    out.mkdir(parents=True, exist_ok=True)
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
    for reason in left_out(result["details"]):
        lines += ["", f"Left out: {reason}."]
    for file in result.get("figures", ()):
        lines += ["", f"![{result['name']}]({file})"]
    for name, detail in result["details"].items():
        if isinstance(detail, dict) and "parts" in detail:
            lines += ["", *_parts(name, detail)]
        elif isinstance(detail, dict) and "columns" in detail:
            lines += ["", *_table(name, detail)]
    return lines


def _later(result: dict[str, Any], file: str) -> list[str]:
    """A run that measured less than the result above."""
    why = "; ".join(left_out(result["details"])) or f"{len(result['claims'])} claims"
    return [f"A later run ({result['environment']['time']}, `{file}`) measured less: {why}."]


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
