"""Public suites of intermediate checkpoints.

`SUITES` has one row per rule, nothing but data; `suite_rules.Suite` explains the columns.
"""

from __future__ import annotations

import re

from ptq_eval.checkpoints.suite_rules import Check, Status, Suite, constant, ramp

_OLMO = r"(stage1-)?step\d+-tokens\d+B|stage2-ingredient\d+-step\d+-tokens\d+B"
_STEP = r"step\d+"
_DATADECIDE = {
    "4M": (32, 5725, 0.4), "6M": (32, 9182, 0.6), "8M": (32, 13_039, 0.9), "10M": (32, 15_117, 1.0),
    "14M": (32, 21_953, 1.4), "16M": (32, 24_432, 1.6), "20M": (64, 14_584, 1.9), "60M": (96, 29_042, 5.7),
    "90M": (160, 29_901, 9.8), "150M": (192, 38_157, 15.0), "300M": (320, 45_787, 30.0),
    "530M": (448, 57_786, 53.0), "750M": (576, 63_589, 75.0), "1B": (704, 69_369, 100.0),
}  # fmt: skip
"""By size: sequences of 2,048 tokens per step, the last step, and the published billions of tokens.

Batches and totals come from the paper.  The last steps were not found in a published source (530M's is from an
independent repetition); each agrees with batch and total within the total's rounding.
"""


_PYTHIA_SIZES = ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
_PYTHIA = (
    *(f"EleutherAI/pythia-{size}" for size in ("14m", "31m", *_PYTHIA_SIZES)),
    *(f"EleutherAI/pythia-{size}-deduped" for size in _PYTHIA_SIZES),
)
_POLYPYTHIA = (
    *(f"EleutherAI/pythia-{size}-seed{n}" for size in ("14m", "31m", "70m", "160m", "410m") for n in range(1, 10)),
    *(f"EleutherAI/pythia-160m-{kind}-seed{n}" for kind in ("data", "weight") for n in range(1, 4)),
)
_PYTHIA_STEPS = ("step1", "step143000")
_PYTHIA_RATE = "1 % of warm-up, cosine to a tenth (training configurations)"


def _pythia(batch: str, per_step: int) -> Suite:
    """The repositories with a smaller batch carry it in their name, in units of 2^20 tokens."""
    return Suite(
        f"Pythia, {batch}MtokBS",
        Status.VERIFIED,
        rf"pythia-\d+(\.\d+)?[mb](-deduped)?-{re.escape(batch)}mtokbs",
        _STEP,
        Check(f"EleutherAI/pythia-160m-{batch}MtokBS", "step1", float(batch) * 2**20),
        "batch in the repository's name",
        constant(per_step),
    )


def _olmo2(name: str, models: str, per_step: int, last: int, check: Check) -> Suite:
    """OLMo 2: every stage has one batch, and stage 2 starts after the last step of stage 1."""
    stages = {"stage2": (last * per_step, constant(per_step))}
    return Suite(
        name, Status.VERIFIED, models, _OLMO, check, "training configuration; last label", constant(per_step), stages,
        span=("", check.label),
    )  # fmt: skip


# fmt: off
SUITES: tuple[Suite, ...] = (
    Suite(
        "Pythia", Status.VERIFIED, r"pythia-\d+(\.\d+)?[mb](-deduped)?(-v0)?", _STEP,
        Check("EleutherAI/pythia-70m", "step143000", 299_892_736_000, 0.0),
        "2304.01373: 1,024 sequences of 2,048; early -v0 revisions were renamed to keep this rule",
        constant(1024 * 2048), repositories=_PYTHIA, span=_PYTHIA_STEPS, schedule=_PYTHIA_RATE,
    ),
    Suite(
        "PolyPythia", Status.VERIFIED, r"pythia-\d+(\.\d+)?[mb](-deduped)?(-(data|weight))?-seed\d+", _STEP,
        Check("EleutherAI/pythia-160m-data-seed1", "step143000", 299_892_736_000, 0.0), "2503.09543: as Pythia",
        constant(1024 * 2048), seeds=r"seed\d+$", repositories=_POLYPYTHIA, span=_PYTHIA_STEPS,
    ),
    *(_pythia(batch, round(float(batch) * 2**20)) for batch in ("0.25", "0.5", "1", "4")),
    Suite(
        "OLMo 1B", Status.VERIFIED, r"olmo-1b(-hf)?", r"step\d+-tokens\d+B",
        Check("allenai/OLMo-1B-hf", "step1000-tokens4B", 4_194_304_000, 0.0),
        "training configuration: 2,048 sequences of 2,048", constant(2048 * 2048),
        repositories=("allenai/OLMo-1B-hf", "allenai/OLMo-1B"), span=("step1000-tokens4B", ""),
    ),
    Suite(
        "OLMo 7B, OLMo 0424 and 0724, OLMoE", Status.LABEL,
        r"olmo-7b(-hf|-twin-2t)*|olmo-[17]b-0[47]24(-hf)?|olmoe-.*", r"step\d+-tokens\d+B",
        Check("allenai/OLMo-7B", "step555000-tokens2455B", 2455e9, 0.0), "label",
        repositories=(
            "allenai/OLMo-7B", "allenai/OLMo-7B-Twin-2T", "allenai/OLMo-7B-0424", "allenai/OLMo-7B-0724-hf",
            "allenai/OLMo-1B-0724-hf",
        ),
    ),
    _olmo2(
        "OLMo 2 1B", r"olmo-2-0425-1b", 512 * 4096, 1_907_359,
        Check("allenai/OLMo-2-0425-1B", "stage1-step1907359-tokens4001B", 4001e9),
    ),
    _olmo2(
        "OLMo 2 7B", r"olmo-2-1124-7b", 1024 * 4096, 928_646,
        Check("allenai/OLMo-2-1124-7B", "stage1-step928646-tokens3896B", 3896e9),
    ),
    _olmo2(
        "OLMo 2 13B", r"olmo-2-1124-13b", 2048 * 4096, 596_057,
        Check("allenai/OLMo-2-1124-13B", "stage1-step596057-tokens5001B", 5001e9),
    ),
    Suite(
        "OLMo 2 32B", Status.LABEL, r"olmo-2-0325-32b", _OLMO,
        Check("allenai/OLMo-2-0325-32B", "stage1-step721901-tokens6056B", 6056e9, 0.0), "label",
        span=("", "stage1-step721901-tokens6056B"),
    ),
    Suite(
        "OLMo 3 7B", Status.DERIVED, r"olmo-3-\d+-7b", r"stage[123]-step\d+",
        Check("allenai/Olmo-3-1025-7B", "stage1-step1413814", 5.93e12),
        "card: 5.93T, 100B and 50B tokens in stages that end at steps 1,413,814, 47,684 and 11,921",
        constant(1024 * 4096),
        {
            "stage2": (1_413_814 * 4_194_304, constant(2_097_152)),
            "stage3": (1_413_814 * 4_194_304 + 47_684 * 2_097_152, constant(4_194_304)),
        },
        span=("stage1-step1000", "stage3-step11921"),
    ),
    Suite(
        "OLMo 3 32B", Status.DERIVED, r"olmo-3-\d+-32b", r"stage1-step\d+",
        Check("allenai/Olmo-3-1125-32B", "stage1-step656000", 5.50e12),
        "card: 5.50T tokens in stage 1, which ends at step 656,000", constant(1024 * 8192),
        span=("", "stage1-step656000"),
    ),
    Suite(
        "Apertus", Status.DERIVED, r"apertus-\d+b(-2509)?", r"step\d+-tokens\d+[BT]",
        Check("swiss-ai/Apertus-8B-2509", "step2627139-tokens15T", 15e12),
        "configuration: 1,024 sequences of 4,096, doubled near step 1,678,000; labels count 4.2M per step",
        ((0, 1024 * 4096), (1_678_000, 2048 * 4096)), label_error=0.002,
        repositories=("swiss-ai/Apertus-8B-2509", "swiss-ai/Apertus-70B-2509"),
        span=("step50000-tokens210B", "step2627139-tokens15T"),
    ),
    *(
        Suite(
            f"DataDecide {size}", Status.DERIVED, rf"datadecide-.*-{size}", r"step\d+-seed-.*",
            Check(f"allenai/DataDecide-c4-{size}", f"step{last}-seed-default", billions * 1e9, 0.05 / billions + 0.001),
            f"2504.11393: {batch} sequences of 2,048; the last step is unverified", constant(batch * 2048),
            seeds=r"seed-[\w-]+$", span=("", f"step{last}-seed-default"),
            repositories=tuple(f"allenai/DataDecide-{corpus}-{size}" for corpus in ("c4", "dolma1_7", "dclm-baseline")),
        )
        for size, (batch, last, billions) in _DATADECIDE.items()
    ),
    *(
        Suite(
            f"SmolLM2 {size}", status, rf"smollm2-{re.escape(size)}(-intermediate-checkpoints)?", r"step-\d+",
            Check(f"HuggingFaceTB/SmolLM2-{size}-intermediate-checkpoints", f"step-{step}", 250e9, 0.05),
            f"card: a checkpoint every {step:,} steps, about 250B tokens{also}", constant(per_step),
            span=(f"step-{step}", ""),
        )
        for size, status, step, per_step, also in (
            ("135M", Status.VERIFIED, 240_000, 1_048_576, "; batch of 1,048,576"),
            ("360M", Status.DERIVED, 160_000, 1_572_864, ""),
            ("1.7B", Status.VERIFIED, 125_000, 2_097_152, "; batch of 2,097,152"),
        )
    ),
    Suite(
        "SmolLM3", Status.VERIFIED, r"smollm3-3b(-checkpoints)?", r"stage[123]-step-\d+",
        Check("HuggingFaceTB/SmolLM3-3B-checkpoints", "stage1-step-40000", 94.4e9),
        "card: batch of 2,359,296; 40,000 steps are 94.4B tokens; steps run on through the stages",
        constant(2_359_296), global_steps=True, span=("stage1-step-40000", "stage3-step-4720000"),
        schedule="2,000 steps of warm-up, constant, linear to 0 in the last 10 % (training README)",
    ),
    Suite(
        "Amber", Status.VERIFIED, r"amber", r"ckpt_\d+", Check("LLM360/Amber", "ckpt_359", 1.259e12),
        "2312.06550: 360 chunks of 1,706,976 sequences of 2,048; ckpt_000 follows the first",
        constant(1_706_976 * 2048), first=1, span=("ckpt_000", "ckpt_359"),
    ),
    Suite(
        "K2-65B", Status.ASK, r"k2(-65b)?", r"ckpt_\d+", Check("LLM360/K2", "ckpt_359"),
        "360 checkpoints over 1.4T tokens, but equal distances are not confirmed",
    ),
    Suite(
        "open-sci-ref 0.01", Status.VERIFIED, r"open-sci-ref.*", r"iter_\d+",
        Check("open-sci/open-sci-ref-v0.01-0.13b-fineweb-edu-1.4t-300B-4096", "iter_0072661", 300e9),
        "config.json states batch and context in _name_or_path: 72,661 × 1,008 × 4,096 is 300B",
        path=r"global_bs-(?P<batch>\d+)_context-(?P<context>\d+)",
        repositories=(
            "open-sci/open-sci-ref-v0.01-0.13b-fineweb-edu-1.4t-300B-4096",
            "open-sci/open-sci-ref-v0.01-1.7b-nemotron-hq-1T-4096",
        ),
        schedule="warm-up, constant, decay; stated in _name_or_path",
    ),
    Suite(
        "OpenEuroLLM datamix 2B", Status.DERIVED, r".*datamix-2b.*", r"checkpoint_\d+",
        Check("openeurollm/datamix-2b-80-20", "checkpoint_0953675", 4.0e12),
        "the last of them, 953,675, is at 4T tokens", constant(4_194_304),
        span=("checkpoint_0005000", "checkpoint_0953675"),
    ),
    Suite(
        "TinyLlama v1.1", Status.ASK, r"tinyllama(-1\.1b)?-v1\.1.*", r".*step-\d+k?.*",
        Check("TinyLlama/TinyLlama_v1.1", "step-435000"), "the batch differs between its stages",
    ),
    Suite(
        "TinyLlama", Status.VERIFIED, r"tinyllama-intermediate-checkpoints.*|tinyllama-1\.1b(-intermediate)?-step-.*",
        r"(.*-)?step-\d+k?(-(token-)?\d+(\.\d+)?[bt])?",
        Check("TinyLlama/tinyLlama-intermediate-checkpoints", "step-480k-token-1007B", 1007e9),
        "card: 50k steps are 105B tokens, 1,431k are 3T", constant(1024 * 2048),
        schedule="2,000 steps of warm-up, cosine (README)",
    ),
    Suite(
        "BLOOM 176B", Status.DERIVED, r"bloom(-176b)?-intermediate|bloom-176b", r"global_step\d+",
        Check("bigscience/bloom-intermediate", "global_step95000", 366e9, 0.002),
        "training script: 192 sequences of 2,048, 16 more at a time, to 2,048 after 9,765,625; 2211.05100: 366B",
        ramp(192, 16, 2048, 9_765_625, 2048),
    ),
    Suite(
        "BLOOM 560M to 7.1B", Status.ASK, r"bloom-\d+(m|b\d*)(-intermediate)?", r"global_step\d+",
        Check("bigscience/bloom-560m-intermediate", "global_step100000"), "every size has a batch of its own",
    ),
    Suite(
        "Gemstones", Status.ASK, r"gemstone.*", r"step_\d+", Check("tomg-group-umd/Gemstone-512x12", "step_00002385"),
        "every repository has a batch of its own",
    ),
    Suite(
        "FineWeb ablations", Status.LABEL, r"ablation-model-.*|.*fineweb.*", r"step-\d+-\d+BT",
        Check("HuggingFaceFW/ablation-model-fineweb-edu", "step-001000-2BT", 2e9, 0.0), "label",
    ),
    Suite(
        "OpenCoder", Status.ASK, r"opencoder.*", r"(pretrain|anneal)_iter_\d+",
        Check("infly/OpenCoder-1.5B-Base", "pretrain_iter_0001000"),
        "its card says 4,194,304 tokens per step and also 2,048 sequences of 4,096, twice as many",
    ),
    Suite(
        "RedPajama-INCITE", Status.LABEL, r"redpajama-incite.*", r"\d+b_tokens",
        Check("togethercomputer/RedPajama-INCITE-7B-Base", "240b_tokens", 240e9, 0.0), "label",
        span=("240b_tokens", ""),
    ),
    Suite(
        "Ettin", Status.ASK, r"ettin.*", r"step\d+|.*step\d+", Check("jhu-clsp/ettin-decoder-150m", "step10000"),
        "the batch grows during training",
    ),
)
"""Every suite, looked through in this order."""
# fmt: on


def find(model: str, label: str) -> Suite | None:
    """The suite that a checkpoint belongs to by its names, or None."""
    return next((suite for suite in SUITES if suite.names(model, label)), None)


def from_path(path: str) -> tuple[Suite, int] | None:
    """The suite and the tokens per step that `_name_or_path` of a config.json states, or None."""
    for suite in SUITES:
        found = re.search(suite.path, path) if suite.path else None
        if found:
            return suite, int(found["batch"]) * int(found["context"])
    return None
