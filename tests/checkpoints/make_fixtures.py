"""Checkpoints in the formats of training frameworks, made by the frameworks' own code, and what their models compute.

    python -m tests.checkpoints.make_fixtures FRAMEWORK [CLONE]

writes `fixtures/FRAMEWORK/`: the checkpoint as the framework saves it, of a model with random weights, and
`expected.npz` with token ids and the logits of the framework's own model in float32.  nanoGPT and nanochat are no
packages: CLONE is a clone.  Each framework is installed for this alone, in an environment of its own; the tests read
what is stored.
"""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parent / "fixtures"
IDS = np.random.default_rng(0).integers(0, 90, (2, 24))
VOCABULARY = 96


def randomised(model, seed=0):
    """The model with every parameter drawn at random, norms about one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            vector = parameter.dim() == 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.1 if vector else 0.2))
            if vector and "bias" not in name:
                parameter.add_(1.0)
    return model.eval()


def expected(folder, model):
    """Store what the model computes: `model(ids)` gives logits [batch, time, vocabulary]."""
    with torch.no_grad():
        logits = model(torch.from_numpy(IDS))
    np.savez_compressed(folder / "expected.npz", ids=IDS, logits=logits.float().numpy()[..., :VOCABULARY])


def nanogpt(folder, clone):
    """`ckpt.pt` as train.py saves it, with and without biases."""
    sys.path.insert(0, clone)
    from model import GPT, GPTConfig

    for name, bias in (("biased", True), ("plain", False)):
        sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 32, "bias": bias, "vocab_size": VOCABULARY}
        model = randomised(GPT(GPTConfig(**sizes, dropout=0.0)))
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
        config = {"gradient_accumulation_steps": 4, "batch_size": 2, "block_size": 32, "dataset": "openwebtext"}
        (folder / name).mkdir(parents=True)
        saved = {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "model_args": {**sizes, "dropout": 0.0},
            "iter_num": 250, "best_val_loss": torch.tensor(3.0), "config": config,
        }  # fmt: skip
        torch.save(saved, folder / name / "ckpt.pt")
        whole = lambda ids, model=model: model(ids, targets=ids)[0]  # without targets, only the last position
        expected(folder / name, whole)


def litgpt(folder):
    """`step-N/lit_model.pth` and configuration, as litgpt's pretraining saves them."""
    import lightning
    from litgpt import GPT, Config
    from litgpt.utils import save_config

    sizes = {"n_layer": 2, "n_embd": 32, "vocab_size": VOCABULARY, "padded_vocab_size": VOCABULARY, "block_size": 32}
    llama = {
        "n_head": 4, "n_query_groups": 2, "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "bias": False,
        "intermediate_size": 48, "parallel_residual": False, "rotary_percentage": 1.0,
    }  # fmt: skip
    neox = {"n_head": 4, "norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "rotary_percentage": 0.5}
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    for name, own in (("llama", llama), ("neox", neox)):
        place = folder / name / "step-00000250"
        place.mkdir(parents=True)
        config = Config(name=f"tiny-{name}", **sizes, **own)
        model = randomised(GPT(config))
        fabric.save(place / "lit_model.pth", {"model": model, "iter_num": 1000, "step_count": 250})
        save_config(model.config, place)
        options = "train:\n  global_batch_size: 8\n  max_seq_length: 32\n"
        (place / "hyperparameters.yaml").write_text(options)
        expected(folder / name, model)


def olmo(folder):
    """`stepN-unsharded/` as OLMo's trainer saves it, with and without tied embeddings."""
    from olmo.config import ModelConfig, TrainConfig
    from olmo.model import OLMo

    for name, tied in (("tied", True), ("untied", False)):
        place = folder / name / "step250-unsharded"
        place.mkdir(parents=True)
        config = ModelConfig(
            d_model=32, n_heads=4, n_layers=2, mlp_ratio=4, vocab_size=VOCABULARY, embedding_size=VOCABULARY, rope=True,
            max_sequence_length=32, include_bias=False, block_type="sequential", activation_type="swiglu",
            layer_norm_type="default", layer_norm_with_affine=False, attention_layer_norm=False, weight_tying=tied,
            bias_for_layer_norm=False, init_device="cpu", flash_attention=False,
        )  # fmt: skip
        model = randomised(OLMo(config))
        torch.save(model.state_dict(), place / "model.pt")
        TrainConfig(model=config, global_train_batch_size=8).save(place / "config.yaml")
        if tied:
            torch.save({"global_step": 250, "global_train_tokens_seen": 64_256}, place / "train.pt")
        expected(folder / name, lambda ids, model=model: model(ids).logits)


def olmo_core(folder):
    """`stepN/model_and_optim/` as OLMo-core's checkpointer saves it: Llama's blocks and OLMo 2's."""
    import torch.distributed as dist
    from olmo_core.distributed.checkpoint import save_model_and_optim_state
    from olmo_core.nn.transformer import TransformerConfig

    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29512", rank=0, world_size=1)
    sizes = {"d_model": 16, "vocab_size": VOCABULARY, "n_layers": 2, "n_heads": 4, "hidden_size_multiple_of": 8}
    kinds = {
        "llama": TransformerConfig.llama_like(**sizes, n_kv_heads=2),
        "olmo2": TransformerConfig.llama_like(**sizes, block_name="reordered_norm", qk_norm=True, rope_theta=100_000),
    }
    for name, config in kinds.items():
        place = folder / name / "step250"
        model = randomised(config.build(init_device="cpu"))
        optimizer = torch.optim.AdamW(model.parameters())
        save_model_and_optim_state(place / "model_and_optim", model, optimizer)
        about = {"model": config.as_config_dict(), "data_loader": {"global_batch_size": 4096}}
        (place / "config.json").write_text(json.dumps(about))
        expected(folder / name, model)


def torchtitan(folder):
    """`step-N/` as torchtitan's checkpoint manager has DCP save it, the names of tensors without and with `model.`."""
    import torch.distributed.checkpoint as dcp
    from torchtitan.models.llama3 import Transformer, TransformerModelArgs

    for name, prefix in (("flat", ""), ("nested", "model.")):
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": VOCABULARY, "max_seq_len": 32}
        model = randomised(Transformer(TransformerModelArgs(**sizes, multiple_of=8)))
        state = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
        training = {"step": torch.tensor(250, dtype=torch.int32), "ntokens_seen": torch.tensor(64_000)}
        optimizer = torch.optim.AdamW(model.parameters())
        dcp.save(
            {**state, "optimizer": optimizer.state_dict(), "train_state": training},
            checkpoint_id=folder / name / "step-250",
        )
        (folder / name / "trajectory.yaml").write_text("architecture: {num_attention_heads: 4, rope_theta: 10000}\n")
        expected(folder / name, model)


def nanochat(folder, clone):
    """`base_checkpoints/TAG/model_N.pt` and its meta file, by nanochat's own function."""
    _put("rustbpe")  # trains tokenizers
    sys.path.insert(0, clone)
    from nanochat.checkpoint_manager import save_checkpoint
    from nanochat.gpt import GPT, GPTConfig

    sizes = {"sequence_len": 32, "vocab_size": 90, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_embd": 32}
    config = GPTConfig(**sizes, window_pattern="SSL")
    model = GPT(config)
    model.init_weights()
    randomised(model.float())
    options = {"num_iterations": 500, "warmdown_ratio": 0.4, "warmup_steps": 40}
    meta = {"step": 250, "val_bpb": 1.25, "model_config": vars(config), "user_config": options}
    meta |= {"device_batch_size": 4, "max_seq_len": 32, "total_batch_size": 512}
    save_checkpoint(folder / "d3", 250, model.state_dict(), None, meta)
    expected(folder / "d3", model)


def nanotron(folder):
    """`N/` as nanotron 0.4 saves it, two ranks of tensor parallelism, on the CPU.

    nanotron needs flash-attn and a GPU, so attention, RoPE and the norm of flash-attn are replaced by the same in plain
    torch, and processes talk by gloo.
    """
    import torch.multiprocessing as mp

    mp.spawn(_nanotron_rank, args=(folder / "tp2",), nprocs=2)


def _put(name, **content):
    """A module of that name, with this content, as if it had been imported."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(content)


def _put_flash_attn():
    """What nanotron takes from flash-attn, in plain torch."""
    from torch.nn import functional as F

    class Rotary(torch.nn.Module):
        """Of neighbouring channels: q [batch, time, heads, size], kv [batch, time, 2, heads, size]."""

        def __init__(self, dim, interleaved):
            super().__init__()
            assert interleaved
            self.dim = dim

        def forward(self, q, kv):
            angle = torch.outer(torch.arange(q.shape[1]), 10_000 ** (-torch.arange(0, self.dim, 2) / self.dim))
            turn = torch.polar(torch.ones_like(angle), angle)[None, :, None]
            turned = lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)
            keys, values = kv.unbind(2)
            return turned(q.contiguous()), torch.stack([turned(keys.contiguous()), values], 2)

    def attention(q, k, v, cu_seqlens_q, max_seqlen_q, causal, **others):
        rows = lambda x: x.unflatten(0, (-1, max_seqlen_q)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(rows(q), rows(k), rows(v), is_causal=causal, enable_gqa=True)
        return mixed.transpose(1, 2).flatten(0, 1)

    def norm(x, weight, bias, eps, **others):
        return F.rms_norm(x, weight.shape, weight, eps)

    _put("flash_attn", bert_padding=None)
    _put("flash_attn.flash_attn_interface", flash_attn_varlen_func=attention, flash_attn_with_kvcache=None)
    for name in ("layers", "ops", "ops.triton"):
        _put(f"flash_attn.{name}")
    _put("flash_attn.layers.rotary", RotaryEmbedding=Rotary)
    _put("flash_attn.ops.triton.layer_norm", layer_norm_fn=norm)


def _nanotron_rank(rank, folder):
    import importlib
    import os
    from dataclasses import asdict

    import torch.distributed as dist

    _put_flash_attn()
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29517", CUDA_DEVICE_MAX_CONNECTIONS="1", **ranks)
    dist.init_process_group("gloo")
    # The imports of 0.4 go round in a circle, which is broken at the one name that its log needs of its options.
    _put("nanotron.config", __path__=[])
    _put("nanotron.config.config", LoggingArgs=object)
    importlib.import_module("nanotron.logging")
    del sys.modules["nanotron.config"], sys.modules["nanotron.config.config"]
    from nanotron.config import LlamaConfig, ParallelismArgs
    from nanotron.models import build_model, llama
    from nanotron.parallel import ParallelContext
    from nanotron.parallel.pipeline_parallel.p2p import P2P
    from nanotron.serialize import save_weights
    from nanotron.serialize.metadata import save_meta
    from nanotron.trainer import mark_tied_parameters

    ParallelContext.set_device = lambda self: None
    llama.P2P = lambda group, device: P2P(group, torch.device("cpu"))
    context = ParallelContext(tensor_parallel_size=2, pipeline_parallel_size=1, data_parallel_size=1)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
        vocab_size=VOCABULARY, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    parallel = ParallelismArgs(dp=1, pp=1, tp=2)
    model = build_model(
        lambda: llama.LlamaForTraining(config, context, parallel), context, torch.float32, device=torch.device("cpu")
    )
    mark_tied_parameters(model=model, parallel_context=context)
    for parameter in model.parameters():  # of the norms all ranks hold the whole
        dist.broadcast(parameter.data, 0) if parameter.dim() == 1 else None
    randomised(model, seed=rank)
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0) if parameter.dim() == 1 else None
    place = folder / "250"
    save_weights(model=model, parallel_context=context, root_folder=place)
    save_meta(context, place, {"last_train_step": 250, "consumed_train_samples": 2000})
    with torch.no_grad():
        ids = torch.from_numpy(IDS)
        own = model.model(input_ids=ids, input_mask=torch.ones_like(ids).bool()).transpose(0, 1).contiguous()
    logits = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(logits, own)
    if rank == 0:
        (place / "model_config.json").write_text(json.dumps(asdict(config)))
        (place / "config.yaml").write_text("tokens: {sequence_length: 32, micro_batch_size: 2}\n")
        (folder / "latest.txt").write_text("250")
        np.savez_compressed(folder / "expected.npz", ids=IDS, logits=torch.cat(logits, -1).numpy())
    dist.barrier()


def main():
    """Make the fixtures of one framework anew."""
    framework, *rest = sys.argv[1:]
    folder = FIXTURES / framework
    shutil.rmtree(folder, ignore_errors=True)
    globals()[framework](folder, *rest)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    print(json.dumps(sizes, indent=1))


if __name__ == "__main__":
    main()
