"""auto-round: SignRound, its own rounding to nearest, and plain rounding."""

from __future__ import annotations

from typing import Any

from ptq_eval.backends.base import Backend, Job, Method

ROWS = 8
"""Windows of a batch."""

STEPS, QUICK_STEPS = 200, 10
"""Steps of SignRound for each block: the package's default, and for a conformance run."""


class AutoRound(Backend):
    """Intel's package.  It leaves the model in bfloat16 on a CPU that has it, as its users get it."""

    name = "auto-round"
    requirements = ("auto-round==0.16.1",)
    imports = "auto_round"
    source = "https://github.com/intel/auto-round (Cheng et al. 2023, arXiv 2309.05516)"
    remarks = "on a CPU it cannot save asymmetric integers of 4 bits (WQLinear_GEMM refuses weight_dtype)"
    methods = {
        "signround": Method(
            "rounding by signed gradients, 200 steps a block", symmetric=(True, False), calibration="sequential"
        ),
        "rtn": Method("rounding to nearest", symmetric=(True, False), calibration="shared"),
    }

    def quantize(self, job: Job) -> Any:
        """The model with simulated layers."""
        from auto_round import AutoRound as Package
        from auto_round.algorithms.quantization.rtn.config import RTNConfig
        from auto_round.algorithms.quantization.sign_round.config import SignRoundConfig
        from torch.utils.data import DataLoader
        from transformers import AutoTokenizer

        assert job.ids is not None
        cell = job.cell
        signs = SignRoundConfig(iters=QUICK_STEPS if job.quick else STEPS)
        rows: Any = [{"input_ids": row, "attention_mask": row * 0 + 1} for row in job.ids]
        package = Package(
            model=job.load(),
            tokenizer=AutoTokenizer.from_pretrained(job.model),
            scheme={
                "bits": cell.bits,
                "group_size": cell.group_size or -1,
                "sym": cell.symmetric,
                "data_type": "int",
            },
            alg_configs=signs if cell.method == "signround" else RTNConfig(disable_opt_rtn=True),
            dataset=DataLoader(rows, batch_size=ROWS),
            seqlen=job.ids.shape[1],
            nsamples=len(job.ids),
            device_map=job.device,
        )
        package.quantize()
        if job.quick:
            package.save_quantized(job.saved, format="auto_round", inplace=False)
        return package.model_context.model

    def reloaded(self, model: Any, job: Job) -> Any:
        """Packed in its own format, and loaded by transformers.

        Its symmetric integers: on a CPU it cannot pack asymmetric ones of 4 bits, whose layer refuses an argument.
        """
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(job.saved).eval()
