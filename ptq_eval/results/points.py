"""From the rows of `degradation.csv` to the columns that a fit reads.

A row becomes a `Point` if it may be fitted: it was measured (status "ok" or "partial"), and its D and N are
known.  All other rows are counted by the reason for excluding them.  A trajectory is one run with several checkpoints;
where each run has a single one (separately trained models), all runs of one size form a trajectory together.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ptq_eval.errors import OptionError
from ptq_eval.records import FULL_PRECISION, BitsAxis
from ptq_eval.sampling import Design, standard_error

SAME_SIZE = 0.05
"""Values of a variable that differ by no more than this fraction count as one."""
USABLE = ("ok", "partial")
_PARTS = ("trunk", "annealed")
_BOOLEANS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
Item = TypeVar("Item")
Row = Mapping[str, Any]


class Losses(NamedTuple):
    """Loss per window after and before quantization, nats per token, each [n_windows]; the same twice for full
    precision; and how the windows were drawn (None: as if independent)."""

    after: np.ndarray
    before: np.ndarray
    design: Design | None = None
    calibration_se: float = 0.0
    """The part of the error of delta that is due to the draw of calibration windows, where several were made."""


Windows = Mapping[Any, Any]
"""Losses by a row's key."""


@dataclass(frozen=True)
class Config:
    """How weights were quantized, apart from the bits: one degradation law is fitted per configuration."""

    quantizer: str
    options: str = ""
    group_size: int | None = None
    symmetric: bool | None = None
    calibration: str = ""
    format: str = "int"
    """Number format, "int" for integers of any number of bits; "int_narrow" for int2_narrow, int3_narrow …"""

    def to_dict(self) -> dict[str, Any]:
        """A JSON object, with the format only where that is not plain integers."""
        return {name: value for name, value in vars(self).items() if name != "format" or value != "int"}

    @property
    def name(self) -> str:
        """`gptq`, or `gptq nvfp4` where the format is not plain integers."""
        return self.quantizer if self.format in ("", "int") else f"{self.quantizer} {self.format}"

    def family(self) -> Config:
        """What all formats of one method share, for laws that know a format by its bits."""
        return Config(self.quantizer, self.options, calibration=self.calibration, format="")


def format_family(name: str) -> str:
    """The formats that differ in their bits only: "int_narrow" of "int4_narrow"; any other name is its own."""
    return re.sub(r"^int\d_", "int_", name) or "int"


def format_name(family: str, bits: float, symmetric: bool = False) -> str:
    """The name that `--formats` takes: "int4" or "int4_half" of "int", "int4_narrow" of "int_narrow", else the same."""
    if family == "int":
        return f"int{bits:.0f}{'_half' if symmetric else ''}"
    return re.sub(r"^int_", f"int{bits:.0f}_", family)


def axis_value(row: Row, axis: BitsAxis) -> float:
    """What laws take as P of a row: its bits, its effective bits, or the bits of an ideal code of equal error.

    An ideal code of R bits has the squared error 4^−R on a standard Gaussian (Shannon), so the last is −½·log2 of the
    error.  NaN where the row does not say.
    """
    if axis == "gaussian":
        error = number(row.get("gaussian_mse"))
        return -0.5 * math.log2(error) if error > 0 else math.nan
    return number(row.get("effective_bits" if axis == "effective" else "bits"))


@dataclass(frozen=True)
class Point:
    """One usable row; numbers that are not known are NaN.

    `bits` are bits per code, P is what laws take for them (`axis_value`), and one degradation law is fitted to all
    points with the same `curve`: their own `config`, or its `family` where P tells formats apart.
    """

    run: str
    step: str
    trajectory: str
    config: Config
    curve: Config
    D: float
    N: float
    bits: float
    P: float
    loss_fp: float
    loss_q: float
    delta: float
    se: float
    learning_rate: float
    phase: str
    n_windows: float
    key: Any
    df: float = math.nan
    """Degrees of freedom of `se`."""

    @property
    def training(self) -> str:
        """The training run behind `run`: annealed branches share their trunk's, the folder above both."""
        parent, _, last = self.run.rpartition("/")
        return parent if last in _PARTS else self.run

    @property
    def together(self) -> bool:
        """Whether the trajectory is all runs of one size together, whose N is its name."""
        return self.run != self.trajectory


class Skipped(StrEnum):
    """Why a row is not fitted."""

    NOT_MEASURED = "not_measured"
    TOKENS_UNKNOWN = "tokens_unknown"
    PARAMS_UNKNOWN = "params_unknown"
    OTHER_CALIBRATION = "other_calibration"
    RUNTIME = "runtime"


def read(table: Iterable[Row], axis: BitsAxis = "bits") -> tuple[list[Point], Counter[Skipped]]:
    """The points of a table in its order, and the number of excluded rows by reason.

    Rows of another calibration than the first are excluded, and rows of quantized activations or cache: no fit ever
    pools them.
    Raises OptionError if a quantized row that was measured does not say what it is on `axis`.
    """
    points, excluded = [], Counter[Skipped]()
    for row in table:
        point = _point(row, axis)
        if is_runtime(row):
            excluded[Skipped.RUNTIME] += 1
        elif is_other(row):
            excluded[Skipped.OTHER_CALIBRATION] += 1
        elif str(row.get("status") or "") not in USABLE:
            excluded[Skipped.NOT_MEASURED] += 1
        elif not point.D > 0:
            excluded[Skipped.TOKENS_UNKNOWN] += 1
        elif not point.N > 0:
            excluded[Skipped.PARAMS_UNKNOWN] += 1
        else:
            if axis != "bits" and math.isfinite(point.bits) and not math.isfinite(point.P):
                raise OptionError(
                    f"--bits-axis {axis}: a measurement of an earlier version does not say what it is there",
                    got=f"{point.run} step {point.step} {point.config.quantizer} {point.bits:g} bits",
                    remedy="--bits-axis bits, or measure again into another folder",
                )
            points.append(point)
    return with_trajectories(points), excluded


def is_other(row: Row) -> bool:
    """Whether a row of the table, which may come from a file, is of another calibration than the first."""
    return str(row.get("calib_first")).lower() in ("false", "0", "0.0")


def rows_of(frame: Any, columns: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a data frame, each by the names of its columns; of some `columns`, NaN where there is none so named,
    in a fraction of the time that all take."""
    return (frame if columns is None else frame.reindex(columns=list(columns))).to_dict("records")


def is_runtime(row: Row) -> bool:
    """Whether activations or the cache are quantized in a row of the table, which may come from a file."""
    return any(_text(row.get(name)) for name in ("activation_format", "kv_format"))


def digest(points: Iterable[Point]) -> str:
    """The first 16 hexadecimal digits of SHA-256 over what laws are fitted to in these points, in any order.

    The axis of bits, which is no measurement, is not in it.
    """
    names = ("key", "trajectory", "phase", "D", "N", "bits", "loss_fp", "loss_q", "delta", "se", "learning_rate")
    lines = sorted(repr([getattr(point, name) for name in names]) for point in points)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def full_precision(points: Sequence[Point]) -> list[Point]:
    """One point per checkpoint, for its full-precision loss, ordered by run and D."""
    found: dict[tuple[str, str, float], Point] = {}
    for point in points:
        place = (point.run, point.step, point.D)
        if math.isfinite(point.loss_fp) and (place not in found or point.config.quantizer == FULL_PRECISION):
            found[place] = point
    return sorted(found.values(), key=lambda point: (point.run, point.D))


def by(points: Iterable[Item], attribute: str) -> dict[Any, list[Item]]:
    """Points (or series) grouped by an attribute, in order of first appearance."""
    groups: dict[Any, list[Item]] = {}
    for point in points:
        groups.setdefault(getattr(point, attribute), []).append(point)
    return groups


def delta_data(points: Sequence[Point], windows: Windows) -> dict[str, np.ndarray]:
    """The columns for a degradation law."""
    pairs, designs = _stacked(points, windows), _designs(points, windows)
    data = _columns(points, {name: [getattr(p, name) for p in points] for name in ("delta", "se", "df")})
    if pairs is not None:
        data |= {"windows": pairs[:, 0] - pairs[:, 1], "design": designs}
        drawn = _calibration_se(points, windows)
        if drawn.any():
            data["calibration_se"] = drawn
        errors = [standard_error(row, design) for row, design in zip(data["windows"], designs)]
        data["se"] = np.where(np.isfinite(data["se"]), data["se"], errors)
    return data


def loss_data(points: Sequence[Point], windows: Windows) -> dict[str, np.ndarray]:
    """The columns for a full-precision law."""
    data = _columns(points, {"loss": [p.loss_fp for p in points]})
    pairs = _stacked(points, windows)
    return data if pairs is None else {**data, "windows": pairs[:, 1], "design": _designs(points, windows)}


class Curve(NamedTuple):
    """A loss [n] (nats per token) over tokens [n], with windows [n, n_windows] where they are known of all, how these
    were drawn (None: as if independently, or not all in the same way), and the part [n] of the losses' errors that is
    due to the draw of calibration windows (None: nothing is known of other draws)."""

    tokens: np.ndarray
    loss: np.ndarray
    windows: np.ndarray | None = None
    design: Design | None = None
    calibration_se: np.ndarray | None = None


def curve(points: Sequence[Point], windows: Windows, *, quantized: bool) -> Curve:
    """The loss of points of one line after or before quantization."""
    pairs, designs = _stacked(points, windows), set(_designs(points, windows))
    loss = np.array([p.loss_q if quantized else p.loss_fp for p in points])
    after = None if pairs is None else pairs[:, 0 if quantized else 1]
    drawn = _calibration_se(points, windows) if quantized else np.zeros(0)
    design = designs.pop() if len(designs) == 1 else None
    return Curve(np.array([p.D for p in points]), loss, after, design, drawn if drawn.any() else None)


def _calibration_se(points: Sequence[Point], windows: Windows) -> np.ndarray:
    """The part of each delta's error that is due to the draw of calibration windows, [n]; 0 where not known."""
    return np.array([getattr(windows.get(point.key), "calibration_se", 0.0) for point in points])


def _designs(points: Sequence[Point], windows: Windows) -> np.ndarray:
    """The design of each point's windows, [n]; None where it is not known."""
    found = np.empty(len(points), object)
    found[:] = [getattr(windows.get(point.key), "design", None) for point in points]
    return found


def _stacked(points: Sequence[Point], windows: Windows) -> np.ndarray | None:
    """[n, 2, n_windows] after and before, or None unless every point has the same number (two or more)."""
    found = [pair[:2] for pair in (windows.get(point.key) for point in points) if pair is not None]
    if not found or len(found) < len(points):
        return None
    sizes = {np.shape(part) for pair in found for part in pair}
    return np.array(found, float) if len(sizes) == 1 and sizes.pop() > (1,) else None


def _columns(points: Sequence[Point], more: Mapping[str, list[float]]) -> dict[str, np.ndarray]:
    columns = {name: np.array([getattr(p, name) for p in points], float) for name in ("N", "D", "P")}
    labels = {"run": [p.training for p in points], "checkpoint": [f"{p.run}@{p.step}@{p.D:.0f}" for p in points]}
    return {**columns, **{name: np.array(values) for name, values in {**more, **labels}.items()}}


def _point(row: Row, axis: BitsAxis) -> Point:
    group_size = number(row.get("group_size"))
    options = row.get("options") or ""
    config = Config(
        quantizer=_text(row.get("quantizer")) or FULL_PRECISION,
        options=options if isinstance(options, str) else json.dumps(options, sort_keys=True, default=str),
        group_size=int(group_size) if math.isfinite(group_size) else None,
        symmetric=_BOOLEANS.get(_text(row.get("symmetric")).lower()),
        calibration=_text(row.get("calibration")),
        format=format_family(_text(row.get("format"))),
    )
    names = {"D": "tokens", "N": "params", "bits": "bits", "se": "delta_se", "df": "delta_df", "n_windows": "windows"}
    plain = ("loss_fp", "loss_q", "delta", "learning_rate")
    return Point(
        run=_text(row.get("run")),
        step=_text(row.get("step")),
        trajectory="",
        config=config,
        curve=config if axis == "bits" else config.family(),
        P=axis_value(row, axis),
        phase=_text(row.get("schedule_phase")),
        key=row.get("key"),
        **{field: number(row.get(column)) for field, column in names.items()},
        **{name: number(row.get(name)) for name in plain},
    )


def with_trajectories(points: list[Point]) -> list[Point]:
    """The points with the trajectory that each belongs to among these."""
    checkpoints = {run: {(p.step, p.D) for p in group} for run, group in by(points, "run").items()}
    if len(checkpoints) < 2 or any(len(places) > 1 for places in checkpoints.values()):
        return [replace(p, trajectory=p.run) for p in points]
    names, last = {}, -math.inf
    for size in sorted({p.N for p in points}):
        if size - last > SAME_SIZE * abs(last) or last < 0:
            last = size
        names[size] = f"runs of N = {last:.3g}"
    return [replace(p, trajectory=names[p.N]) for p in points]


def number(value: Any) -> float:
    """A float from whatever a table or a JSON file holds; NaN for None, text and missing values."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)
