"""The parts of open_clip's own ViT: image and text tower."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nb_sae.errors import ConfigError
from nb_sae.layers import Tower
from nb_sae.models.tower_parts import AttentionParts, BlockParts, Parts
from nb_sae.models.weights import InFloat, acts, affine, first_argument, float_weight


class OpenClipParts(Parts):
    """A tower of open_clip's residual attention blocks.

    Args:
        model: The wrapper.
        tower: `"image"` or `"text"`.
        stack: Path of the list of blocks.
        holder: The module that holds the final norm and the projection.
    """

    def __init__(self, model: Any, tower: Tower, stack: str, holder: nn.Module) -> None:
        super().__init__(model, tower, f"open_clip_{tower}")
        self._stack = stack
        self._holder: Any = holder

    @cached_property
    def blocks(self) -> tuple[BlockParts, ...]:
        """The sites of every block, first to last."""
        found = []
        for i, block in enumerate(self._list()):
            root = f"{self._stack}.{i}"
            attention = next((name for name in ("ls_1", "ln_attn") if acts(block, name)), "attn")
            mlp = "ls_2" if acts(block, "ls_2") else "mlp"
            found.append(BlockParts(i, root, f"{root}.{attention}", f"{root}.{mlp}"))
        return tuple(found)

    @property
    def final_norm(self) -> Callable[[Tensor], Tensor] | None:
        """`ln_post` of the image tower, `ln_final` of the text tower."""
        return InFloat(self._holder.ln_post if self.tower == "image" else self._holder.ln_final)

    def _project(self, x: Tensor, batch: Tensor | None) -> Tensor:
        return self._projected(self._pooled_image(x) if self.tower == "image" else self._pooled_text(x, batch))

    def _lens(self, x: Tensor) -> Tensor:
        if self.tower == "image" and self._queries is not None:
            pooled = self._pooled_image(x.reshape(-1, 1, x.shape[-1]))
            return self._projected(pooled).unflatten(0, x.shape[:-1])
        assert self.final_norm is not None
        return self._projected(self.final_norm(x))

    def mlp(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Rows `(neurons, d_model)` by which neurons read and write."""
        self._require(layer)
        block = self._list()[layer]
        if acts(block.mlp, "ln"):
            return None
        W_in, W_out = affine(self._root, block.mlp.c_fc)[0], affine(self._root, block.mlp.c_proj)[0].T
        return W_in, W_out * _layer_scale(self._root, block, "ls_2")

    def _pooled_image(self, x: Tensor) -> Tensor:
        holder = self._holder
        norm, pool, queries = InFloat(holder.ln_post), getattr(holder, "pool_type", "tok"), self._queries
        if pool not in ("tok", "avg") or (queries is not None and holder.attn_pool_contrastive is not None):
            raise ConfigError(f"{self._title} pools by {pool!r}; expected 'tok' or 'avg'. Read image_embed instead.")
        x = x if queries is None else InFloat(queries)(x)

        def pooled(y: Tensor) -> Tensor:
            return y[:, 0] if pool == "tok" else y[:, 1:].mean(dim=1)

        after = queries is None and getattr(holder, "final_ln_after_pool", False)
        return norm(pooled(x)) if after else pooled(norm(x))

    @property
    def _queries(self) -> nn.Module | None:
        """The attention by which CoCa pools."""
        return getattr(self._holder, "attn_pool", None)

    def _pooled_text(self, x: Tensor, batch: Tensor | None) -> Tensor:
        from open_clip.transformer import text_global_pool

        holder = self._holder
        if getattr(holder, "cls_emb", None) is not None:  # CoCa appends a class token and normalises after pooling
            if x.shape[1] != holder.num_pos:
                raise ConfigError(
                    f"{self._title} embeds a class token after the {holder.num_pos - 1} tokens of a text; got "
                    f"{x.shape[1]} positions. Take the rows from ns.capture, which leaves it in."
                )
            return InFloat(holder.ln_final)(x[:, -1])
        pool = getattr(holder, "text_pool_type", None) or getattr(holder, "pool_type", "argmax")
        end = getattr(holder, "text_eos_id", None) if hasattr(holder, "text_pool_type") else None
        end = getattr(holder, "eos_id", None) if end is None else end
        if pool in ("argmax", "eos"):
            if batch is None:
                raise ConfigError(
                    f"{self._title} pools at the end mark of each text; expected the token ids. Use project(x, ids)."
                )
            batch = self.model.filled(batch).to(x.device)
        return text_global_pool(InFloat(holder.ln_final)(x), batch, pool, eos_token_id=end)

    def _projected(self, pooled: Tensor) -> Tensor:
        name = "proj" if self.tower == "image" else "text_projection"
        projection = getattr(self._holder, name)
        if projection is None:
            return pooled
        if isinstance(projection, nn.Module):
            return InFloat(projection)(pooled)
        return pooled @ projection.detach().to(pooled)

    def _read_attention(self, layer: int) -> AttentionParts:
        block = self._list()[layer]
        attention = block.attn
        scaled = any(getattr(attention, name, None) is not None for name in ("head_scale", "logit_scale"))
        if scaled or acts(attention, "ln_inner") or attention.in_proj_weight is None:
            raise ConfigError(
                f"The attention of block {layer} of {self._title} scales or normalises its heads; expected plain "
                "attention. Its sites can be used, its heads cannot."
            )
        heads = attention.num_heads
        W_O, b_O = affine(self._root, attention.out_proj)
        d_head = W_O.shape[1] // heads
        W_V = float_weight(self._root, attention, "in_proj_weight")[2 * heads * d_head :]
        bias = getattr(attention, "in_proj_bias", None)
        b_V = None if bias is None else float_weight(self._root, attention, "in_proj_bias")[2 * heads * d_head :]
        scale = _layer_scale(self._root, block, "ls_1") if not acts(block, "ln_attn") else torch.ones(())
        folded = scale.ndim > 0
        return AttentionParts(
            layer=layer,
            site=f"{self._stack}.{layer}.{'ls_1' if folded else 'attn'}",
            heads=heads,
            kv_heads=heads,
            d_head=d_head,
            W_V=W_V.unflatten(0, (heads, d_head)).transpose(1, 2),
            b_V=None if b_V is None else b_V.unflatten(0, (heads, d_head)),
            W_O=(W_O.T * scale.to(W_O)).unflatten(0, (heads, d_head)),
            b_O=None if b_O is None else b_O * scale.to(b_O),
            norm=block.ln_1,
            after=block.ln_attn if acts(block, "ln_attn") else None,
        )

    def _listen(self, layer: int, run: dict[str, Tensor]) -> list[Any]:
        attention = self._list()[layer].attn

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = first_argument(args, kwargs)
            if given is None or not getattr(attention, "batch_first", True):
                raise ConfigError(
                    f"{self._title} runs its blocks as (token, batch, width); expected (batch, token, width). "
                    "Build the model with batch_first=True."
                )
            run.update(pattern=self._pattern(attention, given, kwargs.get("attn_mask")), x_normed=given)

        return [attention.register_forward_pre_hook(before, with_kwargs=True)]

    def _pattern(self, attention: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        """What torch's fused attention computes and does not show."""
        weight = float_weight(self._root, attention, "in_proj_weight")
        bias = attention.in_proj_bias
        q, k, _ = nn.functional.linear(x.float(), weight, None if bias is None else bias.float()).chunk(3, dim=-1)
        heads = (attention.num_heads, -1)
        q, k = q.unflatten(-1, heads).transpose(1, 2), k.unflatten(-1, heads).transpose(1, 2)
        q = InFloat(attention.ln_q)(q) if hasattr(attention, "ln_q") else q
        k = InFloat(attention.ln_k)(k) if hasattr(attention, "ln_k") else k
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if mask is not None:
            mask = mask if mask.ndim == 2 else mask.reshape(len(x), -1, *mask.shape[-2:])
            scores = scores.masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
        return scores.softmax(dim=-1)

    def _list(self) -> Any:
        return self._root.get_submodule(self._stack)


def _layer_scale(root: nn.Module, block: nn.Module, name: str) -> Tensor:
    """The factor per dimension of a layer scale, or 1."""
    return float_weight(root, getattr(block, name), "gamma") if acts(block, name) else torch.ones(())
