"""A forward pass that stops at layers: over one batch, or over several that advance together.

`calibration` needs the inputs of a layer from *all* calibration windows before it can solve it, and the solution
before any window goes on.  Where the windows do not fit through the model as one batch, every chunk of them is a
forward pass of its own, in a thread of its own, and a layer's pre-hook is where threads wait for each other.  Only
one of them runs at a time, in a fixed order, so results do not depend on how the system schedules threads.  No block
of the model is ever called by hand, replaced, or told apart: whatever the architecture does between two layers
happens inside its own `forward`.

What stays alive while a chunk waits is what its forward pass still needs (the residual stream and the input of the
layer), not the temporaries of a whole block, and those of one chunk only exist at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ptq_eval.models.language_model import LanguageModel

Serve = Callable[[int, list[Tensor]], None]
"""serve(place, inputs): all chunks that reach the group of this place wait there with their inputs [..., in]."""


class Finished(Exception):
    """The rest of the forward pass is not needed."""


def run(model: LanguageModel, chunks: Sequence[Tensor], groups: Sequence[tuple[str, ...]], serve: Serve) -> None:
    """Pass chunks of windows [n, time] through the model, calling `serve` once for each group that is reached.

    Groups are served in their order.  The pass ends after the last group, before any logits.
    """
    pending = {name: place for place, group in enumerate(groups) for name in group}

    def done(place: int) -> None:
        for name in groups[place]:
            del pending[name]

    if len(chunks) == 1:

        def meet(name: str, x: Tensor) -> None:
            place = pending.get(name)
            if place is not None:
                serve(place, [x])
                done(place)
                if not pending:
                    raise Finished

        forward(model, chunks[0], dict.fromkeys(pending, meet))
    else:
        _Together(model, chunks, pending).advance(serve, done)


def forward(model: LanguageModel, ids: Tensor, meet: Mapping[str, Callable[[str, Tensor], None]]) -> None:
    """One forward pass over windows `ids`; `meet[name](name, input)` is called before the layer of that name runs."""
    modules, handles = model.linears(), []
    for name, call in meet.items():
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
    except Finished:
        pass


class _Chunk(threading.Thread):
    """One chunk's forward pass.  It runs between `resume` and the next layer that is pending, and never otherwise."""

    def __init__(self, model: LanguageModel, ids: Tensor) -> None:
        super().__init__(daemon=True)
        self.model, self.ids = model, ids
        self.input: Tensor | None = None
        self.place = -1
        self.error: BaseException | None = None
        self.stopped = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        self._go.acquire()
        try:
            if not self.stopped:
                _forward(self.model, self.ids)
        except BaseException as error:  # handed over to the thread that waits
            self.error = error
        self.place = -1
        self._back.release()

    def wait_at(self, place: int, x: Tensor) -> None:
        """Called in this thread: give way until resumed."""
        self.place, self.input = place, x
        self._back.release()
        self._go.acquire()
        self.input = None
        if self.stopped:
            raise Finished

    def resume(self) -> None:
        """Called by another thread: run on to the next pending layer or to the end."""
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error


class _Together:
    """Chunks that advance together from group to group."""

    def __init__(self, model: LanguageModel, chunks: Sequence[Tensor], pending: dict[str, int]) -> None:
        self.model, self.pending = model, pending
        self.chunks = [_Chunk(model, ids) for ids in chunks]

    def advance(self, serve: Serve, done: Callable[[int], None]) -> None:
        modules = self.model.linears()
        handles = [modules[name].register_forward_pre_hook(self._hook(name)) for name in list(self.pending)]
        for chunk in self.chunks:
            chunk.start()
        try:
            for chunk in self.chunks:
                chunk.resume()
            while places := [chunk.place for chunk in self.chunks if chunk.place >= 0]:
                place = min(places)
                waiting = [chunk for chunk in self.chunks if chunk.place == place]
                serve(place, [chunk.input for chunk in waiting if chunk.input is not None])
                done(place)
                if not self.pending:
                    break
                for chunk in waiting:
                    chunk.resume()
        finally:
            for chunk in self.chunks:
                if chunk.is_alive():
                    chunk.stopped = True
                    chunk.resume()
                chunk.join()
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def meet(_module: object, args: tuple[Tensor, ...]) -> None:
            place, chunk = self.pending.get(name), threading.current_thread()
            if place is not None and isinstance(chunk, _Chunk):
                chunk.wait_at(place, args[0])

        return meet
