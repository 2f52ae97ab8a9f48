"""The parts of transformer_lens models: `TransformerBridge` (from version 3 on) and `HookedTransformer` (up to 3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nb_sae.errors import ConfigError
from nb_sae.hooks import hook_points
from nb_sae.models.hf_parts import masked_head, post_norm
from nb_sae.models.tower_parts import AttentionParts, BlockParts, Parts
from nb_sae.models.weights import InFloat, affine, first_argument, float_values, gain

_SITES = {
    "residual": ("hook_resid_post", "hook_out"),
    "attention": ("hook_attn_out", "attn.hook_out"),
    "mlp": ("hook_mlp_out", "mlp.hook_out"),
}
"""Alias first: where a norm follows the attention or the MLP, it stands for what comes after the norm."""
_POST_NORM = {
    "residual": ("hook_normalized_resid_post", *_SITES["residual"]),
    "attention": ("attn.o.hook_out", "hook_attn_out"),
    "mlp": _SITES["mlp"],
}
"""In a BERT the stream after a block is the normed one; a bridge's `attn.hook_out` is the stream after attention."""


class LensParts(Parts):
    """A module with a `hook_dict` and `blocks`, whose attention has W_V and W_O by head."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, "text", "transformer_lens")
        self._module: Any = model.module

    @cached_property
    def blocks(self) -> tuple[BlockParts, ...]:
        """The sites of every block, first to last."""
        hooks, sites = hook_points(self._root), _POST_NORM if self.normalises_after else _SITES
        found = []
        for i in range(len(self._module.blocks)):
            named = {
                lane: next((site for name in names if (site := f"blocks.{i}.{name}") in hooks), None)
                for lane, names in sites.items()
            }
            residual = named["residual"]
            if residual is None:
                raise ConfigError(
                    f"{self._title} has no hook {' or '.join(_SITES['residual'])} in block {i}. Choose sites by name "
                    "from model.hook_names()."
                )
            found.append(BlockParts(i, residual, named["attention"], named["mlp"]))
        return tuple(found)

    @property
    def normalises_after(self) -> bool:
        """Whether it is a BERT: a bridge's block is told by the one inside it, HookedEncoder's by its hook."""
        block = self._module.blocks[0]
        inside = getattr(block, "original_component", None)
        return hasattr(block, "hook_normalized_resid_post") or (isinstance(inside, nn.Module) and post_norm(inside))

    @property
    def final_norm(self) -> Callable[[Tensor], Tensor] | None:
        """`ln_final`; of a BERT, the transformation in its masked-language-model head."""
        head = masked_head(getattr(self._module, "original_model", None))
        last = next(
            (m for name in ("ln_final", "mlm_head") if (m := getattr(self._module, name, None)) is not None), None
        )
        return head or (InFloat(last) if isinstance(last, nn.Module) else None)

    @property
    def softcap(self) -> float | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where the logits are `softcap · tanh(logits / softcap)`."""
        value = getattr(getattr(self._module, "cfg", None), "output_logits_soft_cap", None)
        return float(value) if value is not None and value > 0 else None

    def mlp(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Rows `(neurons, d_model)` by which neurons read (of a gated MLP, its gate) and write; None for experts."""
        self._require(layer)
        mlp = getattr(self._module.blocks[layer], "mlp", None)
        read = _weight(mlp, "W_gate")
        read = _weight(mlp, "W_in") if read is None else read
        write = _weight(mlp, "W_out")
        if read is None or write is None or read.ndim != 2:
            return None
        W_in, W_out = float_values(read, "W_in").T, float_values(write, "W_out")
        # Bridges of version 3 give the weights as Hugging Face keeps them, the other way round.
        width = self._module.cfg.d_model if hasattr(self._module, "cfg") else W_in.shape[1]
        W_in = W_in if W_in.shape[1] == width else W_in.T
        W_out = W_out if W_out.shape[1] == width else W_out.T
        after = getattr(self._module.blocks[layer], "ln2_post", None)
        scale = gain(after, width) if isinstance(after, nn.Module) else None
        return W_in, W_out if scale is None else W_out * scale

    def _read_unembed(self) -> tuple[Tensor, Tensor | None]:
        head = getattr(self._module, "unembed", None)
        W_U = _weight(head, "W_U")
        if W_U is None:
            raise ConfigError(f"{self._title} has no unembedding. Load the model with its language-model head.")
        bias = _weight(head, "b_U")
        return float_values(W_U, "W_U"), None if bias is None else float_values(bias, "b_U")

    def _read_attention(self, layer: int) -> AttentionParts:
        block = self._module.blocks[layer]
        attention = getattr(block, "attn", None)
        W_V, W_O = _weight(attention, "W_V"), self._output_weight(attention)
        if W_V is None or W_O is None or W_V.ndim != 3 or W_O.ndim != 3:
            raise ConfigError(
                f"The attention of block {layer} of {self._title} has no W_V and W_O by head. Its sites can be used, "
                "its heads cannot."
            )
        heads, d_head, _ = W_O.shape
        # A grouped W_V is given by key-value head, or (HookedTransformer) repeated for every head.
        repeat = heads // W_V.shape[0]
        b_V, b_O = _weight(attention, "b_V"), _weight(attention, "b_O")
        cfg = getattr(self._module, "cfg", None)
        after = getattr(block, "ln1_post", None)
        before = None if self.normalises_after else getattr(block, "ln1", None)
        names = [f"blocks.{layer}.{name}" for name in ("attn.o.hook_out", "attn.hook_out", "hook_attn_out")]
        return AttentionParts(
            layer=layer,
            site=next(name for name in names if name in hook_points(self._root)),
            heads=heads,
            kv_heads=getattr(cfg, "n_key_value_heads", None) or heads,
            d_head=d_head,
            W_V=float_values(W_V, "W_V").repeat_interleave(repeat, 0),
            b_V=None if b_V is None else float_values(b_V, "b_V").reshape(-1, d_head).repeat_interleave(repeat, 0),
            W_O=float_values(W_O, "W_O"),
            b_O=None if b_O is None else float_values(b_O, "b_O"),
            norm=before if isinstance(before, nn.Module) else nn.Identity(),
            after=after if isinstance(after, nn.Module) else None,
        )

    def _output_weight(self, attention: Any) -> Tensor | None:
        """W_O by head; of a bridge from the map inside it, as that of version 3 reads it the wrong way round."""
        W_O = _weight(attention, "W_O")
        inside = getattr(getattr(attention, "o", None), "original_component", None)
        if W_O is None or not isinstance(inside, nn.Module):
            return W_O
        weight = affine(self._root, inside)[0].T
        return weight.reshape(W_O.shape[0], -1, weight.shape[1])

    def _listen(self, layer: int, run: dict[str, Tensor]) -> list[Any]:
        attention = self._module.blocks[layer].attn

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = first_argument(args, kwargs)
            if given is not None and given.ndim != 3:
                raise ConfigError(
                    f"{self._title} gives every head its own input (use_split_qkv_input). Turn that off to read its "
                    "attention."
                )
            if given is not None:
                run["x_normed"] = given

        def pattern(module: nn.Module, args: Any, output: Any) -> None:
            run["pattern"] = output

        return [
            attention.register_forward_pre_hook(before, with_kwargs=True),
            attention.hook_pattern.register_forward_hook(pattern),
        ]


def _weight(owner: Any, name: str) -> Tensor | None:
    try:
        value = getattr(owner, name, None)
    except (AttributeError, RuntimeError, ValueError):  # a bridge raises its own for what the model does not have
        return None
    return value if isinstance(value, torch.Tensor) else None
