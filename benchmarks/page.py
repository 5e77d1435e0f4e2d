"""How large `report.html` is for more than a thousand measurements, and how soon a browser has drawn all of it.

The page is made of `results/embedded`, with its two runs five times under other names: 1,200 measurements in ten runs,
fits, forecasts and statements on earlier checkpoints included.  Headless Chromium opens the file anew each time; the
first time ends when the page can be used and a frame has been painted, with what is near the screen; the second when
all figures and tables further down are drawn too, as before printing.  Needs Debian's chromium and
playwright, as `make page-test` installs them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.harness import ROOT, Outcome, Setup, claim_of
from ptq_eval.report import with_texts
from ptq_eval.report.common.data import Study
from ptq_eval.report.web import page

SOURCE = ROOT / "results" / "embedded"
COPIES = 5
REPEATS = 9
LIMIT_BYTES, LIMIT_SECONDS = 5e6, 2.0
PAINTED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))"


def measure(setup: Setup) -> Outcome:
    """Size and times of the page."""
    study = repeated(COPIES)
    started = time.perf_counter()
    html = page.document(study)
    made = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / page.NAME
        path.write_text(html, encoding="utf-8")
        times = opened(path, 2 if setup.quick else REPEATS)
        size = path.stat().st_size
    n = len(study.measured)
    outcome = Outcome()
    outcome.claims = [
        claim_of(f"report.html of {n:,} measurements", [size / 1e6], limit=LIMIT_BYTES / 1e6, unit="MB"),
        claim_of(f"report.html of {n:,} measurements, opened", [t for t, _ in times], limit=LIMIT_SECONDS, unit="s"),
        claim_of(f"report.html of {n:,} measurements, all of it drawn", [t for _, t in times], unit="s"),
        claim_of(f"report.html of {n:,} measurements, made", [made], unit="s"),
    ]
    outcome.details = {"measurements": n, "runs": len(study.runs), "bytes": size, "seconds": times}
    return outcome


def repeated(copies: int) -> Study:
    """The study of `SOURCE` with its runs under `copies` names."""
    table, runs = pd.read_csv(SOURCE / "degradation.csv"), []
    fit, run = (json.loads((SOURCE / f"{name}.json").read_text(encoding="utf-8")) for name in ("fit", "run"))
    for i in range(copies):
        names = {name: f"{name}-{i + 1}" for name in table["run"].unique()}
        shas = table["weights_sha"].astype(str) + f"-{i}"
        runs.append((table.assign(run=table["run"].map(names), weights_sha=shas), names))
    several = {
        key: [_renamed(entry, names) for _, names in runs for entry in fit[key]] for key in ("fits", "critical_tokens")
    }
    statements = [_renamed(entry, names) for _, names in runs for entry in fit["hindsight"]["statements"]]
    content = {**fit, **several, "hindsight": {**fit["hindsight"], "statements": statements}}
    return Study(pd.concat([rows for rows, _ in runs], ignore_index=True), with_texts(content), run)


def _renamed(entry: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    runs = {"runs": [names.get(one, one) for one in entry["runs"]]} if entry.get("runs") else {}
    return {**entry, **runs, **({"run": names[entry["run"]]} if entry.get("run") in names else {})}


def opened(path: Path, repeats: int) -> list[tuple[float, float]]:
    """Seconds from the request for the file until it can be used, and until all is drawn.  Raises RuntimeError."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise RuntimeError("no chromium here: make page-test installs it")
    from playwright.sync_api import sync_playwright

    seconds = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(repeats):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            tab = context.new_page()
            started = time.perf_counter()
            tab.goto(path.as_uri())
            tab.wait_for_selector("html[data-ready]")
            tab.evaluate(PAINTED)
            first = time.perf_counter() - started
            tab.evaluate("dispatchEvent(new Event('beforeprint'))")
            tab.evaluate(PAINTED)
            seconds.append((first, time.perf_counter() - started))
            context.close()
        browser.close()
    return seconds
