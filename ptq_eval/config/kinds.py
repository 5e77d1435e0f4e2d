"""How values are read that only a run has: a shard, options of quantizers, and where jobs are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptq_eval.config.options import COUNT, Kind, once, plain
from ptq_eval.errors import PtqEvalError


def _shard(value: Any, *, name: str, error: type[PtqEvalError]) -> tuple[int, int]:
    parts = value.split("/") if isinstance(value, str) else value
    if not isinstance(parts, Sequence) or len(parts) != 2:
        raise error(f"{name} is not i/n", got=repr(value), remedy=f"{name} 1/4")
    index, count = (COUNT.read(part, name=f"a part of {name}", error=error) for part in parts)
    if not 1 <= index <= count:
        raise error(f"{name} i/n needs 1 <= i <= n", got=f"{index}/{count}", remedy=f"{name} 1/4")
    return index, count


def _quantizer_options(value: Any, *, name: str, error: type[PtqEvalError]) -> dict[str, dict[str, Any]]:
    """Options by quantizer, from such a mapping or from texts like "gptq.act_order=true"."""
    if isinstance(value, Mapping):
        if all(isinstance(own, Mapping) for own in value.values()):
            return {str(quantizer): dict(own) for quantizer, own in value.items()}
        raise error(f"{name} needs a mapping for each quantizer", got=repr(value), allowed="{'gptq': {'damping': 0.1}}")
    parsed = []
    for pair in [value] if isinstance(value, str) or not isinstance(value, Sequence) else value:
        key, equals, text = str(pair).partition("=")
        quantizer, dot, own = key.partition(".")
        if not (equals and dot and own):
            raise error(f"{name} is not QUANTIZER.OPTION=VALUE", got=pair, remedy=f"{name} gptq.act_order=true")
        parsed.append((key.strip(), plain(text)))
    options: dict[str, dict[str, Any]] = {}
    for key, own_value in once(parsed, name, error).items():
        quantizer, _, own = key.partition(".")
        options.setdefault(quantizer, {})[own] = own_value
    return options


def _executor(value: Any, *, name: str, error: type[PtqEvalError]) -> str:
    kind, colon, address = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind not in ("local", "ray") or (colon and (kind == "local" or not address)):
        raise error(f"{name} has an unknown value", got=repr(value), allowed="local, ray, ray:HOST:PORT")
    return value


SHARD = Kind(_shard, "i/n")
QUANTIZER_OPTIONS = Kind(_quantizer_options, "QUANTIZER.OPTION=VALUE")
EXECUTOR = Kind(_executor, "local|ray[:ADDRESS]")
