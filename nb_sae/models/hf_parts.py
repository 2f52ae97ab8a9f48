"""The parts of Hugging Face transformers: decoders and encoders, told apart by what their blocks are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from nb_sae.errors import ConfigError
from nb_sae.layers import Tower
from nb_sae.models.tower_parts import AttentionParts, BlockParts, Parts
from nb_sae.models.weights import InFloat, affine, first_argument, gain

_ATTENTIONS = ("self_attn", "attention", "attn", "self_attention")
_MLPS = ("mlp", "feed_forward", "ffn")
_OUTPUTS = ("o_proj", "dense", "c_proj", "out_proj", "out_lin", "Wo")
_VALUES = ("v_proj", "value", "v_lin")
_BY_HEAD = ("query_key_value",)
"""Queries, key and value of one head (or of a group that shares them) side by side."""
_BY_KIND = ("c_attn", "qkv_proj", "Wqkv")
"""All queries, then all keys, then all values."""
_NORMS_BEFORE = ("input_layernorm", "ln_1", "ln_attn", "attn_norm", "self_attn_layer_norm", "layer_norm1", "norm_1")
_FINAL_NORMS = ("final_layer_norm", "ln_f", "norm", "final_layernorm", "final_norm", "norm_f")
_READS = ("gate_proj", "gate_up_proj", "dense_h_to_4h", "c_fc", "fc1", "lin1", "fc_in", "Wi", "up_proj")
_WRITES = ("down_proj", "dense_4h_to_h", "c_proj", "fc2", "lin2", "fc_out", "Wo")


class HuggingFaceParts(Parts):
    """A Hugging Face model, or one inside another module.

    Args:
        model: The wrapper.
        tower: Which of its towers.
        stack: Path of the list of blocks.
        inner: The Hugging Face model that holds it.
    """

    def __init__(self, model: Any, tower: Tower, stack: str, inner: nn.Module) -> None:
        super().__init__(model, tower, str(getattr(getattr(inner, "config", None), "model_type", "hugging_face")))
        self._stack = stack
        self._inner = inner

    @cached_property
    def blocks(self) -> tuple[BlockParts, ...]:
        """The sites of every block, first to last."""
        names = set(self.model.hook_names())
        found = [self._block_parts(i, block) for i, block in enumerate(self._list())]
        # OPT's MLP, for one, gives no rows: (batch · token, width).
        return tuple(
            replace(
                block,
                attention=block.attention if block.attention in names else None,
                mlp=block.mlp if block.mlp in names else None,
            )
            for block in found
        )

    @property
    def normalises_after(self) -> bool:
        """Whether the blocks normalise the sum and not what they read, as BERT does."""
        return post_norm(self._list()[0])

    @property
    def final_norm(self) -> Callable[[Tensor], Tensor] | None:
        """The norm after the last block; with a masked-language-model head, and all that comes before its decoder."""
        module = self._root.get_submodule(self._stack.rpartition(".")[0]) if "." in self._stack else self._root
        norm, head = _child(module, _FINAL_NORMS), masked_head(self._inner)
        if norm is None:
            return head
        normed = InFloat(norm)
        return normed if head is None else lambda x: head(normed(x))

    def _read_unembed(self) -> tuple[Tensor, Tensor | None]:
        find = getattr(self._inner, "get_output_embeddings", None)
        head = find() if find is not None else None
        if head is None:
            raise ConfigError(
                f"{self._title} has no unembedding: {type(self._inner).__name__} ends in hidden states. Load the model "
                "with its language-model head (AutoModelForCausalLM or AutoModelForMaskedLM)."
            )
        weight, bias = affine(self._root, head)
        factor = float(getattr(self._inner, "logit_scale", 1.0)) / float(self._setting("logits_scaling", 1.0))
        if factor != 1:
            weight, bias = weight * factor, None if bias is None else bias * factor
        return weight.T, bias

    @property
    def softcap(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where the logits are `softcap · tanh(logits / softcap)`."""
        value = self._setting("final_logit_softcapping", None)
        return None if value is None else float(value)

    def mlp(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Rows `(neurons, d_model)` by which neurons read (of a gated MLP, its gate) and write; None for experts."""
        self._require(layer)
        block: Any = self._list()[layer]
        if hasattr(block, "intermediate"):  # BERT
            read, write = block.intermediate.dense, block.output.dense
        else:
            holder = _child(block, _MLPS) or block
            read, write = _child(holder, _READS), _child(holder, _WRITES)
        if read is None or write is None:
            return None
        W_in, W_out = affine(self._root, read)[0], affine(self._root, write)[0].T
        W_in = W_in[: len(W_out)]  # of Phi-3's fused map, the gate comes first
        after = getattr(block, "post_feedforward_layernorm", None)
        scale = gain(after, W_out.shape[1]) if after is not None else None
        return W_in, W_out if scale is None else W_out * scale

    def _block_parts(self, layer: int, block: nn.Module) -> BlockParts:
        root = f"{self._stack}.{layer}"
        if hasattr(block, "intermediate"):  # BERT
            return BlockParts(layer, root, f"{root}.attention.output.dense", f"{root}.output.dense")
        if hasattr(block, "sa_layer_norm"):  # DistilBERT
            return BlockParts(layer, root, f"{root}.attention.out_lin", f"{root}.ffn.lin2")
        attention, mlp = _child_name(block, _ATTENTIONS), _child_name(block, _MLPS)
        sites = {"attention": attention, "mlp": mlp or _child_name(block, ("fc2",))}
        if _normalises_attention(block):
            sites["attention"] = "post_attention_layernorm"
        if hasattr(block, "post_feedforward_layernorm"):
            sites["mlp"] = "post_feedforward_layernorm"
        full = {lane: f"{root}.{name}" if name else None for lane, name in sites.items()}
        return BlockParts(layer, root, full["attention"], full["mlp"])

    def _read_attention(self, layer: int) -> AttentionParts:
        block = self._list()[layer]
        name = _child_name(block, _ATTENTIONS)
        if name is None:
            raise ConfigError(
                f"Block {layer} of {self._title} ({type(block).__name__}) has no attention that nb_sae knows; expected "
                f"one of {', '.join(_ATTENTIONS)}. Its sites can be used, its heads cannot."
            )
        attention = self._listened(layer)
        outer = getattr(block, name)
        output = _child(attention, _OUTPUTS) or getattr(getattr(outer, "output", None), "dense", None)
        if output is None:
            raise self._unreadable(layer, attention)
        W_O, b_O = affine(self._root, output)
        heads = self._heads(attention)
        d_head = W_O.shape[1] // heads
        W_V, b_V = self._values(layer, attention, heads, d_head)
        kv_heads = W_V.shape[0]
        repeat = heads // kv_heads
        before = None if post_norm(block) else _child(block, _NORMS_BEFORE)
        site = f"{self._stack}.{layer}.{name}"
        after = _child(block, ("post_attention_layernorm",)) if _normalises_attention(block) else None
        return AttentionParts(
            layer=layer,
            site=f"{site}.output.dense" if attention is not outer else site,
            heads=heads,
            kv_heads=kv_heads,
            d_head=d_head,
            W_V=W_V.repeat_interleave(repeat, 0),
            b_V=None if b_V is None else b_V.repeat_interleave(repeat, 0),
            W_O=W_O.T.unflatten(0, (heads, d_head)),
            b_O=b_O,
            norm=before if before is not None else nn.Identity(),
            after=after,
        )

    def _values(self, layer: int, attention: nn.Module, heads: int, d_head: int) -> tuple[Tensor, Tensor | None]:
        """W_V `(kv_heads, d_model, d_head)` and its bias, from a map of its own or a fused one."""
        own, fused = _child(attention, _VALUES), _child_name(attention, _BY_HEAD + _BY_KIND)
        if own is not None:
            weight, bias = affine(self._root, own)
        elif fused is not None:
            weight, bias = affine(self._root, getattr(attention, fused))
            kv_heads = (len(weight) // d_head - heads) // 2
            if kv_heads < 1 or heads % kv_heads or len(weight) != (heads + 2 * kv_heads) * d_head:
                raise self._unreadable(layer, attention)
            if fused in _BY_HEAD:
                groups = (kv_heads, heads // kv_heads + 2, d_head)
                weight = weight.unflatten(0, groups)[:, -1].flatten(0, 1)
                bias = None if bias is None else bias.unflatten(0, groups)[:, -1].flatten()
            else:
                weight = weight[-kv_heads * d_head :]
                bias = None if bias is None else bias[-kv_heads * d_head :]
        else:
            raise self._unreadable(layer, attention)
        W_V = weight.unflatten(0, (-1, d_head)).transpose(1, 2)
        return W_V, None if bias is None else bias.unflatten(0, (-1, d_head))

    def _listen(self, layer: int, run: dict[str, Tensor]) -> list[Any]:
        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            pattern = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            given = first_argument(args, kwargs)
            if isinstance(pattern, Tensor) and given is not None:
                run.update(pattern=pattern, x_normed=given)

        return [self._listened(layer).register_forward_hook(after, with_kwargs=True)]

    @contextmanager
    def _explicit_attention(self) -> Iterator[None]:
        """Eager attention, which alone gives its pattern, in every configuration inside the model; set back after."""
        configs = {id(c): c for m in self._inner.modules() if (c := getattr(m, "config", None)) is not None}
        field = "_attn_implementation_internal"
        before = [(config, getattr(config, field)) for config in configs.values() if hasattr(config, field)]
        try:
            for config, _ in before:
                setattr(config, field, "eager")
            yield
        finally:
            for config, value in before:
                setattr(config, field, value)

    def _list(self) -> nn.ModuleList:
        found = self._root.get_submodule(self._stack)
        assert isinstance(found, nn.ModuleList)
        return found

    def _listened(self, layer: int) -> nn.Module:
        """The module that makes the pattern: inside BERT's attention, `self`."""
        attention = _child(self._list()[layer], _ATTENTIONS)
        assert attention is not None
        return getattr(attention, "self", attention)

    def _heads(self, attention: nn.Module) -> int:
        config = getattr(attention, "config", None) or getattr(self._inner, "config", None)
        for holder in (config, attention):
            for field in ("num_attention_heads", "n_head", "num_heads", "n_heads"):
                value = getattr(holder, field, None)
                if isinstance(value, int):
                    return value
        raise self._unreadable(0, attention)

    def _setting(self, name: str, default: Any) -> Any:
        config: Any = getattr(self._inner, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        return getattr(text, name, None) or default

    def _unreadable(self, layer: int, attention: nn.Module) -> ConfigError:
        return ConfigError(
            f"nb_sae does not know where {type(attention).__name__} (block {layer} of {self._title}) keeps W_V and "
            f"W_O; expected {', '.join(_VALUES + _BY_HEAD + _BY_KIND)} and {', '.join(_OUTPUTS)}. Its sites can be "
            "used, its heads cannot."
        )


class HuggingFaceTextParts(HuggingFaceParts):
    """A Hugging Face encoder as the text tower of an open_clip model (`HFTextEncoder`)."""

    def __init__(self, model: Any, stack: str, holder: nn.Module) -> None:
        self._holder: Any = holder
        super().__init__(model, "text", stack, self._holder.transformer)

    def _project(self, x: Tensor, batch: Tensor | None) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if batch is None:
            raise ConfigError(f"{self._title} pools over the tokens of each text. Use project(x, ids).")
        holder, x = self._holder, x if self.final_norm is None else self.final_norm(x)
        pooler = getattr(holder.transformer, "pooler", None)
        pooled = None if pooler is None else InFloat(pooler)(x)
        mask = (self.model.filled(batch).to(x.device) != holder.config.pad_token_id).long()
        output = BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled)  # pyright: ignore[reportArgumentType]
        return InFloat(holder.proj)(holder.pooler(output, mask))

    def _lens(self, x: Tensor) -> Tensor:
        return InFloat(self._holder.proj)(x if self.final_norm is None else self.final_norm(x))

    def _read_unembed(self) -> tuple[Tensor, Tensor | None]:
        return Parts._read_unembed(self)


def _normalises_attention(block: nn.Module) -> bool:
    """Gemma 2 and 3 and OLMo 2 normalise what attention gives; in Llama a norm of that name comes before the MLP."""
    if not hasattr(block, "post_attention_layernorm"):
        return False
    return hasattr(block, "pre_feedforward_layernorm") or hasattr(block, "post_feedforward_layernorm")


def post_norm(block: nn.Module) -> bool:
    """BERT (`intermediate`) and DistilBERT (`sa_layer_norm`) normalise after every addition."""
    return hasattr(block, "intermediate") or hasattr(block, "sa_layer_norm")


def masked_head(inner: nn.Module | None) -> Callable[[Tensor], Tensor] | None:
    """What a masked-language-model head does before its decoder; None without such a head."""
    transform = getattr(getattr(getattr(inner, "cls", None), "predictions", None), "transform", None)
    whole = transform or getattr(inner, "generator_predictions", None)  # BERT; ELECTRA
    if isinstance(whole, nn.Module):
        return InFloat(whole)
    head: Any = getattr(inner, "lm_head", None)  # RoBERTa
    if all(hasattr(head, name) for name in ("dense", "layer_norm", "decoder")):
        return lambda x: InFloat(head.layer_norm)(nn.functional.gelu(InFloat(head.dense)(x)))
    head = getattr(inner, "head", None)  # ModernBERT
    if all(hasattr(head, name) for name in ("dense", "act", "norm")):
        return InFloat(head)
    model: Any = inner
    if all(hasattr(inner, name) for name in ("vocab_transform", "activation", "vocab_layer_norm")):  # DistilBERT
        return lambda x: InFloat(model.vocab_layer_norm)(model.activation(InFloat(model.vocab_transform)(x)))
    return None


def _child_name(module: nn.Module, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(getattr(module, name, None), nn.Module)), None)


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    name = _child_name(module, names)
    return None if name is None else getattr(module, name)
