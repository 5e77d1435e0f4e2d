"""Build the documentation as a site in build/site: `python docs/build_site.py`, with the extra `docs` installed.

The site has the layout of the repository, so that links which work there work here: build/pages gets the pages and the
files that they link to.  A warning is an error.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "pages"
_LINK = re.compile(r"\]\(([^)\s#]+)")


def collect() -> None:
    """Copy every page, and every file of the repository that a page links to, to build/pages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "results").rglob("*.md"),
        ROOT / "examples" / "README.md",
    ]
    linked = {
        (page.parent / link).resolve()
        for page in pages
        for link in _LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in link
    }
    for file in {*pages, *(path for path in linked if path.is_file() and path.is_relative_to(ROOT))}:
        target = PAGES / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


if __name__ == "__main__":
    collect()
    command = [
        Path(sys.executable).with_name("zensical"),
        "build",
        "--strict",
        "--clean",
        "--config-file",
        ROOT / "mkdocs.yml",
    ]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
