"""The records that flow through the package, Checkpoint, Trial and Measurement, by the standard library only: frozen,
of plain values, each one JSON object.  Loss, perplexity and bits per byte are derived from the per-window sums.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Literal

FULL_PRECISION = "none"
"""The quantizer of a trial that quantizes nothing."""
WEIGHTS_KEPT = "weights_kept"
"""The quantizer of a trial that quantizes activations or the cache alone."""
Progress = Callable[[str, float, float], None]
"""progress(what is being done, units done, units in all)."""
KEY_VERSION = 1
"""Raised whenever the meaning of a trial's fields changes, so that old results are never mistaken for new ones."""

Source = Literal["explicit", "derived", "label", "user", "unknown"]
"""Where a count comes from: the checkpoint says it, computed from that, a (rounded) label, the user, or not known."""


class Doubt(StrEnum):
    """A sign that a number is not of what its name says; `details["doubts"]` of a record has them with their facts."""

    LIKE_ROUNDING = "like_rounding"  # every layer has the weights of rounding, though the method is another
    UNCHANGED = "unchanged"  # layers are what they were, although rounding would change them
    ROUNDED = "rounded"  # the method could not treat layers, and they were rounded to nearest
    LARGE_ERROR = "large_error"  # the error of a layer is many times rounding's
    SMALL_ERROR = "small_error"  # the error of a layer is a small part of rounding's
    NO_STATISTICS = "no_statistics"  # the statistics of layers are empty
    FEW_TOKENS = "few_tokens"  # the statistics of layers rest on fewer tokens than these have inputs
    NO_EFFECT = "no_effect"  # the losses are exactly those in full precision
    IMPLAUSIBLE = "implausible"  # the divergence is not what the error of the weights explains
    MOVES = "moves"  # a backend's weights change in a forward pass
    RELOADS_DIFFERENTLY = "reloads_differently"  # a backend's weights are others after saving and loading
    EXPORT_DIFFERS = "export_differs"  # an exported model has another loss than the measured one


@dataclass(frozen=True)
class Problem:
    """Something wrong with a checkpoint.  A fatal one keeps it out of every fit.

    `remedy` is how to fix this one, empty where its code alone says so.
    """

    code: str
    message: str
    fatal: bool = False
    remedy: str = ""

    def __str__(self) -> str:
        """The line that a user reads: what is wrong, and how to fix it."""
        return f"{self.message} | remedy: {self.remedy}" if self.remedy else self.message


@dataclass(frozen=True)
class Checkpoint:
    """One point of a training trajectory.

    `tokens` is D, the number of tokens seen; `params` is N, by default the true non-embedding count (every
    parameter but embedding tables, learned positions and the output head).  `step` is the optimizer step or, for
    formats that number their checkpoints, that number.  `location` is a folder or a `hub:` id and never enters
    a key; `weights_sha` (SHA-256 over names, shapes, types and bytes of all tensors) identifies the weights.
    """

    run: str
    step: int | None
    tokens: int | None
    params: int | None
    location: str = ""
    format: str = ""
    revision: str = ""
    tokens_source: Source = "unknown"
    tokens_note: str = ""
    tokens_counter: str = ""  # the counter in the checkpoint's files that D was read off, if any
    epochs: float | None = None  # how often it has seen its training text, as its files say; above 1 tokens repeat
    params_source: Source = "unknown"
    params_convention: str = "non_embedding"
    params_total: int | None = None
    params_quantized: int | None = None
    learning_rate: float | None = None
    schedule_phase: str = ""  # "" where unknown, else warmup | constant | decay | annealed
    stage: str = ""
    architecture: str = ""
    weights_sha: str = ""
    tokenizer_sha: str = ""
    family: str = ""
    """What runs that differ in their seed alone have in common; "" where that is not known."""
    stated_bits_per_byte: float | None = None  # on its own validation text, as its files say
    commit: str = ""  # the commit on the hub that `revision` pointed to, where it is known
    architecture_given: tuple[tuple[str, Any], ...] = ()  # entries of the configuration that no file says
    problems: tuple[Problem, ...] = ()

    @property
    def name(self) -> str:
        """`run@step`, for people."""
        return f"{self.run}@{self.step if self.step is not None else self.revision or 'only'}"

    @property
    def tokens_per_param(self) -> float | None:
        """D/N, or None where either is unknown."""
        return self.tokens / self.params if self.tokens is not None and self.params else None

    @property
    def fatal(self) -> tuple[Problem, ...]:
        """The problems that keep this checkpoint out of every fit."""
        return tuple(problem for problem in self.problems if problem.fatal)

    def with_problem(self, code: str, message: str, *, fatal: bool = False, remedy: str = "") -> Checkpoint:
        """A copy with one more problem."""
        return replace(self, problems=(*self.problems, Problem(code, message, fatal, remedy)))

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Checkpoint:
        """The inverse of `to_dict`; unknown fields are ignored, so that older readers read newer files."""
        known = _known(cls, data)
        known["architecture_given"] = tuple(map(tuple, known.get("architecture_given", ())))
        known["problems"] = tuple(Problem(**_known(Problem, problem)) for problem in known.get("problems", ()))
        return cls(**known)


@dataclass(frozen=True)
class Scheme:
    """The part of a quantization scheme that a record keeps; the same fields as `quantizers.Scheme`.

    In mixed precision `layers` has the number format ("int4") and group size of each layer, and `format` their digest.
    """

    bits: int
    group_size: int | None = 128
    symmetric: bool = False
    format: str = "int"
    layers: Mapping[str, tuple[str, int | None]] = field(default_factory=dict, hash=False)


BitsAxis = Literal["bits", "effective", "gaussian"]
BITS_AXES: tuple[BitsAxis, ...] = ("bits", "effective", "gaussian")
"""What laws take as P: bits of a code; all stored bits per weight; bits of an ideal code of equal error."""

Selection = Literal["spread", "first", "crops"]
"""How windows are chosen from a text; see `sampling`."""


@dataclass(frozen=True)
class Sample:
    """Which windows of its text a corpus holds.

    `population` is the number of windows in the whole text, None where it was not counted.  `documents` is the index of
    the document that each window belongs to, in the order of the windows; empty where the text has no marks of
    documents.
    """

    selection: Selection = "first"
    population: int | None = None
    documents: tuple[int, ...] = ()


@dataclass(frozen=True)
class CalibrationDraw:
    """Calibration windows: `windows` of `length` tokens of a `text`, drawn with a `seed` (None: unknown, or no use)."""

    text: str
    windows: int
    length: int
    seed: int | None = None

    @property
    def condition(self) -> tuple[str, int, int]:
        """(text, windows, length): what all draws of one condition share."""
        return self.text, self.windows, self.length

    @property
    def name(self) -> str:
        """For people."""
        of = f"{self.text}, {self.windows} windows of {self.length} tokens"
        return of if self.seed is None else f"{of}, seed {self.seed}"


@dataclass(frozen=True)
class Trial:
    """One number to be measured: a checkpoint under a quantizer (or none) on a text.

    `quantizer` is "none" for full precision, with `scheme` None.  `protocol` names text, window length, number
    and selection of windows; `corpus` is the digest of the token windows themselves.  `stop` are the fields of the
    rule that may end the measurement before the last window (`early_stop.StopRule`), empty where there is none.
    `activations` and `cache` are the fields of a `runtime.Rounding` and a `runtime.Cache`, empty in full precision;
    `task` those of questions that are answered (`measure.tasks`), empty where a loss is measured.
    `sample` says which windows of the text the corpus holds; the corpus and the protocol stand for it in the key, and
    `calibration_corpus` for `calibration_draw`.  Both are None in records of earlier versions.
    """

    checkpoint: Checkpoint
    corpus: str
    protocol: str
    quantizer: str = FULL_PRECISION
    quantizer_version: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    scheme: Scheme | None = None
    calibration: str = ""
    calibration_corpus: str = ""
    dtype: str = "float32"
    device: str = "cpu"
    include_head: bool = False
    include_embedding: bool = False
    stop: Mapping[str, Any] = field(default_factory=dict)
    sample: Sample | None = None
    calibration_draw: CalibrationDraw | None = None
    activations: Mapping[str, Any] = field(default_factory=dict)
    cache: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Everything that changes the number, and nothing else; later fields only where set, so that keys stay."""
        return {
            "version": KEY_VERSION,
            "weights": self.checkpoint.weights_sha,
            "corpus": self.task.get("digest", self.corpus),
            "protocol": "task" if self.task else self.protocol,
            "quantizer": self.quantizer,
            "quantizer_version": self.quantizer_version,
            "options": dict(sorted(self.options.items())),
            "scheme": {n: v for n, v in vars(self.scheme).items() if n != "layers"} if self.scheme else None,
            "calibration": self.calibration,
            "calibration_corpus": self.calibration_corpus,
            "dtype": self.dtype,
            "device": self.device,
            "include_head": self.include_head,
            **({"include_embedding": True} if self.include_embedding else {}),
            **({"architecture": dict(given)} if (given := self.checkpoint.architecture_given) else {}),
            **{n: own for n in ("stop", "activations", "cache", "task") if (own := self._own(n))},
        }

    def _own(self, name: str) -> dict[str, Any]:
        """The entries of a field that change the number."""
        unused = ("asked", "folders") if name == "task" else self.stop if name == "stop" and self.task else ()
        return {n: v for n, v in sorted(getattr(self, name).items()) if n not in unused}

    def key(self) -> str:
        """A versioned hash of `identity()` and of the checkpoint's place (run and step) in its trajectory.

        Two checkpoints with identical weights keep records of their own.
        """
        place = {"run": self.checkpoint.run, "step": self.checkpoint.step, "revision": self.checkpoint.revision}
        text = json.dumps([self.identity(), place], sort_keys=True, default=str)
        return f"v{KEY_VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    @property
    def bits(self) -> int | None:
        """Bits per code, or None for full precision."""
        return self.scheme.bits if self.scheme else None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trial:
        """The inverse of `to_dict`."""
        known = _known(cls, data)
        known["checkpoint"] = Checkpoint.from_dict(known["checkpoint"])
        if known.get("scheme"):
            scheme = Scheme(**_known(Scheme, known["scheme"]))
            known["scheme"] = replace(scheme, layers={name: (f, size) for name, (f, size) in scheme.layers.items()})
        if known.get("sample"):
            sample = _known(Sample, known["sample"])
            known["sample"] = replace(Sample(**sample), documents=tuple(sample.get("documents", ())))
        if known.get("calibration_draw"):
            known["calibration_draw"] = CalibrationDraw(**_known(CalibrationDraw, known["calibration_draw"]))
        return cls(**known)


@dataclass(frozen=True)
class Measurement:
    """What was measured for a trial.  Sums are per window, in nats, over `n_tokens[i]` scored tokens.

    `kl` is KL(full precision ‖ quantized) summed over a window's scored tokens and `agree` the number of them whose
    most likely token is unchanged; both are empty for full precision, as is `tokens`, what single tokens say (see
    `measure.tokens`; none in earlier versions).  `status` is "ok", "partial" (some layers were left in full precision,
    see `details`) or "failed" (`message` says why).  `windows`: places of those measured, if stopped early.
    """

    trial: Trial
    nll: tuple[float, ...] = ()
    n_tokens: tuple[int, ...] = ()
    n_bytes: tuple[int, ...] = ()
    kl: tuple[float, ...] = ()
    agree: tuple[int, ...] = ()
    bits_per_weight: float | None = None
    status: str = "ok"
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Time, host, versions: what may differ between two identical measurements."""
    windows: tuple[int, ...] = ()
    tokens: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:  # a message may name a file whose bytes are no text
        object.__setattr__(self, "message", self.message.encode("utf-8", "backslashreplace").decode())

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, nats per token."""
        return math.fsum(self.nll) / sum(self.n_tokens) if self.n_tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Negative log2-likelihood per UTF-8 byte of the scored text; NaN where bytes are unknown."""
        total = sum(self.n_bytes)
        return math.fsum(self.nll) / (total * math.log(2)) if total else math.nan

    @property
    def effective_bits(self) -> float | None:
        """Stored bits per weight under the scheme alone, without what a method adds (input scales, a permutation)."""
        scheme = self.trial.scheme
        if scheme is None or "effective_bits" in self.details or scheme.format != "int" or scheme.group_size is None:
            return self.details.get("effective_bits", self.bits_per_weight)
        # Records of earlier versions: integers with a 16-bit scale per group and, if asymmetric, a zero.
        return scheme.bits + (16 + (0 if scheme.symmetric else scheme.bits)) / scheme.group_size

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` is its inverse."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "trial": self.trial.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """The inverse of `to_dict`."""
        known = _known(cls, data)
        known["trial"] = Trial.from_dict(known["trial"])
        for name in ("nll", "n_tokens", "n_bytes", "kl", "agree", "windows"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: data[f.name] for f in fields(cls) if f.name in data}
