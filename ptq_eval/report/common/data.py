"""What a report is made from: the table of measurements, the fit and the description of the run, read together.

Everything here is a view of those three; nothing is measured, fitted or rounded.  A quantizer measured in one
configuration is called by its name alone; where there are several (two group sizes, two calibrations), the
label adds what distinguishes them, so that no table mixes rows that are not comparable.  Fitted curves are computed by
the laws themselves, found by name among the installed plug-ins: no formula is repeated here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ptq_eval import plugins
from ptq_eval.errors import NothingToFitError, UnknownPluginError
from ptq_eval.laws.base import FitKind
from ptq_eval.records import FULL_PRECISION
from ptq_eval.report.common.numbers import number, title
from ptq_eval.results.points import Point, axis_value, digest, format_family, is_other, is_runtime, read, rows_of
from ptq_eval.results.table import COLUMNS as TABLE_COLUMNS

Frame = Any
"""A pandas data frame: pandas types its columns so widely that a checker objects to every use of one."""

COLUMNS = list(TABLE_COLUMNS[: TABLE_COLUMNS.index("status") + 1])
"""The columns that every table has, in this order; more may follow."""

MEASURED = ("ok", "partial")
NUMBERS = ["step", "tokens", "params", "tokens_per_param", "bits", "loss_fp", "loss_q", "delta", "delta_se", "windows"]
_CONFIGURATION = ("group_size", "symmetric", "calibration", "options")
_RUNTIME = ("activation_format", "activation_bits", "kv_format", "kv_bits")
_CONDITION = ("calib_first", *_RUNTIME)
MOST_PANELS = 6
"""More panels than this side by side cannot be read."""


def labels(table: Frame) -> Any:
    """A name for the quantizer configuration of each row: `gptq`, or `gptq g32 asym` where `gptq` is ambiguous.

    Only what differs between the configurations of one quantizer and number format is added, and the format where that
    is not plain integers (`gptq nvfp4`).  Full precision is "none".
    """
    named = table["quantizer"].fillna(FULL_PRECISION).astype(str)
    formats = formats_of(table)
    return _distinguished(named.where(formats == "int", named + " " + formats), table, _CONFIGURATION)


def methods(table: Frame) -> Any:
    """A name for the method of each row, whatever its number format: `gptq`, with calibration or options if several."""
    return _distinguished(table["quantizer"].fillna(FULL_PRECISION).astype(str), table, _CONFIGURATION[2:])


def _distinguished(named: Any, table: Frame, columns: Sequence[str]) -> Any:
    """Names with what differs in `columns` between the rows of one name."""
    for quantizer in named.unique():
        rows = named.index[named == quantizer]
        for column in columns if quantizer != FULL_PRECISION else ():
            if column not in table:
                continue
            values = table.loc[rows, column]
            if values.astype(object).where(values.notna(), "").nunique() > 1:
                named.loc[rows] += [" " + _describe(column, value) for value in values]
    return named


def formats_of(table: Frame) -> Any:
    """The family of number formats of each row, "int" for full precision and in tables of earlier versions."""
    if "format" not in table:
        return pd.Series("int", index=table.index)
    return table["format"].map(lambda name: format_family("" if name is None or name != name else str(name)))


def _where(table: Frame, holds: Callable[[Any], bool]) -> Any:
    return pd.Series([holds(row) for row in rows_of(table, _CONDITION)], index=table.index, dtype=bool)


def runtime_names(table: Frame) -> list[str]:
    """`runtime_name` of each row."""
    return [runtime_name(row) for row in rows_of(table, _RUNTIME)]


def runtime_name(row: Mapping[str, Any]) -> str:
    """`A8 KV4` of a row whose activations have 8 bits and whose cache has 4; formats other than integers by name."""
    parts = {"A": "activation", "KV": "kv"}
    known = {prefix: str(row.get(f"{name}_format") or "").replace("nan", "") for prefix, name in parts.items()}
    return " ".join(
        prefix + (f"{number(row[f'{parts[prefix]}_bits']):.0f}" if re.fullmatch(r"int\d", form) else f" {form}")
        for prefix, form in known.items()
        if form
    )


def _describe(column: str, value: Any) -> str:
    missing = value is None or value != value or value == ""
    if column == "group_size":
        return "per row" if missing else f"g{number(value):.0f}"
    if column == "symmetric":
        return "sym" if value in (True, "True") else "asym"
    return f"no {column}" if missing else str(value)


def _configuration(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What makes two rows, or a row and an entry of the fit, the same configuration."""
    group_size, symmetric = number(row.get("group_size")), row.get("symmetric")
    texts = [str(row.get(name) or "").replace("nan", "") for name in ("calibration", "options")]
    named = row.get("format", "int")
    return (
        str(row.get("quantizer") or FULL_PRECISION),
        "" if named == "" else format_family(str(named) if named == named and named is not None else ""),
        f"{group_size:.0f}" if math.isfinite(group_size) else "",
        str(bool(symmetric)) if str(symmetric) in ("True", "False") else "",
        *texts,
    )


@dataclass(frozen=True, eq=False)
class Study:
    """Table, fit and run description; `known`: the points of the table, if it was read before.

    Raises NothingToFitError for a table without rows.
    """

    table: Frame
    fit: Mapping[str, Any]
    run: Mapping[str, Any]
    known: Sequence[Point] | None = None

    def __post_init__(self) -> None:
        missing = [name for name in COLUMNS if name not in self.table]
        if missing:
            raise KeyError(f"the table lacks the columns {', '.join(missing)}")
        if self.table.empty:
            raise NothingToFitError("nothing to report", got="a table without rows", remedy="run the sweep first")

    @cached_property
    def rows(self) -> Frame:
        """The rows of `every` with the first calibration, and with activations and cache in full precision."""
        return self.every[~_where(self.every, lambda row: is_other(row) or is_runtime(row))].reset_index(drop=True)

    @cached_property
    def runtime(self) -> Frame:
        """The measured rows with activations or cache quantized."""
        rows = self.every[_where(self.every, lambda row: is_runtime(row) and not is_other(row))]
        return rows[rows["status"].isin(MEASURED) & np.isfinite(rows["delta"])]

    @cached_property
    def calibrations(self) -> Frame:
        """The measured rows of every condition of calibration; none where there is only one."""
        rows = self.every[~_where(self.every, is_runtime)]
        if not _where(rows, is_other).any():
            return rows.iloc[:0]
        return rows[rows["status"].isin(MEASURED) & np.isfinite(rows["delta"]) & rows["calib_text"].notna()]

    @cached_property
    def every(self) -> Frame:
        """The table with numbers as floats, runs in order of first appearance, checkpoints in order of tokens.

        Added are `label` and `method` (see `labels` and `methods`), `checkpoint` (a name), `point` (the checkpoint's
        identity) and `trajectory`: the run or, where each run has a single checkpoint, all runs of one size.
        """
        frame: Frame = pd.DataFrame(self.table).reset_index(drop=True)
        frame[NUMBERS] = frame[NUMBERS].apply(pd.to_numeric, errors="coerce").astype(float)
        for name in ("run", "quantizer", "status", "protocol", "message", "dtype", "device", "weights_sha"):
            frame[name] = frame[name].fillna("").astype(str) if name in frame else ""
        frame["quantizer"] = frame["quantizer"].replace("", FULL_PRECISION)
        frame["label"], frame["method"] = labels(frame), methods(frame)
        frame["runtime_name"] = runtime_names(frame)
        frame["checkpoint"] = [f"{r}@{s:.0f}" if s == s else r for r, s in zip(frame["run"], frame["step"])]
        # Not astype(str), which may keep a missing D as missing, and grouping drops rows whose key is missing.
        tokens = frame["tokens"].map("{:.0f}".format)
        frame["point"] = frame["checkpoint"] + "|" + tokens + "|" + frame["weights_sha"]
        together = {point.run: point.trajectory for point in self.points}
        frame["trajectory"] = [together.get(run, run) for run in frame["run"]]
        places = {name: i for i, name in enumerate(frame["trajectory"].unique())}
        frame["place"] = frame["trajectory"].map(places)
        return frame.sort_values(["place", "tokens", "step"], kind="stable").reset_index(drop=True)

    @cached_property
    def points(self) -> Sequence[Point]:
        """The rows that laws can be fitted to."""
        return read(self.table.to_dict("records"))[0] if self.known is None else self.known

    @cached_property
    def digest(self) -> str:
        """The digest of what laws are fitted to, by which a comparison recognises the measurements it was made of."""
        return digest(self.points)

    @cached_property
    def measured(self) -> Frame:
        """Quantized rows with a finite delta."""
        rows = self.rows
        keep = (rows["quantizer"] != FULL_PRECISION) & rows["status"].isin(MEASURED) & np.isfinite(rows["delta"])
        return rows[keep]

    @cached_property
    def baseline(self) -> Frame:
        """One full-precision row per checkpoint: its own (quantizer "none"), else what the quantized rows say."""
        rows = self.rows[self.rows["status"].isin(MEASURED) & np.isfinite(self.rows["loss_fp"])]
        full = rows["quantizer"] == FULL_PRECISION
        return pd.concat([rows[full], rows[~full]]).drop_duplicates("point").sort_index()

    def early(self, rows: Frame) -> tuple[list[int], int]:
        """(windows behind each delta that ended early, windows of the full-precision losses they are paired with).

        rows: some of `measured`.
        """
        full = self.baseline.drop_duplicates("point").set_index("point")["windows"]
        all_of_them = rows["point"].map(full).astype(float)
        used = rows.loc[rows["windows"] < all_of_them, "windows"]
        return sorted(int(n) for n in used), int(all_of_them.max()) if len(used) else 0

    @cached_property
    def troubled(self) -> Frame:
        """Rows that were not measured, or only in part."""
        rows = self.every[self.every["status"] != "ok"]
        return rows.assign(label=(rows["label"] + " " + rows["runtime_name"]).str.strip())

    @cached_property
    def runs(self) -> list[str]:
        """Names of the trajectories."""
        return list(dict.fromkeys(self.rows["trajectory"]))

    def title(self, run: str) -> str:
        """A trajectory's name with its N."""
        return self._titles[run]

    @cached_property
    def _titles(self) -> dict[str, str]:
        return {
            run: title(run, float(mine["params"].iloc[0]), run not in set(mine["run"]))
            for run, mine in self.rows.groupby("trajectory", sort=False)
        }

    @cached_property
    def labels(self) -> list[str]:
        """Quantizer configurations in order of first appearance, of each method first the integers."""
        quantized = self.rows[self.rows["quantizer"] != FULL_PRECISION]
        found = quantized.assign(named=formats_of(quantized) != "int").drop_duplicates("label")
        order = {method: i for i, method in enumerate(dict.fromkeys(found["method"]))}
        found["method"] = found["method"].map(order)
        return list(found.sort_values(["method", "named"], kind="stable")["label"])

    @cached_property
    def panels(self) -> list[str]:
        """The configurations that figures have a panel for: all or, with many formats, the integers."""
        if len(self.labels) <= MOST_PANELS:
            return self.labels
        families = dict(zip(self.rows["label"], formats_of(self.rows)))
        integers = [label for label in self.labels if families[label] == "int"]
        return integers or self.labels[:MOST_PANELS]

    @cached_property
    def has_formats(self) -> bool:
        """Whether anything but plain integers was measured."""
        return bool((formats_of(self.measured) != "int").any())

    def bits(self, label: str | None = None) -> list[int]:
        """Bit-widths tried with one configuration, or with any."""
        rows = self.rows if label is None else self.rows[self.rows["label"] == label]
        return sorted({int(bits) for bits in rows["bits"].dropna()})

    @property
    def protocols(self) -> str:
        """The evaluation protocols by name."""
        return ", ".join(sorted(set(self.rows["protocol"]) - {""})) or "not recorded"

    @property
    def fits(self) -> list[Mapping[str, Any]]:
        """The entries of the fit, one per law and configuration."""
        return list(self.fit.get("fits") or ())

    @property
    def critical(self) -> list[Mapping[str, Any]]:
        """The entries on critical tokens, one per trajectory, configuration and bit-width."""
        return list(self.fit.get("critical_tokens") or ())

    @property
    def warnings(self) -> list[str]:
        """The warnings of the fit."""
        return [str(warning) for warning in self.fit.get("warnings") or ()]

    @cached_property
    def _names(self) -> dict[tuple[str, ...], str]:
        columns = ("label", "quantizer", "format", *_CONFIGURATION)
        return {_configuration(row): row["label"] for row in rows_of(self.rows, columns)}

    def label_of(self, entry: Mapping[str, Any]) -> str:
        """The label of the configuration that an entry of the fit is about."""
        named = entry.get("label") or self._names.get(_configuration(entry))
        return str(named or entry.get("quantizer") or "")

    def fit_of(self, label: str, run: str, bits: float) -> tuple[Mapping[str, Any] | None, float]:
        """The usable fit of a configuration that covers a trajectory, and what its law takes as its bits."""
        axis = self.fit.get("bits_axis", "bits")
        if axis == "bits":
            return self.fit_for(label, run), bits
        row = self.measured[(self.measured["label"] == label) & (self.measured["bits"] == bits)].iloc[0].to_dict()
        wanted = _configuration({**row, "format": "", "group_size": None, "symmetric": None})
        return next((e for e in self._usable(run) if _configuration(e) == wanted), None), axis_value(row, axis)

    def _usable(self, run: str) -> Iterator[Mapping[str, Any]]:
        """The usable fits that cover a trajectory."""
        members = set(self.rows.loc[self.rows["trajectory"] == run, "run"])
        for entry in self.fits:
            covered = not entry.get("runs") or members & set(entry["runs"])
            if covered and entry.get("status_kind") != FitKind.NOT_IDENTIFIED:
                yield entry

    def fit_for(self, label: str, run: str) -> Mapping[str, Any] | None:
        """The usable fit of a configuration ("none": the full-precision curve) that covers a trajectory."""
        return next((entry for entry in self._usable(run) if self.label_of(entry) == label), None)


def predict(entry: Mapping[str, Any] | None, *, params: float, tokens: np.ndarray, bits: float) -> np.ndarray | None:
    """What a fitted law predicts at N = `params`, D = `tokens` [n] and `bits`: [n], nats per token.

    None for a fit without usable constants, and for a law that is not installed.
    """
    if entry is None:
        return None
    theta = {name: number((value or {}).get("value")) for name, value in (entry.get("parameters") or {}).items()}
    if not theta or not all(math.isfinite(value) for value in theta.values()):
        return None
    try:
        law = plugins.get("laws", str(entry.get("law")))()
    except UnknownPluginError:
        return None
    tokens = np.asarray(tokens, float)
    data = {"N": np.full_like(tokens, params), "D": tokens, "P": np.full_like(tokens, bits)}
    if not all(np.isfinite(data[name]).all() for name in law.columns):
        return None
    values = np.asarray(law.predict(theta, data), float)
    return values if np.isfinite(values).all() else None
