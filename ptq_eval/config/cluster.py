"""The options of `ptq-eval submit` that a run lacks, and the options of a run that is measured on other machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptq_eval.config.options import COUNT, Kind, Options, once, option
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import DeviceError, PtqEvalError


def _word(value: Any, *, name: str, error: type[PtqEvalError]) -> str:
    if not isinstance(value, str) or not value or any(map(str.isspace, value)):
        raise error(f"{name} is not one word", got=repr(value))
    return value


def _pairs(value: Any, *, name: str, error: type[PtqEvalError]) -> dict[str, str]:
    """Options of sbatch, from a mapping or from texts like "qos=long"."""
    if isinstance(value, Mapping):
        pairs = [(str(key), str(own)) for key, own in value.items()]
    else:
        texts = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
        parts = [str(text).partition("=") for text in texts]
        for text, (_, equals, _) in zip(texts, parts):
            if not equals:
                raise error(f"{name} is not KEY=VALUE", got=repr(text), remedy=f"{name} qos=long")
        pairs = [(key.strip().lstrip("-"), own) for key, _, own in parts]
    for key, own in pairs:
        if not key.replace("-", "").isalnum() or not own.isprintable():
            raise error(f"{name} is not KEY=VALUE", got=repr(f"{key}={own}"), remedy=f"{name} qos=long")
    return once(pairs, name, error)


WORD = Kind(_word, "TEXT")


@dataclass(frozen=True)
class SlurmConfig(Options):
    """What sbatch is asked for each checkpoint.  What is not set is left to the cluster.  Raises OptionError."""

    slurm: bool = option(True, "Submit to SLURM, the only scheduler so far.")
    partition: str | None = option(None, "Partition of SLURM.", WORD, metavar="NAME", unset="the cluster's")
    time: str | None = option(
        None, "Time limit for one checkpoint, such as 2:00:00.", WORD, metavar="TIME", unset="the cluster's"
    )
    gpus: int | None = option(
        None, "GPUs for one checkpoint; jobs that have any measure on cuda.", COUNT, low=0, high=64, unset="none"
    )
    cpus: int | None = option(
        None, "Cores for one checkpoint, which has as many threads.", COUNT, low=1, high=4096, unset="the cluster's"
    )
    mem: str | None = option(
        None, "Memory for one checkpoint, such as 64G.", WORD, metavar="SIZE", unset="the cluster's"
    )
    account: str | None = option(None, "Account that is charged.", WORD, metavar="NAME", unset="the cluster's")
    sbatch_option: Mapping[str, str] = option(
        {}, "Another option of sbatch, such as qos=long; may be repeated.", Kind(_pairs, "KEY=VALUE"), repeated=True
    )
    array_limit: int | None = option(
        None, "Checkpoints measured at the same time.", COUNT, low=1, high=10**6, unset="no limit"
    )
    dry_run: bool = option(False, "Write and print the scripts, and submit nothing.")
    retry_missing: bool = option(
        False, "Submit again what an earlier submission has not measured, and that is neither queued nor running."
    )


@dataclass(frozen=True)
class RemoteConfig(RunConfig):
    """The options of a run whose checkpoints are measured on machines that cannot be asked what devices they have."""

    @classmethod
    def having(cls, options: Mapping[str, Any], gpus: int, also: Sequence[str] = ()) -> RemoteConfig:
        """Those of named values; a device "auto" is a GPU where jobs have `gpus`.  Raises DeviceError."""
        device = options.get("device", "auto")
        device = ("cuda" if gpus else "cpu") if device == "auto" else device
        if device not in ("cpu", "cuda"):
            raise DeviceError("a cluster job uses the devices of its own node", got=device, allowed="auto, cpu, cuda")
        return cls.of({**options, "device": device}, also=also)

    def resolve_device(self) -> str:
        """The device that was asked for."""
        return self.device
