"""Decoder blocks whose activations are computed again during the pass back instead of kept: the memory of one block.

torch.utils.checkpoint does it, around the forward of each block for one pass of the model; it costs one more pass
forward, and numbers are the same bit by bit.  What else is asked of a pass needs to know whether a block is run for
the first time or again, and which of its runs that is: see `Run`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ptq_eval.models.blocks import blocks, forwarding


class Run:
    """One run of a block forward, a context for each time that it is computed: the first, and every one again."""

    def __init__(self, enter: Callable[[Run | None, bool], None]) -> None:
        self._enter = enter
        self._again = False

    def __enter__(self) -> None:
        self._enter(self, self._again)
        self._again = True

    def __exit__(self, *_: object) -> None:
        self._enter(None, False)


@contextmanager
def recomputing(module: nn.Module, enter: Callable[[Run | None, bool], None]) -> Iterator[None]:
    """A pass forward within the context keeps the inputs of blocks alone; its pass back may come later.

    enter(run, again) as a run of a block begins, for the first time or `again`; enter(None, False) as it ends.
    """

    def kept(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run_once(*args: Any, **named: Any) -> Any:
            run = Run(enter)
            options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
            return checkpoint(forward, *args, context_fn=lambda: (run, run), **options, **named)

        return run_once

    whole = set_checkpoint_early_stop(False)  # which would end a block before its last layer is called
    with forwarding({block: kept(block.forward) for block in blocks(module)}), whole:
        yield
