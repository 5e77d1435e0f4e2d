"""Devices that do not exist, for code that shares a model out over several: tensors on them compute on the CPU, and an
operation on tensors of two devices is an error, as it is on GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

KIND = "elsewhere"


class Elsewhere(torch.Tensor):
    """A tensor on such a device, whose values are in `held`."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
            requires_grad=False,
        )
        made.held = held
        return made

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(self._there(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(self._there(index), value)

    def _there(self, index: Any) -> Any:
        """A list of indices as a tensor on this device: torch moves it where no mode sees that."""
        return torch.tensor(index).to(self.device) if isinstance(index, list) else index

    def new_tensor(self, data: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=self.dtype).to(self.device)

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class Devices(TorchDispatchMode):
    """While it is active, tensors can be made on these devices and moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


@torch.inference_mode(False)  # tensors of inference mode have no versions, which views of these need
@torch.no_grad()
def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.partition("::")[2]
    leaves = tree_leaves((args, kwargs))
    given = [one for one in leaves if isinstance(one, torch.Tensor)]
    asked = next((one for one in leaves if isinstance(one, torch.device)), None)
    # A number may be on the CPU beside any device, as in torch.
    places = {one.device for one in given if isinstance(one, Elsewhere) or one.dim() > 0}
    there = {place for place in places if place.type == KIND}
    if there and len(places) > 1 and name != "copy_":
        raise RuntimeError(f"{name}: tensors on different devices: {sorted(map(str, places))}")
    home = args[0].device if name == "copy_" else asked if asked is not None else next(iter(there), None)
    held = tree_map(_held, (args, kwargs))
    found = func(*held[0], **held[1])
    if home is None or home.type != KIND:
        return found
    same = {id(one.held): one for one in given if isinstance(one, Elsewhere)}

    def placed(one: Any) -> Any:
        if not isinstance(one, torch.Tensor):
            return one
        own = same.get(id(one))
        if own is not None and own.device == home:
            return own
        return Elsewhere(one if own is None else one.clone(), home)

    return tree_map(placed, found)


def _held(one: Any) -> Any:
    if isinstance(one, torch.device) and one.type == KIND:
        return torch.device("cpu")
    return one.held if isinstance(one, Elsewhere) else one


_tensor = torch.tensor


def _made(*args: Any, device: Any = None, **more: Any) -> torch.Tensor:
    """`torch.tensor`, which moves what it makes to the device where no mode sees it."""
    made = _tensor(*args, **more)
    return made if device is None else made.to(device)


def add() -> None:
    """Let torch know the type of these devices, for the rest of the process."""
    _setup_privateuseone_for_python_backend(KIND)
    torch.tensor = _made
