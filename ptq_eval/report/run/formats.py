"""What every number format costs at the last checkpoint of each run: the rows of a table, sorted by stored bits.

One row per format and a column per method, because a format is chosen before a method is.  Only runs that were measured
in anything but plain integers have such a table; `formats_figure` draws the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ptq_eval.report.common import tables
from ptq_eval.report.common.data import Frame, Study, formats_of
from ptq_eval.report.common.numbers import MISSING, count, number, short
from ptq_eval.results.points import format_name

TITLE = "Number formats at the last checkpoint"
LEAD = ("format", "bits", "effective bits", "ideal bits")
WORDS = (
    "Effective bits are all stored bits per weight, scales included. Ideal bits are the bits of an ideal code with the "
    "same squared error on Gaussian numbers, −½·log2 of that error."
)


def last(study: Study) -> Frame:
    """The measured rows of the last checkpoint of each trajectory, in order of effective bits.

    Added are `name` (of the format; with the group size where several were
    measured) and `ideal_bits`.  Empty where nothing but plain integers was measured.
    """
    rows = study.measured
    if not study.has_formats:
        return rows.iloc[:0]
    rows = rows[rows["tokens"] == rows.groupby("trajectory")["tokens"].transform("max")].copy()
    symmetric = rows["symmetric"].isin([True, "True"])
    rows["name"] = [
        format_name(family, bits, sym) for family, bits, sym in zip(formats_of(rows), rows["bits"], symmetric)
    ]
    sizes = rows.groupby("name")["group_size"].transform(lambda column: column.astype(str).nunique())
    several = [f" g{number(size):.0f}" if number(size) > 0 else " per row" for size in rows["group_size"]]
    rows["name"] = rows["name"].where(sizes < 2, rows["name"] + several)
    for column in ("effective_bits", "gaussian_mse"):
        rows[column] = [number(value) for value in rows[column]]
    rows["ideal_bits"] = [-0.5 * math.log2(mse) if mse > 0 else math.nan for mse in rows["gaussian_mse"]]
    return rows.sort_values(["place", "effective_bits", "ideal_bits", "name"], kind="stable")


def by_bits(study: Study) -> list[str]:
    """The families of formats in order of effective bits."""
    rows = last(study)
    return list(dict.fromkeys(formats_of(rows)))


def listed(study: Study) -> str:
    """ "formats: nvfp4, mxfp4; ", nothing where only integers were measured."""
    names = [name for name in by_bits(study) if name != "int"]
    return f"formats: {', '.join(names)}; " if names else ""


def tables_of(study: Study) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows) for every run with named formats."""
    for run, mine in last(study).groupby("trajectory", sort=False):
        names = list(dict.fromkeys(mine["method"]))
        rows = []
        for name, own in mine.groupby("name", sort=False):
            cells = dict(zip(own["method"], tables.delta_cells(own)))
            first = own.iloc[0]
            lead = [str(name), f"{first['bits']:.0f}", short(first["effective_bits"]), short(first["ideal_bits"])]
            rows.append([*lead, *(cells.get(method, MISSING) for method in names)])
        first = mine.iloc[0]
        heading = f"{study.title(str(run))}, D = {count(first['tokens'])}"
        yield heading, [*LEAD, *(f"δ, {name}" for name in names)], rows


def section(study: Study) -> str:
    """The tables in Markdown; nothing where there is none."""
    found = [
        f"### {tables.cell(heading)}\n\n{tables.markdown(header, rows)}" for heading, header, rows in tables_of(study)
    ]
    figure = "![δ of every format against its bits](figures/delta_vs_bits.png)\n\n"
    return f"{figure}{WORDS}\n\n" + "\n".join(found) if found else ""
