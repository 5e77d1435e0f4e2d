"""A folder's `config.json` as transformers' configuration, whichever version of transformers wrote it.

The content alone decides, never the folder's name or the files beside it.  What other versions wrote differently and
means the same is translated (numbers written as integers or strings, the type of the weights, the author's choice of
attention kernel); what cannot be built is refused with both versions named.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.errors import UnreadableCheckpointError, UnsafeCheckpointError, UnsupportedModelError
from ptq_eval.models.json_files import load_json
from ptq_eval.models.weight_files import without_empty_recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_OF_THE_MACHINE = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "transformers_weights",
    "dtype",
    "torch_dtype",
)
"""Entries that choose a kernel, a type or another file of weights: none belongs to the architecture."""

_WORDS = re.compile(r"^_|version|label|name|token$|type|revision|commit|hash")
"""Entries that are text even where they read as a number."""

_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "max_position_embeddings",
)  # fmt: skip
"""Entries that are counts, by the names that transformers has for them in every architecture."""
_VALIDATOR = re.compile(r"^Class validation error for validator '\w+': \w+: ")
"""How transformers begins what a check of a configuration says."""
_MOST_LAYERS = 5_000
"""Far beyond any model; each takes a millisecond to build."""

_RANGES = (
    (re.compile(r"(^|_)eps(ilon)?$"), 0.0, 1.0, "above 0 and not above 1"),
    (re.compile(r"(_theta|rotary_emb_base|rope_base|_base_freq)$"), 1.0, 1e12, "above 1 and not above 1e12"),
    (re.compile(r"partial_rotary_factor|rotary_pct|rope_pct"), 0.0, 1.0, "above 0 and not above 1"),
    (re.compile(r"_multiplier$|attn_scalar$|^logits?_scal(e|ing)$|^factor$"), 0.0, 1e6,
     "above 0 and not above 1e6"),
    (re.compile(r"dropout|_pdrop$"), -1e-9, 1.0, "from 0 to 1"),
    (re.compile(r"_(dim|rank|layers|heads|experts)$|soft_?cap(ping)?$"), -1e-9, 1e12, "0 or more"),
)  # fmt: skip
"""Names of entries, and the numbers that they may have: more than the first, and at most the second."""
_MAY_BE_INFINITE = re.compile(r"limit|max|min|clamp|clip|cap")

NANOCHAT = "ptq_eval_nanochat"
"""The `model_type` of nanochat's models here; transformers' own type "nanochat" is their first version alone."""
_OWN = {NANOCHAT: "ptq_eval.models.nanochat"}
"""Architectures of this package, and the modules that make them known to transformers."""

_AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
"""In order of preference; the latter two hold a language model beside a vision or audio tower."""


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's `config.json`.  Raises UnreadableCheckpointError."""
    path = folder / "config.json"
    try:
        config = load_json(path, _special)
    except FileNotFoundError as error:
        raise UnreadableCheckpointError("no config.json", got=str(folder)) from error
    except (OSError, ValueError) as error:
        remedy = "correct config.json, or fetch it again"
        raise UnreadableCheckpointError("config.json cannot be read", got=error, remedy=remedy) from error
    if not isinstance(config, dict):
        what, remedy = "config.json is not a JSON object", "fetch or save config.json again"
        raise UnreadableCheckpointError(what, got=str(folder), remedy=remedy)
    return config


def _special(entry: dict[str, Any]) -> Any:
    """Infinity and NaN as transformers writes them."""
    return float(entry["__float__"]) if entry.keys() == {"__float__"} else entry


def configuration(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration in `folder`, a new object at each call.

    Raises UnreadableCheckpointError, UnsafeCheckpointError where it needs remote code that is not trusted, and
    UnsupportedModelError where this version of transformers cannot read it.
    """
    content = read_config(folder)
    return of_content(content, folder if trust_remote_code and content.get("auto_map") else None)


def of_content(content: dict[str, Any], code: Path | None = None) -> PretrainedConfig:
    """The configuration of the content of a `config.json`; `code` is the folder of code to run for it.

    Raises as `configuration` does.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    try:
        if own := _OWN.get(str(content.get("model_type"))):
            importlib.import_module(own).register()
        with quiet_transformers():
            if code is not None:
                config = AutoConfig.from_pretrained(code, trust_remote_code=True, local_files_only=True)
            else:
                kind = CONFIG_MAPPING[content["model_type"]]
                content = _translated(content, kind)
                config = kind.from_dict(content)
    except Exception as error:  # each configuration has checks of its own
        raise refusal(content, error) from error
    _require_plausible(config, content)
    return config


def _require_plausible(config: PretrainedConfig, content: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError for a number that no model has: transformers would build 0 positions.

    The content is checked too: transformers drops a `rope_theta` beside `rope_parameters` without a word.
    """
    text = config.get_text_config()
    if not hasattr(text, "attribute_map"):
        what = "config.json has no mapping for its text model"
        raise UnsupportedModelError(what, got=repr(text)[:40], remedy="correct config.json")
    for name in _SIZES:
        own = text.attribute_map.get(name, name)
        value = vars(text).get(own)  # not what a class computes: XLNet's number of positions is -1, for no limit
        if isinstance(value, str) or (isinstance(value, (int, float)) and not (value >= 1 and value % 1 == 0)):
            raise _implausible("an invalid size", own, value, "a whole number from 1 on")
    own = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if isinstance(layers := vars(text).get(own), int) and layers > _MOST_LAYERS:
        raise _implausible("a number that no model has", own, layers, f"at most {_MOST_LAYERS}")
    own = next((name for name in getattr(config, "sub_configs", {}) if getattr(config, name, None) is text), None)
    written = content if own is None else content.get(own)
    for name, value in [*_numbers_of(vars(text)), *_numbers_of(written if isinstance(written, Mapping) else {})]:
        if math.isnan(value) or (math.isinf(value) and not _MAY_BE_INFINITE.search(name)):
            raise _implausible("a number that is not finite", name, value, "finite numbers")
        for pattern, low, high, allowed in _RANGES:
            if pattern.search(name) and not low < value <= high:
                raise _implausible("a number that no model has", name, value, allowed)


def _numbers_of(entries: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers in a configuration, those within its mappings too."""
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from _numbers_of({str(key): inner for key, inner in value.items()})
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, value


def _implausible(what: str, name: str, value: Any, allowed: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"config.json has {what}: {name}", got=repr(value), allowed=allowed, remedy="correct config.json"
    )


def auto_class(config: PretrainedConfig) -> Any:
    """The class of transformers that builds the model of a configuration."""
    import transformers

    if "AutoModelForCausalLM" not in (getattr(config, "auto_map", None) or {}):
        for name in _AUTO_CLASSES:
            found = getattr(transformers, name, None)
            if found is not None and type(config) in found._model_mapping:
                return found
    return transformers.AutoModelForCausalLM


def refusal(content: dict[str, Any], error: Exception) -> UnsafeCheckpointError | UnsupportedModelError:
    """The error for a configuration that cannot be built, naming the versions where they may be the reason."""
    import transformers

    kind = content.get("model_type") or "no model_type"
    kind = kind if isinstance(kind, str) else f"model_type {kind!r}"
    if content.get("auto_map"):
        return UnsafeCheckpointError(
            "the model needs code of its own", got=kind, remedy="--trust-remote-code, if you trust its author"
        )
    reason = _VALIDATOR.sub("", " ".join(str(error).split()))[:200] or type(error).__name__
    known = kind in transformers.CONFIG_MAPPING
    classes = [found for name in _AUTO_CLASSES if (found := getattr(transformers, name, None)) is not None]
    causal = known and any(transformers.CONFIG_MAPPING[kind] in found._model_mapping for found in classes)
    if known and not causal:
        return UnsupportedModelError(
            "transformers has no causal language model of this type",
            got=kind,
            allowed="a model that AutoModelForCausalLM loads",
            remedy="measure a model that predicts the next token, or exclude this one",
        )
    if isinstance(error, KeyError):
        reason = f"{reason} is unknown" if known else "not a model type that transformers knows"
    written, installed = content.get("transformers_version"), transformers.__version__
    differ = written and str(written) != installed
    versions = f" (config.json is of transformers {written}, installed is {installed})" if differ else ""
    return UnsupportedModelError(
        "config.json has values that transformers refuses"
        if causal
        else "not a causal language model that transformers can build",
        got=f"{kind}: {reason}{versions}",
        allowed="" if causal else "a model that AutoModelForCausalLM loads",
        remedy=f"pip install transformers=={written}" if differ else "correct config.json" if causal else "",
    )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing reports and progress bars of its own."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _translated(content: dict[str, Any], kind: type[PretrainedConfig]) -> dict[str, Any]:
    """The content in the types that this version of transformers checks for."""
    content = {key: value for key, value in without_empty_recipe(content).items() if key not in _OF_THE_MACHINE}
    for key, value in content.items():
        part = getattr(kind, "sub_configs", {}).get(key)
        if isinstance(value, dict) and part is not None:
            content[key] = _translated(value, part)
        elif isinstance(value, dict) and key.startswith("rope_"):
            content[key] = {name: _number(name, inner) for name, inner in value.items()}
        else:
            usual = getattr(kind, key, None)
            content[key] = (
                _number(key, value) if usual is None or isinstance(value, list) else _as_type_of(usual, value)
            )
    return content


def _number(key: str, value: Any) -> Any:
    """The number written as text in an entry without a default; any other value unchanged."""
    if isinstance(value, list):
        return [_number(key, each) for each in value]
    if not isinstance(value, str) or _WORDS.search(key):
        return value
    with contextlib.suppress(ValueError):
        return json.loads(value) if value.strip().lstrip("-").isdigit() else float(value)
    return value


def _as_type_of(usual: Any, value: Any) -> Any:
    """`value` as a number of the default's type, if the conversion is exact."""
    if isinstance(usual, bool) and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(usual, bool) or isinstance(value, bool) or not isinstance(usual, (int, float)):
        return value
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        number = float(value)
        return number if isinstance(usual, float) else int(number) if number == int(number) else value
    return value


def end_of_text(folder: Path) -> int | None:
    """The token id that `config.json` names as the end of a text, the first of several; None if there is none."""
    named = read_config(folder).get("eos_token_id")
    named = named[0] if isinstance(named, list) and named else named
    return named if isinstance(named, int) and not isinstance(named, bool) else None
