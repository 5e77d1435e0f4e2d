"""What a run and a plan can be asked: their options, each declared once (see `options`).

An object is checked as a whole when it is made, before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ptq_eval import plugins
from ptq_eval.config.device import resolve_device
from ptq_eval.config.kinds import EXECUTOR, QUANTIZER_OPTIONS, SHARD
from ptq_eval.config.options import (
    BITS,
    COUNT,
    MEMORY,
    NUMBER,
    SIZE,
    TEXT,
    Options,
    declared,
    option,
)
from ptq_eval.errors import BitsError, GroupSizeError, NumberFormatError, OptionError
from ptq_eval.records import BITS_AXES, BitsAxis, Selection
from ptq_eval.runtime import PER, RANGES, ROPE, Per, Range, Rope

DEFAULT_SEQ_LEN = 2048
MAX_BOOTSTRAP = 10**6
"""Resamples beyond which their constants do not fit in memory."""
DTYPES = ("float32", "bfloat16", "float16")
Calibration = Literal["default", "shared", "sequential"]
CALIBRATED_WITH = ("calib_text", "calib_windows", "calib_length", "calib_seed")
"""Options of calibration that take several values, which are crossed with the grid."""
SELECTIONS: tuple[Selection, ...] = ("spread", "first", "crops")
CALIBRATIONS: tuple[Calibration, ...] = ("default", "shared", "sequential")

RUNTIME = (
    *("activation_bits", "activation_formats", "activation_per", "activation_range"),
    *("kv_bits", "kv_formats", "key_per", "key_rope", "value_per", "kv_range"),
)
"""Options of activations and the cache."""
TASKS = ("tasks", "task_folder", "task_limit", "fewshot")
"""Options of tasks with answers."""
GRID = ("quantizers", "bits", "formats", "mixed", "options", *RUNTIME, *TASKS)
"""Options that choose what is measured: the grid of an output folder may grow."""
NEUTRAL = (
    *("shard", "jobs", "prune", "executor", "device"),
    *("memory", "backend_seconds", "backend_memory", "trust_remote_code", "calib_repeats"),
)
"""Options of where and how often something is measured: none changes the number of one measurement."""
_BIT_WIDTHS: dict[str, Any] = {
    **{"many": True, "words": {"none": ()}, "low": 2, "high": 8, "metavar": "B,…", "error": BitsError},
}
_NAMES: dict[str, Any] = {"kind": TEXT, "many": True, "metavar": "NAME,…", "error": NumberFormatError}
FIT_ONLY = ("laws", "bits_axis", "seed", "bootstrap")
"""Options that only the fit needs."""


@dataclass(frozen=True)
class RunConfig(Options):
    """The options of a run.

    `group_size` is a number of columns, None for one scale per row, or "auto": 128, or for narrower models the
    largest power of two that no row is shorter than.  `calibration` "default" leaves each quantizer what its paper
    does (sequential for GPTQ, shared for AWQ).  `options` are per quantizer: {"gptq": {"act_order": True}}.
    `bos` begins each window with the beginning-of-sequence token.
    `precision` lets a measurement end once δ is known to that relative error; `memory` (bytes, or "8GB") is what
    weights may take on the device, by default most of what is free.  Every value may be text as on the command line.
    `formats` are names that `quantizers.Scheme.of` takes; whether they exist is checked with the plan.
    Raises OptionError, BitsError, GroupSizeError or UnknownPluginError.
    """

    quantizers: tuple[str, ...] = option(
        ("rtn", "gptq", "awq"),
        "Methods to measure; `ptq-eval quantizers` lists them.",
        TEXT,
        many=True,
        metavar="NAME,…",
    )
    bits: tuple[int, ...] = option((2, 3, 4, 8), "Bit-widths of integers (none: only --formats).", BITS, **_BIT_WIDTHS)
    formats: tuple[str, ...] = option(
        (), "Number formats to measure beside --bits, such as nvfp4; `ptq-eval formats` lists them.", **_NAMES
    )
    mixed: tuple[str, ...] = option(
        (),
        "Plans with a number format for each layer, as `sensitivity --budget` writes them.",
        TEXT,
        many=True,
        metavar="FILE,…",
    )
    activation_bits: tuple[int, ...] = option(
        (), "Bits that inputs of quantized layers are rounded to, as integers.", BITS, **_BIT_WIDTHS
    )
    activation_formats: tuple[str, ...] = option((), "Number formats of these inputs, such as fp8_e4m3.", **_NAMES)
    activation_per: Per = option("token", "What of these inputs shares a scale.", choices=PER)
    activation_range: Range = option(
        "dynamic", "Range of these inputs: of the values rounded, or of the calibration text (static).", choices=RANGES
    )
    kv_bits: tuple[int, ...] = option((), "Bits of keys and values, as integers.", BITS, **_BIT_WIDTHS)
    kv_formats: tuple[str, ...] = option((), "Number formats of keys and values, such as fp8_e4m3.", **_NAMES)
    key_per: Per = option("channel", "What of the keys shares a scale, in each head.", choices=PER)
    key_rope: Rope = option("after", "Round keys after the rotary embedding, or before it.", choices=ROPE)
    value_per: Per = option("token", "What of the values shares a scale, in each head.", choices=PER)
    kv_range: Range = option(
        "dynamic", "Range of keys and values that share a scale per channel or tensor.", choices=RANGES
    )
    tasks: tuple[str, ...] = option(
        (), "Tasks or groups of lm-evaluation-harness to answer, each variant as full precision does.", TEXT, many=True,
        metavar="NAME,…",
    )  # fmt: skip
    task_folder: tuple[str, ...] = option(
        (), "Folders with task files (YAML) of your own.", TEXT, many=True, metavar="DIR,…"
    )
    task_limit: int | None = option(None, "Documents per task, the first ones.", COUNT, low=1, unset="all")
    fewshot: int | None = option(None, "Examples before each question.", COUNT, low=0, unset="as each task says")
    group_size: int | Literal["auto"] | None = option(
        "auto",
        "Columns per scale (none: one scale per row; auto: at most 128); formats with blocks of their own keep theirs.",
        COUNT,
        words={"none": None, "auto": "auto"},
        low=1,
        error=GroupSizeError,
    )
    symmetric: bool = option(False, "Grid symmetric around zero, or with a zero point.", off="--asymmetric")
    calibration: Calibration = option(
        "default",
        "Layer inputs to calibrate with: from the full-precision model (shared), from the model whose earlier layers "
        "are quantized (sequential), or what each method's paper uses (default).",
        choices=CALIBRATIONS,
    )
    options: Mapping[str, Mapping[str, Any]] = option(
        {},
        "An option of a quantizer; may be repeated.",
        QUANTIZER_OPTIONS,
        flag="--option",
        repeated=True,
    )
    include_head: bool = option(False, "Quantize the output head too.")
    include_embedding: bool = option(
        False, "Quantize the token embedding too, by rounding to nearest where a method needs inputs; with a tied head."
    )
    eval_text: str = option("stdlib:evaluation", "Text on which the loss is measured.")
    calib_text: tuple[str, ...] = option(
        ("stdlib:calibration",), "Texts for calibration; laws use the first.", TEXT, many=True, files=True
    )
    seq_len: int | None = option(
        None, "Tokens per window.", COUNT, low=2, unset=f"{DEFAULT_SEQ_LEN}, or the model's limit"
    )
    eval_windows: int | None = option(256, "Windows of the evaluation text.", words={"all": None}, low=2)
    eval_sample: Selection = option(
        "spread",
        "Which windows: a random sample spread over the whole text, or the first ones, as published tables do.",
        choices=SELECTIONS[:2],
    )
    eval_seed: int = option(0, "Seed of the draw of evaluation windows.", low=0)
    calib_windows: tuple[int, ...] = option(
        (128,), "Windows of the calibration text; laws use the first number.", COUNT, many=True, low=1
    )
    calib_length: tuple[int, ...] = option(
        (),
        "Tokens per calibration window; laws use the first number.",
        COUNT,
        many=True,
        low=2,
        unset="as evaluation windows",
    )
    calib_sample: Selection = option(
        "spread",
        "Which windows: as --eval-sample, or random places that may overlap (crops), as GPTQ's authors do.",
        choices=SELECTIONS,
    )
    calib_seed: tuple[int, ...] = option(
        (0,),
        "Seeds of the draw of calibration windows; several repeat a condition, their spread is part of the error.",
        COUNT,
        many=True,
        low=0,
    )
    calib_repeats: int = option(1, "Draws of calibration windows, with seeds --calib-seed and following.", low=1)
    bos: bool = option(False, "Begin each window with the beginning-of-sequence token.")
    device: str = option("auto", "Where to compute: auto, cpu, cuda or cuda:N.", metavar="NAME")
    dtype: str = option("float32", "Number format of the model that is measured.", choices=DTYPES)
    shard: tuple[int, int] = option(
        (1, 1), "Measure every n-th checkpoint only, starting at the i-th.", SHARD, shown="1/1"
    )
    jobs: int = option(
        1, "Checkpoints measured at the same time, each by a process with its share of the cores, or a GPU.", low=1
    )
    prune: bool = option(
        False,
        "Fetch or convert as many checkpoints as --jobs at a time, fetch as many ahead, and delete each once it is "
        "measured; what was there before is kept.",
    )
    executor: str = option(
        "local",
        "Where checkpoints are measured: by processes of this machine, or by an existing Ray cluster "
        "(ray, or ray:HOST:PORT) whose nodes all see the output folder.",
        EXECUTOR,
    )
    precision: float | None = option(
        None,
        "Stop measuring once the standard error of delta is below this fraction of delta, such as 0.02.",
        NUMBER,
        above=0,
        below=1,
        unset="all windows",
    )
    memory: int | None = option(
        None,
        "Memory that weights may take on the device, such as 8GB.",
        SIZE,
        low=1,
        plausible=MEMORY,
        unset="most of what is free, for large models on a CPU 4 times their weights",
    )
    backend_seconds: int = option(3600, "Seconds that a backend may take for one model and scheme.", low=1)
    backend_memory: int | None = option(
        None, "Memory that a backend's process may take, such as 8GB.", SIZE, low=1, plausible=MEMORY, unset="no limit"
    )
    laws: tuple[str, ...] = option(
        (),
        "Laws to fit: one of the degradation, one of the loss before quantization, or both; any that is installed.",
        TEXT,
        many=True,
        metavar="LAW,…",
        unset="kumar, with the loss law that the data allow",
    )
    bits_axis: BitsAxis = option(
        "bits",
        "What laws take as bits: bits of a code; all stored bits, scales included (effective); or bits of an ideal "
        "code with the same squared error on Gaussian numbers (gaussian). With the last two, all formats share a law.",
        choices=BITS_AXES,
    )
    seed: int = option(0, "Seed of the bootstrap.", low=0)
    bootstrap: int = option(500, "Resamples behind each interval.", low=10, high=MAX_BOOTSTRAP)
    trust_remote_code: bool = option(False, "Run Python code that comes with a checkpoint.")

    def __post_init__(self) -> None:
        super().__post_init__()
        full = tuple(map(plugins.quantizer_name, self.quantizers))
        object.__setattr__(self, "quantizers", full)
        several = ("activation_bits", "activation_formats", "kv_bits", "kv_formats", "tasks", "task_folder")
        for name in ("quantizers", "bits", "formats", "mixed", *several, *CALIBRATED_WITH):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        self._check_calibration()
        alone = [name for name in TASKS[1:] if getattr(self, name) not in (None, ())]
        if alone and not self.tasks:
            raise OptionError(f"{declared(RunConfig)[alone[0]].flag} is for tasks", got="no --tasks", remedy="--tasks")
        if self.executor != "local" and self.jobs > 1:
            remedy = "omit --jobs: Ray measures as many as the cluster holds"
            raise OptionError("--jobs is for one machine", got=f"{self.jobs} with {self.executor}", remedy=remedy)
        if self.executor != "local" and self.prune:
            remedy = "omit --prune: nodes of a cluster share the files"
            raise OptionError("--prune is for one machine", got=self.executor, remedy=remedy)
        if not self.quantizers or not (self.bits or self.formats or self.mixed or self.has_runtime):
            raise OptionError("nothing to measure", got="no quantizer or no bits", remedy="--quantizers rtn --bits 4")
        for name in self.options:
            if name not in self.quantizers:
                what = "an option for a quantizer that is not in this run"
                raise OptionError(what, got=name, allowed=", ".join(self.quantizers))

    @property
    def has_runtime(self) -> bool:
        """Whether activations or the cache are quantized."""
        return bool(self.activation_bits or self.activation_formats or self.kv_bits or self.kv_formats)

    def require_weights_only(self, why: str) -> None:
        """Raises OptionError, which says `why`, where activations or the cache are to be quantized."""
        if self.has_runtime:
            raise OptionError(why, got="bits or formats of activations or keys and values", remedy="omit them")

    def _check_calibration(self) -> None:
        for name in ("calib_text", "calib_windows", "calib_seed"):
            if not getattr(self, name):
                raise OptionError(f"{declared(RunConfig)[name].flag} needs a value", got="none")
        several = {"--calib-repeats": self.calib_repeats, "--calib-seed": len(self.calib_seed)}
        if all(count > 1 for count in several.values()):
            seeds = ",".join(map(str, self.calib_seed))
            what = "--calib-repeats counts seeds from one --calib-seed"
            raise OptionError(what, got=f"{self.calib_repeats} with --calib-seed {seeds}", remedy="omit one of the two")
        for flag, count in several.items():
            if count > 1 and self.calib_sample == "first":
                raise OptionError(
                    f"{flag} needs windows that are drawn",
                    got=f"{count} with --calib-sample first",
                    remedy=f"--calib-sample spread, or omit {flag}",
                )

    @property
    def calib_seeds(self) -> tuple[int, ...]:
        """The seeds of the draws of calibration windows, however they were asked for."""
        first = self.calib_seed[0]
        return self.calib_seed if self.calib_repeats == 1 else tuple(range(first, first + self.calib_repeats))

    def require_one_calibration(self, why: str) -> None:
        """Raises OptionError, which says `why`, for several texts, numbers, lengths or draws of calibration windows."""
        asked = [name for name in CALIBRATED_WITH if len(getattr(self, name)) > 1]
        asked += ["calib_repeats"] if self.calib_repeats > 1 else []
        if asked:
            raise OptionError(why, got=f"several values of {', '.join(asked)}", remedy="one value of each")

    def stop_rule(self) -> dict[str, Any]:
        """The rule of `precision` as a trial keeps it; empty without one."""
        from ptq_eval.early_stop import StopRule

        return {} if self.precision is None else StopRule(self.precision).to_dict()

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
        """The device to run on, see `resolve_device`; one that is asked for on a cluster need not be here."""
        if self.executor != "local" and self.device in ("cpu", "cuda"):
            return self.device
        return resolve_device(self.device)

    def fixed(self) -> dict[str, Any]:
        """The options that every result of one output folder must share; of several calibrations the first."""
        shared = {name: value for name, value in self.measured().items() if name not in GRID}
        return {**shared, **self.first_calibration()}

    def measured(self) -> dict[str, Any]:
        """The options that decide the numbers of measurements."""
        return {name: value for name, value in asdict(self).items() if name not in (*NEUTRAL, *FIT_ONLY)}

    def first_calibration(self) -> dict[str, Any]:
        """The calibration options that may have several values, each with its first one."""
        return {name: next(iter(getattr(self, name)), None) for name in CALIBRATED_WITH}

    def to_dict(self) -> dict[str, Any]:
        """All options, for `run.json`."""
        return asdict(self)
