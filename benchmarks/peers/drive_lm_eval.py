"""lm-eval's `loglikelihood_rolling`, given token ids instead of text, so that both sides see the same tokens.

The job's calibration file holds the documents; `prefix` is the id that lm-eval itself puts before each, and `length`
the longest input.  Only how text becomes ids is replaced; what is timed is the request as lm-eval serves it.
"""

from __future__ import annotations

import json
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from benchmarks.peers.parts import clock, installed, load_causal_lm, peak_memory, since, token_ids


class GivenIds(HFLM):
    """HFLM whose documents are JSON lists of token ids."""

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        return json.loads(string)


def versions() -> dict[str, str]:
    return installed("lm_eval")


def run(job: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one request over all documents, repeated as often as the job asks, and its total."""
    from transformers import AutoTokenizer

    documents = [json.dumps(row) for row in token_ids(job["calibration"]).tolist()]
    before = clock()
    model = GivenIds(
        pretrained=load_causal_lm(job["model"]),
        tokenizer=AutoTokenizer.from_pretrained(job["model"]),
        device="cpu",
        batch_size=job["batch"],
        max_length=job["length"],
        prefix_token_id=job["prefix"],
    )
    loaded = since(before)
    repeats, total = [], 0.0
    for _ in range(job["repeats"]):
        requests = [
            Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0) for text in documents
        ]
        before = clock()
        total = sum(model.loglikelihood_rolling(requests, disable_tqdm=True))
        repeats.append(since(before))
    return {"load": loaded, "evaluate": repeats, "total": total, "memory_peak": peak_memory()}
