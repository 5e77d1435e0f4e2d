"""The conformance run of a backend: a minute on a tiny model that is built here, and what it shows.

Every method quantizes a model with random weights, columns of unequal size and a few strong channels, at 4 bits where
it can.  It passes if its weights come back finite, in the right shapes and changed; if the error of the logits is
plausible beside rounding to nearest under the same scheme; and if the quantized model multiplies by the same
weights after a forward pass, and after saving and loading where the package does that.  What a package does to the
model that it works on, such as scaling live weights, shows in the error.  The result is kept, and a method that failed
is not trusted from then on.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptq_eval.backends.environments import Distrust, backend_of, remember, status_of
from ptq_eval.backends.process import Limits
from ptq_eval.backends.workers import Workers
from ptq_eval.errors import BackendError
from ptq_eval.measure.doubts import SAME_WEIGHTS
from ptq_eval.measure.foreign.handover import quantize
from ptq_eval.measure.foreign.quantizer import Foreign
from ptq_eval.measure.variants import Variant
from ptq_eval.models.configuration import quiet_transformers
from ptq_eval.models.language_model import LanguageModel
from quantizers import Scheme, get_quantizer

WIDTH, INNER, VOCABULARY, WINDOWS, LENGTH = 256, 512, 256, 32, 64
GROUP = 64
SPREAD = 0.5
"""Standard deviation of the logarithm of the sizes of columns: methods that scale columns have something to find."""

PLAUSIBLE = (0.02, 3.0)
"""Squared error of the logits, as a multiple of rounding to nearest."""


class Finding(StrEnum):
    """What is wrong with a method."""

    FAILED = "failed"
    PARTIAL = "layers left unchanged"
    LARGE_ERROR = "error too large"
    SMALL_ERROR = "error too small"
    MOVES = "weights change in a forward pass"
    RELOADS_DIFFERENTLY = "other weights after saving and loading"


@dataclass(frozen=True)
class MethodCheck:
    """The result for one method: `ratio` is the squared error of the logits as a multiple of rounding to nearest."""

    method: str
    scheme: Scheme
    ratio: float | None = None
    seconds: float | None = None
    finding: Finding | None = None
    message: str = ""


def check(name: str, limits: Limits | None = None) -> list[MethodCheck]:
    """Try every method of a backend and remember what is wrong.

    Raises UnknownPluginError, or BackendError where the backend cannot be used at all.
    """
    backend = backend_of(name)
    status = status_of(backend)
    if not status.usable:
        raise BackendError(f"the backend {name} cannot be used", got=status.why_not, remedy=backend.remarks)
    with tempfile.TemporaryDirectory(prefix="ptq-eval-", ignore_cleanup_errors=True) as folder:
        ids = build(Path(folder))
        model = LanguageModel.load(folder, name="the model of the conformance run")
        methods = [Foreign(backend, method) for method in backend.methods]
        variants = [Variant(method, scheme_for(method)) for method in methods]
        with Workers(limits or Limits(600.0)) as workers:
            quantize(model, Path(folder), variants, ids[: WINDOWS // 2], workers, ids[:1], reload=True, trusting=True)
        found = [_judged(model, method, variant, ids[WINDOWS // 2 :]) for method, variant in zip(methods, variants)]
    wrong = {one.method: Distrust(one.finding.value, one.message) for one in found if one.finding is not None}
    remember(backend, status.version, wrong)
    return found


def scheme_for(method: Foreign) -> Scheme:
    """The scheme that a method is tried with: its own, else 4 bits and groups of 64 where it can."""
    own = method.backend.methods[method.method]
    if own.scheme:
        return Scheme.of(own.scheme, own.block(WIDTH))
    group = GROUP if not own.groups or GROUP in own.groups else own.groups[0]
    return Scheme(4 if 4 in own.bits else own.bits[0], group, own.symmetric[0])


def _judged(model: LanguageModel, method: Foreign, variant: Variant, ids: Tensor) -> MethodCheck:
    facts: dict[str, Any] = variant.facts.get("backend", {})
    seconds = facts.get("seconds")
    if variant.failure:
        return MethodCheck(method.method, variant.scheme, None, seconds, Finding.FAILED, variant.failure)
    rtn = get_quantizer("rtn")
    rounded = {layer: rtn.quantize(model.weight(layer), variant.scheme).dequantize() for layer in model.linears()}
    full = model.logits(ids)
    error, usual = (_squared(model, full, ids, weights) for weights in (variant.carried, rounded))
    ratio = error / usual
    finding, message = None, ""
    low, high = PLAUSIBLE
    if variant.skipped:
        finding, message = Finding.PARTIAL, ", ".join(variant.skipped)
    elif ratio > high:
        finding, message = Finding.LARGE_ERROR, f"{ratio:.3g} times the error of rounding to nearest"
    elif ratio < low:
        finding, message = Finding.SMALL_ERROR, f"{ratio:.3g} times the error of rounding to nearest"
    elif (facts.get("after_forward") or 0.0) > SAME_WEIGHTS:
        finding, message = Finding.MOVES, f"by {facts['after_forward']:.2g} of their norm"
    elif (facts.get("after_reload") or 0.0) > SAME_WEIGHTS:
        finding, message = Finding.RELOADS_DIFFERENTLY, f"by {facts['after_reload']:.2g} of their norm"
    return MethodCheck(method.method, variant.scheme, ratio, seconds, finding, message)


def _squared(model: LanguageModel, full: Tensor, ids: Tensor, weights: Any) -> float:
    """Mean squared distance of the logits with other weights from the `full` ones."""
    with model.carrying(model.parameters_of(weights)):
        return float((model.logits(ids) - full).square().mean())


def build(folder: Path) -> Tensor:
    """Write the tiny model and its tokenizer; windows of token ids [windows, time] to try it with."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=2 * LENGTH,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                columns = torch.exp(SPREAD * torch.randn(parameter.shape[1], generator=generator))
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * columns)
                parameter *= parameter.square().sum(1).mean().rsqrt()
        strong = torch.randperm(WIDTH, generator=generator)[: WIDTH // 32]
        model.model.embed_tokens.weight[:, strong] *= 8
    with quiet_transformers():
        model.save_pretrained(folder)
    vocabulary = {f"t{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="t2"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="t0", eos_token="t1", pad_token="t1", unk_token="t2"
    ).save_pretrained(folder)
    return torch.randint(3, VOCABULARY, (WINDOWS, LENGTH), generator=generator)
