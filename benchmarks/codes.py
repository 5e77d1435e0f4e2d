"""Are the codes right?  Every quantizer against the slow implementations in `tests/reference/`.

They are in numpy and float64, written from the papers with other algebra.  The layers are random ones, and every layer
of the last checkpoint of each run with the inputs that reach it.  GPTQ compares rounded sums, so a code halfway between
two may differ; the limit applies to the share of equal codes under each scheme, over all layers of one kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness import SEED, Claim, Outcome, Setup
from benchmarks.subjects import bare_model, demo_options, last_of_each_run
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.trials import make_plan
from quantizers import LayerStats, Scheme, get_quantizer
from quantizers.testing import sample_layer
from tests.reference.awq import awq as reference_awq
from tests.reference.delta import groups_of, inputs_of, linear_names
from tests.reference.gptq import gptq as reference_gptq
from tests.reference.gptq import hessian_of
from tests.reference.rtn import rtn as reference_rtn
from tests.support.models import matrix

LIMIT = 0.999
BITS, SIZES, SYMMETRIC, ACT_ORDER = (2, 3, 4, 8), (16, 32, None), (False, True), (False, True)


@dataclass
class Layers:
    """Weights [out, in] that share inputs [tokens, in]."""

    source: str
    weights: list[Tensor]
    inputs: Tensor


@dataclass(frozen=True)
class Agreement:
    """How many of a layer's codes are equal under one scheme."""

    source: str
    scheme: str
    equal: int
    entries: int


def measure(setup: Setup) -> Outcome:
    """Agreement over bits × groups × symmetric × act_order, for trained and for random layers."""
    rtn: list[Agreement] = []
    gptq: list[Agreement] = []
    awq: list[float] = []
    for layers in _all_layers(setup):
        stats = LayerStats.from_inputs(layers.inputs)
        exact = hessian_of(layers.inputs.numpy())
        weight = torch.cat(layers.weights)
        for bits, size, symmetric in itertools.product(BITS, SIZES, SYMMETRIC):
            scheme = Scheme(bits, size, symmetric)
            name = f"{bits} bits, group {size}, {'symmetric' if symmetric else 'asymmetric'}"
            codes = get_quantizer("rtn").quantize(weight, scheme).codes.numpy()
            rtn.append(_compared(layers.source, name, codes, reference_rtn(weight.numpy(), bits, size, symmetric)[0]))
            for act_order in ACT_ORDER:
                codes = get_quantizer("gptq", act_order=act_order).quantize(weight, scheme, stats).codes.numpy()
                theirs, _ = reference_gptq(weight.numpy(), exact, bits, size, symmetric, act_order=act_order)
                gptq.append(_compared(layers.source, name + ", act_order" * act_order, codes, theirs))
            awq.append(_same_exponent(layers, stats, scheme))
    outcome = Outcome([_claim("rtn: codes equal to the reference's", rtn, 1.0)])
    for source in dict.fromkeys(a.source for a in gptq):
        found = [a for a in gptq if a.source == source]
        outcome.claims.append(_claim(f"gptq: codes equal to the reference's, {source}", found, LIMIT))
        outcome.details[f"gptq, {source}"] = _details(found)
    what = f"awq: exponent that of a search on stored activations, share of {len(awq)} searches"
    outcome.claims.append(Claim(what, sum(awq) / len(awq), min(awq), max(awq), 1.0, "at least"))
    return outcome


def _all_layers(setup: Setup) -> Iterator[Layers]:
    for seed in range(SEED, SEED + (1 if setup.quick else 3)):
        weight, inputs = sample_layer(64, 192, tokens=1024, seed=seed)
        yield Layers("random layers", list(weight.split([32, 32])), inputs)
    for checkpoint in last_of_each_run(setup.trajectory)[: 1 if setup.quick else None]:
        work = make_plan([checkpoint], RunConfig(**demo_options())).workloads[0]
        assert work.calibration is not None
        model, windows = bare_model(work.folder), torch.tensor(work.calibration.ids, dtype=torch.long)
        names = linear_names(model)
        inputs = inputs_of(model, names, windows)
        for group in groups_of(model, names, windows)[: 2 if setup.quick else None]:
            weights = [matrix(model.get_submodule(name)).detach().contiguous() for name in group]
            yield Layers("layers of the embedded trajectory", weights, inputs[group[0]])


def _same_exponent(layers: Layers, stats: LayerStats, scheme: Scheme) -> float:
    ours = get_quantizer("awq").quantize_group(layers.weights, scheme, stats)
    ratio, _, _ = reference_awq(
        [weight.numpy() for weight in layers.weights],
        layers.inputs.numpy(),
        scheme.bits,
        scheme.group_size,
        scheme.symmetric,
        stats.mean_abs.numpy(),
    )
    return float(all(result.report["ratio"] == ratio for result in ours))


def _compared(source: str, scheme: str, ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> Agreement:
    return Agreement(source, scheme, int((ours == theirs).sum()), ours.size)


def _pooled(found: list[Agreement]) -> dict[str, float]:
    """Scheme: share of equal codes over all layers."""
    schemes = dict.fromkeys(a.scheme for a in found)
    counts = {name: [(a.equal, a.entries) for a in found if a.scheme == name] for name in schemes}
    return {name: sum(e for e, _ in pairs) / sum(n for _, n in pairs) for name, pairs in counts.items()}


def _claim(what: str, found: list[Agreement], limit: float) -> Claim:
    shares = _pooled(found).values()
    return Claim(
        f"{what}, smallest share of {len(shares)} schemes", min(shares), min(shares), max(shares), limit, "at least"
    )


def _details(found: list[Agreement]) -> dict[str, object]:
    """The shares by scheme, and the single layers below the limit: in one of 1,024 entries two codes are enough."""
    return {
        "entries": sum(a.entries for a in found),
        "unequal": sum(a.entries - a.equal for a in found),
        "by_scheme": _pooled(found),
        "layers_below_limit": [
            {"scheme": a.scheme, "entries": a.entries, "unequal": a.entries - a.equal}
            for a in found
            if a.equal < LIMIT * a.entries
        ],
        "layers_times_schemes": len(found),
    }
