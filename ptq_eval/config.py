"""What a run is asked to do: one frozen object, checked as a whole before anything is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from ptq_eval import plugins
from ptq_eval.early_stop import StopRule
from ptq_eval.errors import BitsError, DeviceError, GroupSizeError, OptionError
from ptq_eval.units import BYTES, read

FULL_PRECISION = "none"
DEFAULT_SEQ_LEN = 2048
DTYPES = ("float32", "bfloat16", "float16")
Calibration = Literal["default", "shared", "sequential"]
CALIBRATIONS: tuple[Calibration, ...] = ("default", "shared", "sequential")


@dataclass(frozen=True)
class RunConfig:
    """The options of a run.

    `group_size` is a number of columns, None for one scale per row, or "auto": 128, or for narrower models the
    largest power of two that no row is shorter than.  `calibration` "default" leaves each quantizer what its paper
    does (sequential for GPTQ, shared for AWQ).  `options` are per quantizer: {"gptq": {"act_order": True}}.
    `bos` begins each window with the beginning-of-sequence token.
    `precision` lets a measurement end once δ is known to that relative error; `memory` ("8GB", or bytes) is what
    weights may take on the device, by default most of what is free.
    Raises OptionError, BitsError or GroupSizeError.
    """

    quantizers: tuple[str, ...] = ("rtn", "gptq", "awq")
    bits: tuple[int, ...] = (2, 3, 4, 8)
    group_size: int | Literal["auto"] | None = "auto"
    symmetric: bool = False
    calibration: Calibration = "default"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    eval_text: str = "stdlib:evaluation"
    calib_text: str = "stdlib:calibration"
    seq_len: int | None = None
    eval_windows: int | None = 256
    calib_windows: int = 128
    calib_seed: int | None = None
    bos: bool = False
    device: str = "auto"
    dtype: str = "float32"
    include_head: bool = False
    trust_remote_code: bool = False
    shard: tuple[int, int] = (1, 1)
    precision: float | None = None
    memory: int | str | None = None
    seed: int = 0
    bootstrap: int = 500

    def __post_init__(self) -> None:
        for name in ("quantizers", "bits"):
            value = getattr(self, name)
            if isinstance(value, (str, int)):
                raise OptionError(
                    f"--{name} must be several, even if it is one", got=repr(value), remedy=f"({value!r},)"
                )
            object.__setattr__(self, name, tuple(dict.fromkeys(value)))
        self._check_grid()
        self._check_windows()
        self._check_machine()
        _one_of("--calibration", self.calibration, CALIBRATIONS)
        _one_of("--dtype", self.dtype, DTYPES)
        index, count = self.shard
        if not 1 <= index <= count:
            raise OptionError("--shard i/n needs 1 <= i <= n", got=f"{index}/{count}", remedy="--shard 1/4")

    def _check_grid(self) -> None:
        for name in self.quantizers:
            plugins.get("quantizers", name)
        for name in self.options:
            if name not in self.quantizers:
                raise OptionError(
                    "an option for a quantizer that is not in this run",
                    got=name,
                    allowed=", ".join(self.quantizers),
                )
        if not self.quantizers or not self.bits:
            raise OptionError("nothing to measure", got="no quantizer or no bits", remedy="--quantizers rtn --bits 4")
        for bits in self.bits:
            if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
                raise BitsError("--bits out of range", got=bits, allowed="whole numbers from 2 to 8")
        size = self.group_size
        if not (size is None or size == "auto" or (isinstance(size, int) and not isinstance(size, bool) and size >= 1)):
            raise GroupSizeError(
                "--group-size must be a positive number of columns",
                got=size,
                allowed="1 to the row's length, or none",
            )

    def _check_windows(self) -> None:
        for name, value, low in (
            ("--seq-len", self.seq_len, 2),
            ("--eval-windows", self.eval_windows, 2),
            ("--calib-windows", self.calib_windows, 1),
            ("--calib-seed", self.calib_seed, 0),
            ("--seed", self.seed, 0),
            ("--bootstrap", self.bootstrap, 10),
        ):
            if value is not None and value < low:
                raise OptionError(f"{name} is too small", got=value, allowed=f"at least {low}")

    def _check_machine(self) -> None:
        if self.precision is not None and not 0 < self.precision < 1:
            raise OptionError("--precision is not a fraction", got=self.precision, allowed="between 0 and 1")
        if self.memory is not None:
            size = read(self.memory, BYTES, name="--memory")
            if size <= 0:
                raise OptionError("--memory must be positive", got=self.memory, remedy="--memory 8GB")

    def memory_bytes(self) -> int | None:
        """`memory` in bytes."""
        return None if self.memory is None else read(self.memory, BYTES)

    def stop_rule(self) -> dict[str, Any]:
        """The rule of `precision` as a trial keeps it; empty without one."""
        return {} if self.precision is None else StopRule(self.precision).to_dict()

    @classmethod
    def of(cls, options: Mapping[str, Any], also: Sequence[str] = ()) -> RunConfig:
        """The configuration of named options; an unknown name raises OptionError with the nearest, of `also` too."""
        own = [spec.name for spec in fields(cls)]
        for name in options:
            if name not in own:
                known = [*own, *also]
                near = difflib.get_close_matches(name, known, n=1)
                remedy = f"did you mean {near[0]}?" if near else ""
                raise OptionError("unknown option", got=name, allowed=", ".join(known), remedy=remedy)
        return cls(**options)

    def resolve_group_size(self, widths: Mapping[str, int]) -> int | None:
        """The group size for a model whose matrices have rows of `widths` (by layer name) columns.

        Raises GroupSizeError naming the layer whose row is shorter than the group.
        """
        name, narrowest = min(widths.items(), key=lambda item: item[1])
        if self.group_size == "auto":
            return min(128, 1 << (narrowest.bit_length() - 1))
        if self.group_size is not None and self.group_size > narrowest:
            raise GroupSizeError(
                "--group-size is larger than a row",
                got=f"{self.group_size} with rows of {narrowest} columns in {name}",
                allowed=f"1 to {narrowest}, or none",
                remedy=f"--group-size {1 << (narrowest.bit_length() - 1)}",
            )
        return self.group_size

    def resolve_device(self) -> str:
        """The device to run on; "auto" takes CUDA where there is one.  Raises DeviceError."""
        import torch

        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        kind = self.device.split(":")[0]
        if kind not in ("cpu", "cuda", "mps"):
            raise DeviceError("unknown device", got=self.device, allowed="auto, cpu, cuda, cuda:N, mps")
        if kind == "cuda" and not torch.cuda.is_available():
            raise DeviceError("no CUDA device is available", got=self.device, remedy="--device cpu")
        return self.device

    def fixed(self) -> dict[str, Any]:
        """The options that every result of one output folder must share.

        Quantizers, bits and shards are not among them: a grid may grow.
        """
        grown = ("quantizers", "bits", "shard", "trust_remote_code", "seed", "bootstrap", "options", "device", "memory")
        return {name: value for name, value in asdict(self).items() if name not in grown}

    def to_dict(self) -> dict[str, Any]:
        """All options, for `run.json`."""
        return asdict(self)


def parse_options(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`gptq.act_order=true` and the like, as {quantizer: {option: value}}.  Raises OptionError."""
    import yaml

    parsed: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        quantizer, dot, option = name.partition(".")
        if not (equals and dot and option):
            raise OptionError("--option is not QUANTIZER.OPTION=VALUE", got=pair, remedy="--option gptq.act_order=true")
        try:
            parsed.setdefault(quantizer, {})[option] = _number(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise OptionError("--option has a value that cannot be read", got=pair) from error
    return parsed


def _one_of(flag: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise OptionError(f"{flag} has an unknown value", got=value, allowed=", ".join(allowed))


def _number(value: Any) -> Any:
    """A string that is a number to everybody but YAML 1.1, such as 1e-2, as that number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
