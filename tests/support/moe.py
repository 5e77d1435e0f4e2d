"""A small mixture of experts whose experts are nn.Linear modules, and one whose experts are fused.

The router's first entries decide: with `cold` experts, the last of them never receive a token.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from tests.support.models import CONTEXT, HIDDEN, VOCAB

COLD_LOGIT = -1e4


class ExpertsConfig(PretrainedConfig):
    model_type = "core-tests-experts"

    def __init__(self, experts=3, cold=0, fused=False, layers=2, **common):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = VOCAB, HIDDEN, layers
        self.max_position_embeddings = CONTEXT
        self.experts, self.cold, self.fused = experts, cold, fused
        super().__init__(**{"tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0, **common})


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1 = nn.Linear(HIDDEN, 16, bias=False)
        self.w3 = nn.Linear(HIDDEN, 16, bias=False)
        self.w2 = nn.Linear(16, HIDDEN, bias=False)

    def forward(self, x):
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.mix = nn.Linear(HIDDEN, HIDDEN)
        self.gate = nn.Linear(HIDDEN, config.experts, bias=False)
        self.cold = config.cold
        if config.fused:
            self.up = nn.Parameter(torch.zeros(config.experts, HIDDEN, HIDDEN))
        else:
            self.experts = nn.ModuleList(Expert() for _ in range(config.experts))

    def forward(self, x):
        count = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        x = x + self.mix(self.norm(x).cumsum(1) / count)
        scores = self.gate(x)
        if self.cold:
            scores[..., -self.cold :] = COLD_LOGIT
        weight, chosen = scores.softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            mine = chosen == index
            if mine.any():
                out[mine] = expert(x[mine]) * weight[mine][:, None]
        return x + out


class ExpertsBody(PreTrainedModel):
    config_class = ExpertsConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids, use_cache=None):
        del use_cache
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return BaseModelOutput(last_hidden_state=x)


class ExpertsForCausalLM(PreTrainedModel):
    config_class = ExpertsConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = ExpertsBody(config)
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, use_cache=None):
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids, use_cache).last_hidden_state))


AutoConfig.register(ExpertsConfig.model_type, ExpertsConfig, exist_ok=True)
AutoModelForCausalLM.register(ExpertsConfig, ExpertsForCausalLM, exist_ok=True)
