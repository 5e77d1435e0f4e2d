"""Mixed precision: a number format for each layer, as a plan names them.

A plan is a JSON file, written by `ptq-eval sensitivity --budget` or by hand:

    {"group_size": 128, "layers": {"model.layers.0.mlp.up_proj": "int3", "model.layers.0.mlp.down_proj": "int4", …}}

Every layer that is quantized has a format that `--formats` takes ("int4", "int4_half", "nvfp4").  `group_size` is that
of formats without blocks of their own, by default that of the run.  `shapes` {layer: [rows, columns]} are those of the
model that the plan was made for, and `checkpoint` names it with the digest of its weights: models of other shapes are
refused, other weights are noted.  The plan's other entries are for its readers.

In a record, the scheme of a mixture has the formats of all layers, and a name that ends in their digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptq_eval import records
from ptq_eval.errors import GroupSizeError, NumberFormatError, OptionError, did_you_mean
from ptq_eval.measure.schemes import named
from quantizers import Scheme

PREFIX = "mixed-"
_DIGITS = 12


@dataclass(frozen=True)
class Mixture:
    """The scheme of each layer, from the plan `source`, and what the plan says of the model that it was made for."""

    layers: Mapping[str, Scheme]
    source: str = ""
    shapes: Mapping[str, Any] = field(default_factory=dict)
    """[rows, columns] of the layers of the model that the plan was made for; empty where the plan has none."""
    made_for: Mapping[str, Any] = field(default_factory=dict)
    """`run`, `step` and `weights_sha` of that model; empty where the plan has none."""

    @property
    def name(self) -> str:
        """`mixed-` and the first digits of the digest."""
        text = json.dumps({name: list(vars(scheme).values()) for name, scheme in sorted(self.layers.items())})
        return PREFIX + hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]

    def require(self, checkpoint: str, matrices: Mapping[str, tuple[int, int]]) -> None:
        """Raises OptionError unless the plan is of the layers of a checkpoint, by name with their shape.

        `matrices` are those that are quantized.
        """
        known = list(matrices)
        for wrong, what in (
            ([name for name in self.layers if name not in known], "names a layer that is not quantized"),
            ([name for name in known if name not in self.layers], "names no format for a layer"),
        ):
            if wrong:
                raise OptionError(
                    f"the mixed-precision plan {what}",
                    got=f"{wrong[0]} of {checkpoint}" + (f", and {len(wrong) - 1} others" if len(wrong) > 1 else ""),
                    allowed="the layers that are quantized, each once",
                    remedy=did_you_mean(wrong[0], self.layers if wrong[0] in known else known)
                    or f"make {self.source} for this model, with the same --include-head and --include-embedding",
                )
        for name, shape in matrices.items():
            if name in self.shapes and list(self.shapes[name]) != list(shape):
                raise OptionError(
                    "the mixed-precision plan was made for a model of other shapes",
                    got=f"{name} is {list(shape)} in {checkpoint}, and {self.shapes[name]} in {self.source}",
                    remedy="make a plan for this model: ptq-eval sensitivity FOLDER -o OUT --budget 3.5bits",
                )

    def note(self, checkpoints: Iterable[records.Checkpoint]) -> str:
        """What a reader must know where none of the checkpoints is the one that the plan was made for; else empty."""
        own = self.made_for.get("weights_sha")
        if not own or own in {checkpoint.weights_sha for checkpoint in checkpoints}:
            return ""
        step = self.made_for.get("step")
        made_for = f"{self.made_for.get('run')}{'' if step is None else f'@{step}'}"
        return f"the plan {self.source} was made for {made_for}, whose weights are not among those measured here"


def read(path: str | Path, group_size: int | None, narrowest: int) -> Mixture:
    """The mixture of a plan; `group_size` is the run's, and the narrowest row has `narrowest` columns.

    Raises OptionError for a file that is no plan, NumberFormatError or GroupSizeError for a format in it.
    """
    plan = _read(path)
    size = plan.get("group_size", group_size)
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= narrowest):
        raise GroupSizeError(f"the group size of {path} does not fit", got=size, allowed=f"1 to {narrowest}, or null")
    formats = {name: named(name, size, narrowest) for name in dict.fromkeys(plan["layers"].values())}
    layers = {layer: formats[name] for layer, name in plan["layers"].items()}
    return Mixture(layers, str(path), _mapping(plan, "shapes", path), _mapping(plan, "checkpoint", path))


def _mapping(plan: Mapping[str, Any], name: str, path: str | Path) -> Mapping[str, Any]:
    found = plan.get(name, {})
    if not isinstance(found, dict):
        raise OptionError(f'"{name}" of the mixed-precision plan is not an object', got=path, remedy=f'omit "{name}"')
    return found


def _read(path: str | Path) -> dict[str, Any]:
    remedy = "`ptq-eval sensitivity FOLDER -o OUT --budget 3.5bits` writes one"
    try:
        plan = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError("the mixed-precision plan cannot be read", got=f"{path}: {error}", remedy=remedy) from error
    layers = plan.get("layers") if isinstance(plan, dict) else None
    if not isinstance(layers, dict) or not layers:
        raise OptionError(
            'the mixed-precision plan has no "layers"', got=path, allowed="formats by layer", remedy=remedy
        )
    for layer, name in layers.items():
        if not isinstance(name, str):
            raise NumberFormatError(
                f"{path} has no name of a number format for {layer}", got=repr(name), remedy='"int4"'
            )
    return plan


def recorded(scheme: Scheme | Mixture) -> records.Scheme:
    """What a record keeps of a scheme."""
    if isinstance(scheme, Scheme):
        return records.Scheme(**vars(scheme))
    own = scheme.layers.values()
    sizes, symmetric = {one.group_size for one in own}, {one.symmetric for one in own}
    return records.Scheme(
        bits=round(sum(one.bits for one in own) / len(own)),
        group_size=sizes.pop() if len(sizes) == 1 else None,
        symmetric=symmetric == {True},
        format=scheme.name,
        layers={name: (one.name, one.group_size) for name, one in scheme.layers.items()},
    )


def schemes_of(scheme: records.Scheme) -> tuple[Scheme, dict[str, Scheme]]:
    """The scheme of a record, and the schemes of layers that have their own.

    In mixed precision the former is the first layer's, and applies to no other.
    """
    if not scheme.layers:
        return Scheme(scheme.bits, scheme.group_size, scheme.symmetric, scheme.format), {}
    layers = {name: Scheme.of(form, size) for name, (form, size) in scheme.layers.items()}
    return next(iter(layers.values())), layers
