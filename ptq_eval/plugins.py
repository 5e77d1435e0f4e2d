"""The one door for plug-ins: entry points, for the built-in ones too.

A group is `ptq_eval.<kind>`, kind being one of `KINDS`.
"""

from __future__ import annotations

import contextlib
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any

from ptq_eval.errors import UnknownPluginError

KINDS = ("quantizers", "backends", "checkpoints", "corpora", "laws")


@cache
def _points(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"ptq_eval.{kind}")}


def names(kind: str) -> list[str]:
    """The names of all installed plug-ins of a kind, sorted; nothing is imported."""
    return sorted(_points(kind))


def get(kind: str, name: str) -> Any:
    """Import and return one plug-in (a class).

    Raises UnknownPluginError, with the nearest name for one that is not installed.
    """
    points = _points(kind)
    if name not in points:
        raise UnknownPluginError.of(kind.removesuffix("s"), name, points)
    try:
        found = points[name].load()
        if kind == "quantizers":
            _require_quantizer(found)
        return found
    except Exception as error:  # another package's code may fail in any way
        raise UnknownPluginError(
            f"the {kind.removesuffix('s')} {name!r} cannot be loaded",
            got=f"{type(error).__name__}: {error}",
            remedy=f"fix or uninstall {provider(kind, name)}",
        ) from error


def _require_quantizer(cls: Any) -> None:
    """Raises TypeError for what is no class of quantizers that can be made, with the reason."""
    from quantizers import Quantizer

    if not (isinstance(cls, type) and issubclass(cls, Quantizer)):
        raise TypeError("it is no subclass of quantizers.Quantizer")
    for name in ("name", "version", "needs_stats", "default_calibration"):
        if not hasattr(cls, name):
            raise TypeError(f"it has no {name}")
    cls()


def quantizer_name(name: str) -> str:
    """The full name of a method: a quantizer's as it is, a backend's as `backend:method`, by default its first one.

    Raises UnknownPluginError, with the nearest name for an unknown one.
    """
    backend, colon, method = name.partition(":")
    if not colon and (name in _points("quantizers") or name not in _points("backends")):
        if name not in _points("quantizers"):
            raise UnknownPluginError.of("quantizer", name, [*_points("quantizers"), *_points("backends")])
        get("quantizers", name)
        return name
    methods = get("backends", backend).methods
    if colon and method not in methods:
        raise UnknownPluginError.of(f"method of {backend}", name, [f"{backend}:{own}" for own in methods])
    return f"{backend}:{method or next(iter(methods))}"


def provider(kind: str, name: str) -> str:
    """`package version` that provides a plug-in, for provenance and for the list of quantizers."""
    backend, colon, _ = name.partition(":")
    dist = _points("backends" if colon else kind)[backend].dist
    return f"{dist.name} {dist.version}" if dist else "unknown"


def value(kind: str, name: str) -> str:
    """`module:Class` of a plug-in, for a process that loads it by itself."""
    return _points(kind)[name].value


def load_all(kind: str) -> dict[str, Any]:
    """Import every plug-in of a kind: {name: class}, in order of name."""
    return {name: get(kind, name) for name in names(kind)}


@cache
def versions(*packages: str) -> dict[str, str]:
    """{package: version} of those that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
