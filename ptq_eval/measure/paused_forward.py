"""A forward pass that pauses at layers: one batch, or several batches that advance together.

`calibration` needs a layer's inputs from *all* calibration windows before it can quantize the layer, and the quantized
layer before any window goes on.  Where the windows do not fit through the model as one batch, each chunk of them is a
forward pass in a thread of its own, and a layer's pre-hook makes the threads wait for each other.  Only one of them
runs at a time, in a fixed order, so results do not depend on how the system schedules threads.  No block of the model
is ever called by hand or replaced: whatever the architecture does between two layers happens inside its own `forward`.

While a chunk waits, only what its forward pass still needs stays alive (the residual stream and the layer's input),
not the temporaries of a whole block; those exist for one chunk at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ptq_eval.models.language_model import LanguageModel

Serve = Callable[[int, Mapping[int, Tensor]], None]
"""serve(index, inputs): every chunk that reaches the group of this index waits there; {number of chunk: [..., in]}."""


class _Finished(Exception):
    """The rest of the forward pass is not needed."""


def run(
    model: LanguageModel,
    chunks: Sequence[Tensor],
    groups: Sequence[tuple[str, ...]],
    serve: Serve,
    enter: Callable[[int], None] | None = None,
) -> None:
    """Pass chunks of windows [n, time] through the model, calling `serve` once for each group that is reached.

    Groups are served in their order.  The pass ends after the last group, before any logits.  Of several chunks, each
    runs on only after enter(its number).
    """
    pending = {name: index for index, group in enumerate(groups) for name in group}

    def done(index: int) -> None:
        for name in groups[index]:
            del pending[name]

    if len(chunks) > 1:
        _Together(model, chunks, pending, enter).advance(serve, done)
        return

    def reached(name: str, x: Tensor) -> None:
        index = pending.get(name)
        if index is not None:
            serve(index, {0: x})
            done(index)
            if not pending:
                raise _Finished

    forward(model, chunks[0], dict.fromkeys(pending, reached))


def forward(model: LanguageModel, ids: Tensor, reached: Mapping[str, Callable[[str, Tensor], None]]) -> None:
    """One forward pass over windows `ids`; `reached[name](name, input)` is called before that layer runs."""
    modules, handles = model.linears(), []
    for name, call in reached.items():
        hook = lambda _module, args, name=name, call=call: call(name, args[0])
        handles.append(modules[name].register_forward_pre_hook(hook))
    try:
        _forward(model, ids)
    finally:
        for handle in handles:
            handle.remove()


def _forward(model: LanguageModel, ids: Tensor) -> None:
    body = model.module.base_model if not model.include_head else model.module
    try:
        with torch.inference_mode():
            body(input_ids=ids.to(model.device), use_cache=False)  # type: ignore[operator]
    except _Finished:
        pass


class _Chunk(threading.Thread):
    """One chunk's forward pass.  It runs only between `resume` and the next pending layer."""

    def __init__(self, model: LanguageModel, ids: Tensor) -> None:
        super().__init__(daemon=True)
        self.model, self.ids = model, ids
        self.input: Tensor | None = None
        self.index = -1
        self.error: BaseException | None = None
        self.stopped = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        self._go.acquire()
        try:
            if not self.stopped:
                _forward(self.model, self.ids)
        except BaseException as error:  # raised again in the thread that waits
            self.error = error
        self.index = -1
        self._back.release()

    def wait_at(self, index: int, x: Tensor) -> None:
        """Called in this thread: pause until resumed."""
        self.index, self.input = index, x
        self._back.release()
        self._go.acquire()
        self.input = None
        if self.stopped:
            raise _Finished

    def resume(self) -> None:
        """Called by another thread: run on to the next pending layer or to the end."""
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error


class _Together:
    """Chunks that advance together from group to group."""

    def __init__(
        self,
        model: LanguageModel,
        chunks: Sequence[Tensor],
        pending: dict[str, int],
        enter: Callable[[int], None] | None,
    ) -> None:
        self.model, self.pending, self.enter = model, pending, enter
        self.chunks = [_Chunk(model, ids) for ids in chunks]

    def advance(self, serve: Serve, done: Callable[[int], None]) -> None:
        modules = self.model.linears()
        handles = [modules[name].register_forward_pre_hook(self._hook(name)) for name in list(self.pending)]
        for chunk in self.chunks:
            chunk.start()
        try:
            self._resume(range(len(self.chunks)))
            while indices := [chunk.index for chunk in self.chunks if chunk.index >= 0]:
                index = min(indices)
                waiting = [number for number, chunk in enumerate(self.chunks) if chunk.index == index]
                inputs = {number: self.chunks[number].input for number in waiting}
                serve(index, {number: x for number, x in inputs.items() if x is not None})
                inputs.clear()
                done(index)
                if not self.pending:
                    break
                self._resume(waiting)
        finally:
            for chunk in self.chunks:
                if chunk.is_alive():
                    chunk.stopped = True
                    chunk.resume()
                chunk.join()
            for handle in handles:
                handle.remove()

    def _resume(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if self.enter is not None:
                self.enter(number)
            self.chunks[number].resume()

    def _hook(self, name: str) -> Callable[..., None]:
        def reached(_module: object, args: tuple[Tensor, ...]) -> None:
            index, chunk = self.pending.get(name), threading.current_thread()
            if index is not None and isinstance(chunk, _Chunk):
                chunk.wait_at(index, args[0])

        return reached
