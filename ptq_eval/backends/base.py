"""The contract of a backend: a foreign package that quantizes, its methods, and what is asked of it.

A `Backend` subclass is loaded twice: here, to list and plan, and in the worker process, where the package is.  So its
module imports nothing of the package at the top, only within `quantize`.

    class Mine(Backend):
        name = "mine"
        requirements = ("mine==1.2",)
        imports = "mine"
        source = "https://example.org/mine"
        methods = {"fast": Method("rounds to a lattice", bits=(3, 4))}

        def quantize(self, job):
            import mine
            model = job.load()
            mine.quantize_(model, bits=job.cell.bits, data=job.ids)
            return model
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

INTEGER = "int"
"""The format of a cell with plain integers."""


@dataclass(frozen=True)
class Cell:
    """What is asked for: a method at these bits per code and columns per scale (None: one scale per output row).

    `format` is "int", or the name of a number format (`quantizers.formats`).
    """

    method: str
    bits: int
    group_size: int | None
    symmetric: bool
    format: str = INTEGER


@dataclass(frozen=True)
class Method:
    """One method of a backend, and the schemes that it can do.

    `scheme` fixes the number format and `blocks` its columns per scale, the first of them being the usual one: such a
    method is measured once, whatever bits a run asks for, and so is one with a single entry in `bits`.  `symmetric` are
    the kinds of integer grids, the first of which conformance runs try, `groups` the group sizes (empty: any),
    `per_row` whether one scale per row is possible.
    `calibration` names the inputs of a layer that the method takes: "none", "shared" (of the full-precision model) or
    "sequential" (of the model whose earlier layers are quantized).  `real_zeros`: zero points are
    numbers of 16 bits, not codes.
    """

    summary: str
    bits: tuple[int, ...] = (2, 3, 4, 8)
    symmetric: tuple[bool, ...] = (False, True)
    groups: tuple[int, ...] = ()
    per_row: bool = True
    calibration: Literal["none", "shared", "sequential"] = "none"
    scheme: str = ""
    blocks: tuple[int, ...] = ()
    real_zeros: bool = False

    def block(self, narrowest: int) -> int | None:
        """The columns per scale of a method with a `scheme` where the narrowest row has so many columns."""
        if not self.blocks or self.blocks[0] <= narrowest:
            return self.blocks[0] if self.blocks else None
        return max((size for size in self.blocks if size <= narrowest), default=self.blocks[0])

    def refusal(self, cell: Cell) -> str:
        """Why the method cannot do `cell`; empty where it can."""
        if self.scheme:
            return ""
        if cell.format != INTEGER:
            return f"has no format {cell.format}"
        if cell.bits not in self.bits:
            return f"has no {cell.bits} bits, only {', '.join(map(str, self.bits))}"
        if cell.symmetric not in self.symmetric:
            return f"has no {'symmetric' if cell.symmetric else 'asymmetric'} grid"
        if cell.group_size is None:
            return "" if self.per_row else "has no single scale per row"
        if self.groups and cell.group_size not in self.groups:
            return f"has no groups of {cell.group_size} columns, only {', '.join(map(str, self.groups))}"
        return ""


@dataclass
class Job:
    """What a backend has to do, in its own process: one cell on one model.

    `layers` are the names of the linear modules to quantize, `ids` [windows, time] the calibration tokens (None where
    the method takes none).  `folder` is that of the exchange: the model is in `folder/model`, or for a `WeightBackend`
    its layers are in `folder/weights.safetensors`; whatever else is written there is deleted in the end.  `quick` is
    set in conformance runs, where a method of many steps may take fewer.
    """

    folder: Path
    layers: list[str]
    cell: Cell
    ids: Tensor | None = None
    device: str = "cpu"
    quick: bool = False

    @property
    def model(self) -> str:
        """The folder of the model, as transformers saves it."""
        return str(self.folder / "model")

    @property
    def saved(self) -> str:
        """Where a conformance run saves what this cell's method made."""
        return str(self.folder / f"saved-{self.cell.method}")

    def load(self, dtype: Any = None) -> Any:
        """The model as transformers gives it, in evaluation mode on the device, float32 unless `dtype` is given."""
        import torch
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(self.model, torch_dtype=dtype or torch.float32)
        return model.to(self.device).eval()


def distribution_name(requirement: str) -> str:
    """The name at the start of what pip is asked for, such as "hqq==0.2.8"."""
    found = re.match(r"[\w.-]+", requirement)
    return found[0] if found else requirement


class Backend(ABC):
    """A foreign package.  Subclasses are stateless; every class attribute without a value must be set."""

    name: ClassVar[str]
    requirements: ClassVar[tuple[str, ...]]
    """What pip installs in the environment of its own, pinned."""
    imports: ClassVar[str]
    """The module that is there if the package is."""
    source: ClassVar[str]
    methods: ClassVar[Mapping[str, Method]]
    extra: ClassVar[str] = ""
    """The extra of ptq-eval that installs it beside us; empty where it needs an environment of its own."""
    variables: ClassVar[Mapping[str, str]] = {}
    """Environment variables of its process."""
    device: ClassVar[Literal["any", "cuda"]] = "any"
    remarks: ClassVar[str] = ""
    """What a user must know: faults that the conformance run finds, the package's successor."""

    no_reload: ClassVar[str] = ""
    """Why conformance runs do not save and load, where `reloaded` is not defined."""

    @abstractmethod
    def quantize(self, job: Job) -> nn.Module | Mapping[str, Tensor]:
        """The quantized model, or the weights [out, in] by layer name.  Raises anything."""

    def reloaded(self, model: Any, job: Job) -> Any:
        """The model, or its weights by name, after saving and loading; None where the package does neither.

        `model` is what `quantize` returned, None for weights by name.  Called in conformance runs.
        """
        return None


class WeightBackend(Backend):
    """A backend whose methods need one weight at a time: no model is loaded."""

    def quantize(self, job: Job) -> Mapping[str, Tensor]:
        """Every layer by `quantize_weight`."""
        from safetensors import safe_open

        found = {}
        with safe_open(job.folder / "weights.safetensors", framework="pt") as file:
            for name in job.layers:
                found[name] = self.quantize_weight(file.get_tensor(name).to(job.device), job.cell)
        return found

    @abstractmethod
    def quantize_weight(self, weight: Tensor, cell: Cell) -> Tensor:
        """The dequantized weight [out, in] of `weight` [out, in], float32."""
