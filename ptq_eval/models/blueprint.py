"""A model without its weights: one for each configuration, which answers everything that needs no weights.

It is built on torch's meta device, where no memory is taken: names and shapes of parameters, their counts, which of
them may be quantized, how long a text may be.  Two questions need numbers, and are asked of a small model of the same
configuration with random weights: whether it is causal (another last token must not change earlier logits, whatever
the configuration calls itself), and which blocks text runs through.  For models too large for that, `causal` is None
and the question is asked of the weights themselves when they are loaded.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.errors import UnsupportedModelError
from ptq_eval.models.configuration import auto_class, of_content, quiet_transformers, read_config, refusal

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

PROBED_PARAMS = 64_000_000
"""Up to this many parameters a model is run with random weights."""

_TOKENS = 8
_RELATIVE = {"torch.float32": 1e-3, "torch.float64": 1e-3}
"""Earlier logits that change by more than this share of their spread do so for more than rounding; 0.02 for 16 bits."""

_LENGTHS = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "max_sequence_length")
_POSITION_TABLES = {"wpe", "embed_positions", "position_embeddings", "position_embedding", "positions_embed", "pos_emb"}


@dataclass(frozen=True)
class _Probe:
    """What a run on random weights showed: None where it does not say; the names of modules that ran."""

    causal: bool | None
    ran: frozenset[str]
    failure: str = ""


def usable_length(module: Any, outside: Collection[str] = ()) -> int | None:
    """The longest text that a model can read, or None if its configuration does not say.

    A table of positions may be larger than that: OPT's and Bart's keep two rows, RoBERTa's those up to its padding.
    """
    from torch import nn

    text = module.config.get_text_config()
    lengths = [getattr(text, name, None) for name in _LENGTHS]
    for name, part in module.named_modules():
        is_table = isinstance(part, nn.Embedding) and name.rpartition(".")[2] in _POSITION_TABLES
        if is_table and f"{name}.weight" not in outside:
            reserved = getattr(part, "offset", None)
            if not isinstance(reserved, int):
                reserved = 0 if part.padding_idx is None else part.padding_idx + 1
            lengths.append(part.num_embeddings - reserved)
    known = [n for n in lengths if isinstance(n, int) and not isinstance(n, bool) and n > 0]
    return min(known, default=None)


class Blueprint:
    """The architecture of one configuration.  `blueprint(folder)` makes it, once."""

    def __init__(
        self, config: PretrainedConfig, trust_remote_code: bool = False, content: dict[str, Any] | None = None
    ) -> None:
        self.config, self.trust, self.content = config, trust_remote_code, content or config.to_dict()

    @cached_property
    def module(self) -> Any:
        """The model on torch's meta device.  Raises UnsafeCheckpointError or UnsupportedModelError."""
        if getattr(self.config, "is_encoder_decoder", False):
            raise UnsupportedModelError(
                "an encoder-decoder model, not a causal language model",
                got=type(self.config).__name__,
                allowed="decoders, which read from left to right",
                remedy="exclude it",
            )
        import torch

        try:
            with torch.device("meta"):
                module = self._build()
                module.tie_weights()
        except Exception as error:  # each architecture has its own way of failing on a configuration
            raise refusal(self.content, error) from error
        return module

    @cached_property
    def causal(self) -> bool | None:
        """Whether logits depend on earlier tokens alone; None where only the weights can tell."""
        return self._probe.causal

    @cached_property
    def outside(self) -> frozenset[str]:
        """The parameters that text does not run through: towers for images or sound, blocks that only these use."""
        if self.config.get_text_config() is self.config:
            return frozenset()
        module, ran = self.module, self._probe.ran
        parts = (module.get_decoder(), module.get_output_embeddings(), module.get_input_embeddings())
        inside = {id(parameter) for part in parts if part is not None for parameter in part.parameters()}
        outside = set()
        for name, parameter in module.named_parameters(remove_duplicate=False):
            home = name.rpartition(".")[0]
            if any(self._unused(block) for block in _blocks(module, home)) or (
                id(parameter) not in inside and home not in ran
            ):
                outside.add(name)
        return frozenset(outside)

    def _unused(self, block: str) -> bool:
        """Whether text does not run through a block of the language model; a large model's class decides."""
        ran = self._probe.ran
        return block not in ran if ran else "CrossAttention" in type(self.module.get_submodule(block)).__name__

    @cached_property
    def other_class(self) -> str:
        """A class of transformers that config.json names and that belongs to another type of model, or ""."""
        import transformers

        own = {type(self.config), type(self.config.get_text_config())}
        for name in _classes(self.content) if type(self.module).__name__ not in _classes(self.content) else ():
            kind = getattr(getattr(transformers, name, None), "config_class", None)
            if kind is not None and own.isdisjoint({kind, *kind.mro(), *getattr(kind, "sub_configs", {}).values()}):
                return name
        return ""

    def require_causal(self) -> None:
        """Raise UnsupportedModelError if this is known not to be a causal language model."""
        module = self.module
        if named := next((name for name in _classes(self.content) if _OTHER_HEAD.search(name)), ""):
            raise UnsupportedModelError(
                "a head for another task, not a causal language model",
                got=f"architectures = {named} in config.json",
                allowed="models with a language-modelling head",
                remedy="measure the language model that it was trained from, or correct architectures",
            )
        if not self.trust and (sign := _bidirectional(self.content)):
            raise not_causal(sign)
        if self.causal is False:
            raise not_causal(type(module).__name__)
        if self._probe.failure and self.config.get_text_config() is not self.config:
            raise UnsupportedModelError(
                "the model does not run on text alone",
                got=f"{type(module).__name__}: {self._probe.failure}",
                remedy="save its language model by itself",
            )

    @cached_property
    def _probe(self) -> _Probe:
        import torch

        if sum(parameter.numel() for parameter in self.module.parameters()) > PROBED_PARAMS:
            return _Probe(None, frozenset())
        ran: set[str] = set()
        try:
            with torch.random.fork_rng(devices=[]):
                module = self._build(dtype=torch.float32).eval()
            _randomise(module)
            for name, part in module.named_modules():
                part.register_forward_hook(lambda *_, name=name: ran.add(name))
            return _Probe(is_causal(module), frozenset(ran))
        except Exception as error:  # a model that needs a GPU, or other inputs, says so when it is measured
            return _Probe(None, frozenset(), " ".join(str(error).split())[:200] or type(error).__name__)

    def loaded(self, tensors: Mapping[str, Tensor], **options: Any) -> Mapping[str, Any]:
        """What transformers says on loading a state dict, of tensors on torch's meta device, into the architecture.

        `options` go to `from_pretrained`, which makes a model of the class it is called on: this one makes a copy of
        `module` instead, so that nothing is built again and `module` stays as it is.
        """
        copied, kind = copy.deepcopy(self.module), type(self.module)
        ready: Any = type(kind.__name__, (kind,), {"__new__": lambda *_, **__: copied, "__module__": kind.__module__})
        options |= {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
        with quiet_transformers():
            return ready.from_pretrained(
                None, config=copy.deepcopy(copied.config), state_dict=dict(tensors), **options
            )[1]

    def _build(self, **options: Any) -> Any:
        with quiet_transformers():
            config = copy.deepcopy(self.config)
            return auto_class(config).from_config(config, trust_remote_code=self.trust, **options)


def blueprint(folder: str | Path, trust_remote_code: bool = False) -> Blueprint:
    """The blueprint of the `config.json` in a folder; the same object for the same content.

    Raises UnreadableCheckpointError, UnsafeCheckpointError and, also for a model that is not causal,
    UnsupportedModelError.
    """
    content = read_config(Path(folder))
    code = Path(folder) if trust_remote_code and content.get("auto_map") else None
    found = _cached(json.dumps(content, sort_keys=True), code)
    found.require_causal()
    return found


def not_causal(kind: str) -> UnsupportedModelError:
    """The error for a model whose logits depend on later tokens."""
    return UnsupportedModelError(
        "not a causal language model: another later token changes earlier logits",
        got=kind,
        allowed="decoders, which read from left to right",
        remedy="exclude it",
    )


def is_causal(module: Any) -> bool | None:
    """Whether the logits of earlier tokens stay when the last token changes; None where nothing changes at all."""
    import torch

    ids = _plain_ids(module.config, int(module.get_input_embeddings().weight.shape[0]))
    if len(ids) <= _TOKENS:
        return None
    device = module.get_input_embeddings().weight.device
    before = torch.tensor([ids[:_TOKENS]], device=device)
    after = before.clone()
    after[0, -1] = ids[_TOKENS]
    with torch.inference_mode():
        first, second = (module(input_ids=each, use_cache=False).logits.float() for each in (before, after))
    change: Tensor = (first - second).abs()[0]
    allowed = _RELATIVE.get(str(module.dtype), 0.02) * first.std()
    if not bool(torch.isfinite(change).all()) or not bool(change[-1].max() > 0):
        return None
    return bool(change[:-1].max() <= allowed)


_BIDIRECTIONAL = re.compile(r"Bi(directional)?(?=[A-Z])|Bidirectional|Encoder(?!Decoder)|MNTP|MaskedLM")
_OTHER_HEAD = re.compile(
    r"(For([A-Z]\w*)?(Classification|Regression|Reward\w*|QuestionAnswering|MultipleChoice|Embedding|Scoring)|RewardModel)$"
)
"""Names of classes whose head gives a class, a score or a vector, and not logits of tokens."""
_SWITCHES = {"is_causal": False, "bidirectional": True, "is_bidirectional": True, "use_bidirectional_attention": True}


def _bidirectional(content: Mapping[str, Any]) -> str:
    """The sign that these weights belong to bidirectional code of their own; "" if there is none.

    transformers knows neither such a class nor its switch, and would build the causal model of the same type.
    """
    import transformers

    named = next((c for c in _classes(content) if _BIDIRECTIONAL.search(c) and not hasattr(transformers, c)), "")
    switch = next((key for key, value in _SWITCHES.items() if content.get(key) is value), "")
    return named or (f"{switch} = {str(content[switch]).lower()} in config.json" if switch else "")


def _classes(content: Mapping[str, Any]) -> list[str]:
    """The classes that config.json names."""
    classes = content.get("architectures") or []
    return [str(name) for name in (classes if isinstance(classes, list) else [classes])]


@lru_cache(maxsize=64)
def _cached(content: str, code: Path | None) -> Blueprint:
    entries = json.loads(content)
    return Blueprint(of_content(entries, code), code is not None, entries)


def _blocks(module: Any, name: str) -> list[str]:
    """The names of the blocks that contain the module `name`: members of lists, except experts, which take turns."""
    from torch import nn

    parts = name.split(".")
    ends = [
        end for end in range(1, len(parts)) if isinstance(module.get_submodule(".".join(parts[:end])), nn.ModuleList)
    ]
    return [".".join(parts[: end + 1]) for end in ends if "expert" not in parts[end - 1]]


def _plain_ids(config: Any, vocab_size: int) -> list[int]:
    """A few token ids that mean nothing to the architecture: no padding, no place for an image."""
    text = config.get_text_config()
    fields = {**config.to_dict(), **text.to_dict()}
    special = {value for key, value in fields.items() if key.endswith(("_id", "_index")) and isinstance(value, int)}
    return [i for i in range(min(vocab_size, 512)) if i not in special][-4 * _TOKENS :]


def _randomise(module: Any) -> None:
    """Draw matrices large enough for every part of the model to affect the logits, also those initialised to zero."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() > 1 and parameter.is_floating_point():
            with torch.no_grad():
                parameter.normal_(0.0, float(parameter.shape[-1]) ** -0.5, generator=generator)
