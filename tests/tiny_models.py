"""Random models of every family, small enough to be built in a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY = 60
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def gpt2(**settings: Any) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=40,
        bos_token_id=0,
        eos_token_id=0,
        **settings,
    )
    return transformers.GPT2LMHeadModel(config)


def neox(**settings: Any) -> nn.Module:
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SHAPE | settings))


def llama() -> nn.Module:
    # Rotary embeddings, grouped queries, an unembedding of its own, biases as some of the family have them.
    config = transformers.LlamaConfig(**SHAPE, num_key_value_heads=2, tie_word_embeddings=False, attention_bias=True)
    return transformers.LlamaForCausalLM(config)


def qwen2() -> nn.Module:
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True)
    )


def qwen3() -> nn.Module:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=16))


def gemma2() -> nn.Module:
    config = transformers.Gemma2Config(
        **SHAPE,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=3,
        final_logit_softcapping=2.0,
        attn_implementation="eager",  # the other ones leave its softcap out
    )
    return transformers.Gemma2ForCausalLM(config)


def gemma3() -> nn.Module:
    config = transformers.Gemma3TextConfig(**SHAPE, num_key_value_heads=1, head_dim=16, sliding_window=3)
    return transformers.Gemma3ForCausalLM(config)


def olmo2() -> nn.Module:
    return transformers.Olmo2ForCausalLM(transformers.Olmo2Config(**SHAPE))


def phi3() -> nn.Module:
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**SHAPE, num_key_value_heads=2))


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SHAPE))


def roberta() -> nn.Module:
    return transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SHAPE | {"pad_token_id": 1}))


def falcon(**settings: Any) -> nn.Module:
    return transformers.FalconForCausalLM(transformers.FalconConfig(**SHAPE, **settings))


def cohere() -> nn.Module:
    return transformers.CohereForCausalLM(transformers.CohereConfig(**SHAPE, logit_scale=0.25))


def mixtral() -> nn.Module:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SHAPE, num_key_value_heads=2, num_local_experts=3)
    )


def granite() -> nn.Module:
    """Scales what attention and MLP give before it is added."""
    return transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**SHAPE, logits_scaling=4.0, residual_multiplier=0.3)
    )


def opt() -> nn.Module:
    """Its MLP runs on (batch · token, width), and its embedding is narrower than its blocks."""
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=40,
            word_embed_proj_dim=16,
        )
    )


def distilbert() -> nn.Module:
    return transformers.DistilBertForMaskedLM(
        transformers.DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, hidden_dim=48, n_layers=3, n_heads=4, max_position_embeddings=40
        )
    )


def electra() -> nn.Module:
    return transformers.ElectraForMaskedLM(transformers.ElectraConfig(**SHAPE, embedding_size=32))


def modernbert() -> nn.Module:
    """An encoder that normalises before, as decoders do."""
    return transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(**SHAPE, cls_token_id=0, sep_token_id=0, local_attention=4)
    )


PRE_NORM: dict[str, Callable[[], nn.Module]] = {
    "gpt2": gpt2,
    "neox": neox,
    "neox_sequential": lambda: neox(use_parallel_residual=False),
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "olmo2": olmo2,
    "phi3": phi3,
    "falcon": falcon,
    "falcon_grouped": lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
    "cohere": cohere,
    "mixtral": mixtral,
    "modernbert": modernbert,
}
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "bert": bert,
    "roberta": roberta,
    "distilbert": distilbert,
    "electra": electra,
}


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every weight, biases and norms too, so that none of them is the zero or one that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim < 2 and "bias" not in name:
                value.add_(0.3 * noise)
            elif value.ndim < 2:
                value.copy_(0.3 * noise)
            else:
                value.copy_(noise * value.shape[-1] ** -0.5)
    return module.eval()
