"""A model whose activations and key-value cache are rounded while it runs; its weights are whatever it carries.

**Activations** are the inputs of the linear layers that may be quantized, rounded by a pre-hook on each.  Where the
quantizer scales or rotates a layer's inputs (AWQ, SmoothQuant, Hadamard), the layer computes Ŵ·x = Ŵ_q·(Qᵀx/s) with the
quantized Ŵ_q, so Qᵀx/s is what is rounded.

**Keys and values** are rounded where attention reads them: transformers' models call one of the functions of
`ALL_ATTENTION_FUNCTIONS`, whose arguments are replaced before they reach the same function as always.  Keys then have
their norm and rotary embedding; before the embedding they are rounded at the output of the key's norm or projection,
whichever is last, but ahead of a norm that follows the embedding.  Layers without an embedding have them rounded as
attention reads them.

A static range is observed on the calibration windows, in the model with the weights of the variant and nothing else
rounded.  Whether a model can be treated so is found out by a short forward pass, and refused with the reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ptq_eval.errors import UnsupportedModelError
from ptq_eval.measure.evaluate import batch_size
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.runtime import Cache, Rounding
from quantizers import Scheme, ShapeError
from quantizers.stats import Rotation
from quantizers.tensors import Bounds, rounded

_PROBED_TOKENS = (8, 7)
"""Tokens of the forward pass that shows how keys are laid out, which must not be as many as there are heads."""
_KEYS = ("k_norm", "k_layernorm", "key_layernorm", "k_proj", "c_k", "key_proj")
"""Names of the module within attention that makes the keys that are rotated, the last one first."""

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Transform:
    """What a quantizer does to a layer's inputs: Qᵀx/s with a scale s [in] and a rotation Q, either may be None."""

    scale: Tensor | None = None
    rotation: Rotation | None = None

    def apply(self, x: Tensor) -> Tensor:
        """What the quantized weight multiplies, of inputs `x` [..., in]."""
        x = x if self.rotation is None else self.rotation.apply(x.float())
        return x if self.scale is None else x / self.scale

    def undo(self, x: Tensor) -> Tensor:
        """The inverse of `apply`."""
        x = x if self.scale is None else x * self.scale
        return x if self.rotation is None else self.rotation.undo(x)

    def same(self, other: Transform) -> bool:
        """Whether both do the same, so that layers which share an input can share what it is rounded to."""
        parts = ((one.scale, None if one.rotation is None else one.rotation.signs) for one in (self, other))
        return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in zip(*parts))


class Site:
    """One place in a model whose tensors [windows, …, tokens, channels] are rounded."""

    def __init__(self, rounding: Rounding, transform: Transform | None = None) -> None:
        self.rounding, self.transform = rounding, transform
        self.scheme = Scheme.of(rounding.format)
        self.bounds: Bounds | None = None

    @property
    def static(self) -> bool:
        """Whether the range is observed beforehand."""
        return self.rounding.range == "static"

    def observe(self, x: Tensor) -> Tensor:
        """Note the range of `x`, which stays as it is."""
        if self.static:
            seen = Bounds.of(x if self.transform is None else self.transform.apply(x), self.rounding.per)
            self.bounds = seen if self.bounds is None else self.bounds.including(seen)
        return x

    def rounded(self, x: Tensor) -> Tensor:
        """What `x` is rounded to."""
        if self.static and self.bounds is None:
            return x  # only within the probing pass
        if self.transform is None:
            return rounded(x, self.scheme, self.rounding.per, self.bounds)
        return self.transform.undo(rounded(self.transform.apply(x), self.scheme, self.rounding.per, self.bounds)).to(x)


@dataclass
class _Attention:
    """An attention module with its sites, and the module whose output are keys before the rotary embedding."""

    keys: Site
    values: Site
    key_module: nn.Module | None = None
    heads: int = 0
    """That the output of `key_module` [windows, tokens, …] has; 0 where it is [windows, heads, tokens, channels]."""


class Simulation:
    """How one variant of a model rounds what it computes; `prepare` comes before `running`.

    `transforms` are those of the variant's layers by name.
    """

    def __init__(
        self,
        model: LanguageModel,
        activations: Rounding | None = None,
        cache: Cache | None = None,
        transforms: Mapping[str, Transform] | None = None,
    ) -> None:
        self.model, self.cache, self._activations = model, cache, activations
        known = transforms or {}
        self._inputs = {name: Site(activations, known.get(name)) for name in model.linears()} if activations else {}
        self._attention: dict[nn.Module, _Attention] = {}
        self._last: tuple[Tensor, Site, Tensor] | None = None
        head: Any = model.module.get_output_embeddings()  # type: ignore[operator]
        self._head = next(
            (self._inputs[name] for name, own in model.linears().items() if own is head and self._inputs), None
        )

    def prepare(self, parameters: Mapping[str, Any], ids: Tensor, calibration: Tensor | None = None) -> None:
        """Find out where keys and values are read, and observe static ranges, in the model that carries `parameters`.

        `ids` [n, time] are windows to try it on, `calibration` [windows, time] those of static ranges.
        Raises UnsupportedModelError if the model cannot be treated so.
        """
        with self.model.carrying(parameters):
            if self.cache is not None:
                self._find_attention(ids, self.cache)
            try:
                with self.running():
                    self.model.hidden(ids[:1])
                if any(site.static for site in self._sites()):
                    self._observe(calibration)
            except ShapeError as error:
                raise UnsupportedModelError(
                    f"{self.model.name}: a layer's inputs are not kept window by window",
                    got=str(error),
                    remedy="--activation-per token",
                ) from error

    def _observe(self, calibration: Tensor | None) -> None:
        """Note the ranges of the calibration windows [windows, time]."""
        if calibration is None:
            raise ValueError("static ranges need calibration windows")
        for chunk in calibration.split(batch_size(self.model, calibration.shape[1])):
            with self._hooked(Site.observe):
                self.model.hidden(chunk) if self._head is None else self.model.logits(chunk)
        self._require_observed()

    @property
    def over_tokens(self) -> bool:
        """Whether tokens of a window share a scale that depends on them all, so that more tokens change it."""
        used = [self._activations, *((self.cache.keys, self.cache.values) if self.cache else ())]
        return any(one is not None and one.per != "token" and one.range == "dynamic" for one in used)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within the context, the model rounds."""
        with self._hooked(Site.rounded):
            yield

    def head_input(self, states: Tensor) -> Tensor:
        """The last hidden states [batch, time, width] as the head reads them where it is called apart."""
        return states if self._head is None else self._head.rounded(states)

    def _sites(self) -> Iterator[Site]:
        yield from self._inputs.values()
        for own in self._attention.values():
            yield from (own.keys, own.values)

    def _require_observed(self) -> None:
        """An expert that no calibration token reaches has no range; a range of nothing rounds nothing sensibly."""
        unseen = [name for name, site in self._inputs.items() if site.static and site.bounds is None]
        if unseen:
            raise UnsupportedModelError(
                f"{self.model.name}: no calibration token reached {len(unseen)} layers, so their inputs have no range",
                got=", ".join(unseen[:3]),
                remedy="more --calib-windows, or --activation-range dynamic",
            )

    @contextlib.contextmanager
    def _hooked(self, change: Callable[[Site, Tensor], Tensor]) -> Iterator[None]:
        modules = self.model.linears()
        with contextlib.ExitStack() as stack:
            for name, site in self._inputs.items():
                hook = lambda _module, args, site=site: (self._changed(site, args[0], change), *args[1:])
                stack.callback(modules[name].register_forward_pre_hook(hook).remove)
            for own in self._attention.values():
                if own.key_module is not None:
                    after = lambda _module, _args, out, own=own: _by_head(out, own, lambda x: change(own.keys, x))
                    stack.callback(own.key_module.register_forward_hook(after).remove)
            if self._attention:
                stack.enter_context(_attending(self.model, partial(self._read, change)))
            try:
                yield
            finally:
                self._last = None

    def _changed(self, site: Site, x: Tensor, change: Callable[[Site, Tensor], Tensor]) -> Tensor:
        """`change` of a layer's input, once for layers that share it."""
        if self._last is not None and change is Site.rounded:
            seen, other, found = self._last
            if seen is x and _alike(site.transform, other.transform):
                return found
        found = change(site, x)
        self._last = (x, site, found)
        return found

    def _read(
        self, change: Callable[[Site, Tensor], Tensor], module: nn.Module, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        own = self._attention.get(module)
        if own is None:
            return key, value
        return key if own.key_module is not None else change(own.keys, key), change(own.values, value)

    def _find_attention(self, ids: Tensor, cache: Cache) -> None:
        """Where the model reads keys and values.  Raises UnsupportedModelError."""
        found, taken, made = self._keys_of(ids)
        layers = getattr(self.model.module.config.get_text_config(), "num_hidden_layers", len(found))  # type: ignore[union-attr,operator]
        if not found or len(found) != layers:
            raise self._refused(
                "its attention does not read keys and values through transformers' attention interface",
                f"{len(found)} of {layers} layers do",
            )
        for module, key in found.items():
            own = self._attention[module] = _Attention(Site(cache.keys), Site(cache.values))
            if cache.rope == "before":
                known = [part for name in _KEYS if (part := getattr(module, name, None)) in made]
                known = [part for part in known if made[part].numel() == key.numel()]
                last, first = next(iter(known), None), next(iter(known[1:]), None)
                own.key_module = last
                if last is not None and first is not None and _alike_keys(made[last], key, key):
                    after_rotation = not _alike_keys(taken[last], made[first], key)
                    own.key_module = first if after_rotation else last
                if own.key_module is None:
                    raise self._refused(
                        "its keys have no projection of their own", "--key-rope before", "--key-rope after"
                    )
                own.heads = 0 if made[own.key_module].shape == key.shape else key.shape[1]

    def _keys_of(self, ids: Tensor) -> tuple[dict[nn.Module, Tensor], ...]:
        """The keys [1, heads, tokens, channels] that attention modules read, and what modules named for keys take and
        return."""
        found: dict[nn.Module, Tensor] = {}
        taken: dict[nn.Module, Tensor] = {}
        made: dict[nn.Module, Tensor] = {}

        def note(module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            found[module] = key
            return key, value

        def noted(own: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            taken[own], made[own] = args[0], out

        parts = [part for name, part in self.model.module.named_modules() if name.rpartition(".")[2] in _KEYS]
        for tokens in _PROBED_TOKENS:
            with contextlib.ExitStack() as stack:
                stack.enter_context(_attending(self.model, note))
                for part in parts:
                    stack.callback(part.register_forward_hook(noted).remove)
                self.model.hidden(ids[:1, :tokens])
            if all(key.shape[1] != key.shape[2] for key in found.values()):
                break
        return found, taken, made

    def _refused(self, what: str, got: str, remedy: str = "omit --kv-bits and --kv-formats") -> UnsupportedModelError:
        name = f"{self.model.name} ({type(self.model.module).__name__})"
        return UnsupportedModelError(f"{name}: {what}", got=got, remedy=remedy)


def _alike(one: Transform | None, other: Transform | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or one.same(other)


def _apart(out: Tensor, key: Tensor) -> Tensor:
    """Keys `out` of the same tokens as `key` [windows, heads, tokens, channels], laid out as it is."""
    return out if out.shape == key.shape else out.reshape(*out.shape[:2], key.shape[1], -1).transpose(1, 2)


def _alike_keys(one: Tensor, other: Tensor, key: Tensor) -> bool:
    """Whether two tensors are the same keys, however each is laid out."""
    return torch.equal(_apart(one, key), _apart(other, key))


def _by_head(out: Tensor, own: _Attention, change: Change) -> Tensor:
    """`change` of keys `out`, heads together or apart, as [windows, heads, tokens, channels]."""
    if not own.heads:
        return change(out)
    keys = out.reshape(*out.shape[:2], own.heads, -1).transpose(1, 2)
    return change(keys).transpose(1, 2).reshape(out.shape)


@contextlib.contextmanager
def _attending(
    model: LanguageModel, read: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
) -> Iterator[None]:
    """Within the context, attention reads what `read(module, key, value)` makes of keys and values.

    The function that the model uses is wrapped under its own name, so masks and kernels stay what they are.  A model
    that does not use the interface is not changed.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = model.module.config.get_text_config()._attn_implementation  # type: ignore[union-attr,operator]
    if name not in ALL_ATTENTION_FUNCTIONS:
        yield
        return
    own: Any = ALL_ATTENTION_FUNCTIONS[name]

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **more: Any) -> Any:
        key, value = read(module, key, value)
        return own(module, query, key, value, *args, **more)

    ALL_ATTENTION_FUNCTIONS[name] = attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[name] = own
