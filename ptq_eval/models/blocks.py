"""The blocks of a model, one after the other, and other forwards in place of theirs for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules, which the blocks of a model are."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


@contextmanager
def forwarding(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within the context, modules have other forwards; a wrapper that a module has, as accelerate's, comes back."""
    own = {module: module.__dict__.get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward
