"""Run by an interpreter that has GPTQModel: `gptqmodel_loss.py IDS.npy FOLDER…` prints each folder's loss as JSON."""

import json
import os
import sys

import numpy as np
import torch


@torch.inference_mode()
def loss_of(model, ids):
    total = 0.0
    for row in ids:
        logits = model(input_ids=row[None], use_cache=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum"))
    return total / (len(ids) * (ids.shape[1] - 1))


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from gptqmodel import BACKEND, GPTQModel

    ids = torch.from_numpy(np.load(sys.argv[1]).astype(np.int64))
    found = {}
    for folder in sys.argv[2:]:
        with open(f"{folder}/config.json", encoding="utf-8") as file:
            method = json.load(file)["quantization_config"]["quant_method"]
        layer = BACKEND.AWQ_TORCH if method == "awq" else BACKEND.GPTQ_TORCH  # the others want a GPU
        model = GPTQModel.load(folder, device="cpu", backend=layer, dtype=torch.float16).model  # it refuses float32
        found[folder] = loss_of(model, ids)
    print("\n" + json.dumps(found))
