"""Where a calibration pass is: hidden states between two blocks, kept now and then, from which another process goes on.

What one block hands to the next, [windows, time, width], is all that the rest of a pass needs, unless the model also
takes something from earlier blocks.  Whether it does is tried before they are used: a few tokens go through the whole
model, and through its rest alone, and have to come out the same bit by bit.  Otherwise, and where blocks do not hand on
one tensor, windows go through the model again from its beginning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ptq_eval.measure import kept
from ptq_eval.models.blocks import blocks, forwarding
from ptq_eval.models.language_model import LanguageModel

_TRIED = 16
"""Tokens that are tried."""


class Halfway:
    """The place of a pass of `chunks` of windows through groups of layers, kept as `states`."""

    def __init__(
        self, model: LanguageModel, groups: Sequence[tuple[str, ...]], chunks: Sequence[Tensor], states: kept.Sums
    ) -> None:
        self._model, self._chunks, self._states = model, chunks, states
        self._blocks = list(blocks(model.module))
        block_of = {id(module): place for place, block in enumerate(self._blocks) for module in block.modules()}
        linears = model.linears()
        self._block_of_group = [block_of.get(id(linears[names[0]]), -1) for names in groups]
        self._number, self._due, self._last = 0, False, time.monotonic()
        self._outputs: dict[int, tuple[int, Tensor]] = {}

    def enter(self, number: int) -> None:
        """The chunk of this number runs on."""
        self._number = number

    def arrived(self, index: int) -> None:
        """All chunks that reach a group are there: keep what its block was handed, if that is due."""
        block = self._block_of_group[index]
        states = [output for place, output in self._outputs.values() if place == block - 1]
        if len(states) == len(self._chunks):
            named = {str(number): output for number, (_, output) in self._outputs.items()}
            self._states.keep(named, block, last=True)
            self._last = time.monotonic()
        if self._outputs and (states or block > min(place for place, _ in self._outputs.values()) + 1):
            self._outputs.clear()
        self._due = time.monotonic() - self._last > kept.SECONDS

    @contextmanager
    def passing(self, is_done: Callable[[int], bool]) -> Iterator[int]:
        """Within the context, the model goes on from what an earlier process kept; the first group that it reaches.

        is_done(index): whether nothing is left to do for a group.  What is kept is deleted at the end of the pass.
        """
        block = self._states.parts
        before = [place < block for place in self._block_of_group]
        first = before.index(False) if False in before else 0
        if not (first and all(map(is_done, range(first))) and len(self._states) == len(self._chunks)):
            block = first = 0
        if block and not self._goes_on_from(block):
            block = first = 0
        states = [self._states[str(n)].to(self._model.device) for n in range(len(self._chunks))] if block else []
        hooks = [part.register_forward_hook(self._note(place)) for place, part in enumerate(self._blocks)]
        try:
            with forwarding({part: lambda *_, **__: states[self._number] for part in self._blocks[:block]}):
                yield first
        finally:
            for hook in hooks:
                hook.remove()
        self._states.clear()

    def _note(self, place: int) -> Callable[[nn.Module, Any, Any], None]:
        def note(_module: nn.Module, _args: Any, out: Any) -> None:
            if self._due and isinstance(out, Tensor):
                self._outputs[self._number] = place, out

        return note

    def _goes_on_from(self, block: int) -> bool:
        """Whether the hidden states that a block is handed are all that the model takes from earlier blocks."""
        ids = self._chunks[0][:1, :_TRIED]
        handed: list[Any] = []
        hook = self._blocks[block - 1].register_forward_hook(lambda _module, _args, out: handed.append(out))
        try:
            whole = self._model.hidden(ids)
        finally:
            hook.remove()
        if len(handed) != 1 or not isinstance(handed[0], Tensor):
            return False
        with forwarding({part: lambda *_, **__: handed[0] for part in self._blocks[:block]}):
            return torch.equal(self._model.hidden(ids), whole)
