"""What the tensors say that no parameter of the model takes.

transformers drops such tensors without a word.  That is right for tensors that are no part of the model (a reward head,
another tower) and wrong for what belongs to its matrices: scales of quantized weights, adapters that were not merged, a
bias.  The place decides more than the name.  A plain matrix has a weight and perhaps a bias, and a block has the parts
that the configuration says, so whatever else is stored there, by any name, changes what they compute, and the model
without it is not the one that was trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptq_eval.checkpoints.account import Account, Layout

if TYPE_CHECKING:
    from ptq_eval.checkpoints.weights import WeightReport

_SHOWN = 3
"""How many names a message spells out."""

_WRAPPERS = re.compile(
    r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
"""Names that DataParallel, torch.compile, FSDP, activation checkpointing and Lightning's Fabric insert."""

_ADAPTERS = re.compile(
    r"(^|[._])(lora|dora|base_layer|modules_to_save|original_module|ia3|hada_w\d|lokr_w\d|oft_[rs]|boft|vera_lambda|adapters?"
    r"|prompt_encoder|prefix_encoder)([._]|$)",
    re.IGNORECASE,
)
_REPARAMETRISED = re.compile(r"\.(weight_[gvu]|weight_orig|parametrizations\.weight\.original\d?)$")
"""How weight normalisation, spectral normalisation and pruning keep a weight."""

_QUANTIZER = re.compile(
    r"quant|observer|activation_post_process|(^|[._])(qscales?|zeros?|zero_?points?|zp|amax|absmax|absmean"
    r"|amin|min_val|max_val|step_size|codebooks?|scb|g_idx|qweight|qidxs|centroids|lut)([._]|\d|$)",
    re.IGNORECASE,
)
"""Words in the names of what quantizers keep."""
_SCALE = re.compile(r"(^|[._])(w?scales?|scaling)([._]|\d|$)", re.IGNORECASE)
"""A quantizer's scale where a matrix is meant; elsewhere a factor of the model's own, as of NormFormer's attention."""

_STATE = re.compile(r"(model\.)?[^.]*(quantizer|fake_quant|observer)[^.]*\.")
"""A quantizer of the whole model."""

_PACKED = re.compile(
    r"(^|[._])(qweight|qzeros|qscales|g_idx|codebooks|absmax|nested_absmax|quant_map|nested_quant_map|SCB"
    r"|weight_format|weight_packed|weight_shape|weight_zero_point|weight_scale(_inv|_2)?|weight_global_scale"
    r"|(input|output|act|k|v|q)_scale|input_global_scale|\w*scale_inv)$|quant_state\."
)
"""Names that quantized weights alone have, wherever they are."""

_TOWERS = re.compile(
    r"(^|[._])(mm|mtp|vision|visual|image|img|patch|video|audio|speech|multi_?modal|nextn|medusa|eagle|draft)",
    re.IGNORECASE,
)
"""What text does not run through, or what predicts further tokens."""

_EMBEDDING = re.compile(r"(^|[._])(\w*embed(s|ding|dings|_tokens)?|\w*emb|[wv][tp]e|ve)\d*([._]|$)")
"""Further embeddings of tokens or positions, as of nanochat's values."""

_NORM = re.compile(r"(^|_)(\w*norm\d?|ln|ln_\w+)$", re.IGNORECASE)

_HEADS = re.compile(r"(^|\.)(score|classifier|qa_outputs|classification_head|reward_head|regression_head)\.")
"""Heads of classifiers and reward models."""


@dataclass(frozen=True)
class Finding:
    """Why a checkpoint cannot be measured: a problem's code, what it says, and how to fix it ("": as its code says)."""

    code: str
    message: str
    remedy: str = ""
    fatal: bool = True


def some(names: Iterable[str]) -> str:
    """The first few of the names, and how many more."""
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def surplus_finding(module: Any, account: Account, report: WeightReport) -> Finding | None:
    """What is wrong with a checkpoint by its surplus tensors; None where they lie beside the model, or there are none.

    `report` is of all tensors in its files.
    """
    if not account.surplus and not account.missing:
        return None
    body = f"{module.base_model_prefix}."
    homes = {_home(name.removeprefix(body)) for name in weights_of(module)} | block_lists(module)
    inside = [name for name in account.surplus if within(name.removeprefix(body), homes)]
    direct = [name for name in account.surplus if _of_body(name, body) or _of_text(name, module, report)]
    adapters = [name for name in account.surplus if _ADAPTERS.search(name)]
    if adapters:
        return Finding(
            "not_a_model",
            f"an adapter that is not merged into the weights: {some(adapters)}",
            "model.merge_and_unload().save_pretrained(NEW), of the PEFT model",
        )
    return (
        _wrapped(account, body)
        or _quantized(module, account, inside, report.tensors)
        or _headless(module, account)
        or _of_layers([name for name in {*inside, *direct} if name not in report.zero and not _counts(name, report)])
    )


def _counts(name: str, report: WeightReport) -> bool:
    """Whether a tensor is a single whole number, such as a counter of batches: no parameter."""
    kind, shape = report.tensors.get(name, ("", ()))
    return math.prod(shape) == 1 and kind.upper().startswith(("I", "U", "TORCH.INT", "TORCH.UINT"))


def _of_body(name: str, body: str) -> bool:
    """Whether a tensor is one of the model itself, beside its blocks: `model.pre_norm.weight`, or any norm."""
    direct = name.removeprefix(body).count(".") <= 1 and not _TOWERS.search(name)
    return direct and (name.startswith(body) or _NORM.search(_home(name)) is not None)


def _of_text(name: str, module: Any, report: WeightReport) -> bool:
    """Whether text runs through a tensor outside the model's body: an embedding, a factor per layer or token.

    A second copy of a parameter, as of averaged weights, does not.
    """
    shape = report.tensors.get(name, ("", ()))[1]  # transformers renames some
    if "." not in name:
        text = module.config.get_text_config()
        of_layers = len(shape) == 1 and shape[0] == getattr(text, "num_hidden_layers", None)
        return of_layers or shape[-1:] == (getattr(text, "vocab_size", None),)
    known = {end for parameter, _ in module.named_parameters() for end in (parameter, *_ends(parameter))}
    copied = any(end in known for end in _ends(name))
    return len(shape) == 2 and _EMBEDDING.search(name) is not None and not _TOWERS.search(name) and not copied


def _ends(name: str) -> list[str]:
    """A name, and what is left of it without one or more of its first parts but not without all but one."""
    parts = name.split(".")
    return [name, *(".".join(parts[start:]) for start in range(1, len(parts) - 1))]


def _wrapped(account: Account, body: str) -> Finding | None:
    """Names with something before or within them that a wrapper of the model has put there."""
    missing = {*account.missing, *(name.removeprefix(body) for name in account.missing)}
    found: dict[str, str] = {}
    for name in account.surplus:
        plain = _WRAPPERS.sub("", name)
        ends = [plain, *(plain[at.end() :] for at in re.finditer(r"\.", plain))]
        if end := next((end for end in ends if end in missing), ""):
            found[name] = end
    if not found or 2 * len(found) < len(account.missing):
        return None
    example = min(found)
    return Finding(
        "not_loaded",
        f"the tensors have the names of a wrapped model: {example} for {found[example]}",
        f"rename them in each file: save_file({{k.replace({_inserted(example, found[example])!r}, ''): t for k, t in "
        "load_file(FILE).items()}, FILE, metadata={'format': 'pt'}), with safetensors.torch",
    )


def _inserted(name: str, plain: str) -> str:
    """What was put before the plain name, or else the first wrapper's name within it."""
    within = _WRAPPERS.search(name)
    return name.removesuffix(plain) if name.endswith(plain) or within is None else within[0]


def _of_matrix(name: str, matrices: Collection[str]) -> bool:
    """Whether a tensor is in the module of a matrix, or beside it by a name that begins with the matrix's."""
    beside = any(end[: at.start()] in matrices for end in _ends(name) for at in re.finditer("_", end))
    return beside or any(within(end, matrices) for end in _ends(_home(name)))


def _quantized(module: Any, account: Account, inside: Collection[str], tensors: Layout) -> Finding | None:
    """Packed weights in place of matrices, and scales or other state of a quantizer in or beside them."""
    body = f"{module.base_model_prefix}."
    missing = {_home(name.removeprefix(body)) for name in account.missing if name.endswith("weight")}
    lost = missing & {_home(name.removeprefix(body)) for name, p in weights_of(module).items() if p.dim() > 1}
    parts = {name.removeprefix(body) for name, _ in module.named_modules()} - {"", module.base_model_prefix}
    stored = {_home(name.removeprefix(body)): shape for name, (_, shape) in tensors.items() if name.endswith("weight")}
    parts = (parts | set(stored)) - (missing - lost)
    matrices = {name for name, shape in stored.items() if len(shape) > 1} | lost
    found = []
    for name in account.surplus:
        bare = name.removeprefix(body)
        packed = within(bare, lost) and not _REPARAMETRISED.search(name) and not bare.endswith("bias")
        placed = name in inside or any(within(end, parts) for end in _ends(_home(bare)))
        state = placed and (_QUANTIZER.search(name) or (_SCALE.search(name) and _of_matrix(bare, matrices)))
        alone = _STATE.match(name)
        if _PACKED.search(name) or packed or state or alone:
            found.append(name)
    return Finding("already_quantized", some(found)) if found else None


def block_lists(module: Any) -> set[str]:
    """The lists of a model's blocks; empty for a model that has blocks besides which predict further tokens."""
    from torch import nn

    body = f"{module.base_model_prefix}."
    if getattr(module.config.get_text_config(), "num_nextn_predict_layers", 0):
        return set()
    return {name.removeprefix(body) for name, part in module.named_modules() if isinstance(part, nn.ModuleList)}


def _headless(module: Any, account: Account) -> Finding | None:
    """Weights without a head over tokens: a classifier, or the body alone."""
    heads = [name for name in account.surplus if _HEADS.search(name)]
    if heads:
        message = f"a classifier or reward model ({some(heads)}), not a language model"
        return Finding("not_a_model", message, "measure the language model that it was trained from")
    head = module.get_output_embeddings()
    of_head = {name for name, parameter in weights_of(module).items() if head is not None and parameter is head.weight}
    if account.missing and set(account.missing) <= of_head:
        message = f"the weights have no output head ({some(account.missing)}): a model's body alone"
        return Finding("not_loaded", message, "save the model with AutoModelForCausalLM, which keeps its head")
    return None


def _of_layers(names: Collection[str]) -> Finding | None:
    """A bias of a layer that has none by the configuration; masks and other factors."""
    if not names:
        return None
    return Finding(
        "not_loaded",
        f"tensors of the model's layers that its configuration does not know: {some(names)}",
        "correct config.json (number of layers, biases, norms); multiply masks and other factors into the weights; "
        "remove buffers, which are no parameters, from the file",
    )


def weights_of(module: Any) -> dict[str, Any]:
    """The weights of a model's layers by name, shared ones too."""
    return {n: p for n, p in module.named_parameters(remove_duplicate=False) if n.endswith(".weight")}


def _home(name: str) -> str:
    return name.rpartition(".")[0]


def within(name: str, homes: Collection[str]) -> str:
    """The module among `homes` that a tensor is in, at any depth; "" if it is in none."""
    while name:
        if name in homes:
            return name
        name = _home(name)
    return ""
