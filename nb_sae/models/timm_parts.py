"""The parts of timm image towers inside open_clip: ViT blocks of SigLIP and its like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nb_sae.errors import ConfigError
from nb_sae.models.tower_parts import AttentionParts, BlockParts, Parts
from nb_sae.models.weights import InFloat, acts, affine, first_argument, float_weight

_STACK = "visual.trunk.blocks"


class TimmParts(Parts):
    """`visual.trunk.blocks` of a timm ViT, with `visual.head` after it."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, "image", "timm_image")
        self._trunk: Any = model.module.visual.trunk
        self._head: Any = model.module.visual.head

    @cached_property
    def blocks(self) -> tuple[BlockParts, ...]:
        """The sites of every block, first to last."""
        found = []
        for i, block in enumerate(self._trunk.blocks):
            root = f"{_STACK}.{i}"
            attention = "ls1" if acts(block, "ls1") else "attn"
            mlp = "ls2" if acts(block, "ls2") else "mlp"
            found.append(
                BlockParts(
                    layer=i,
                    residual=root,
                    attention=f"{root}.{attention}" if hasattr(block, "attn") else None,
                    mlp=f"{root}.{mlp}" if hasattr(block, "mlp") else None,
                )
            )
        return tuple(found)

    @property
    def final_norm(self) -> Callable[[Tensor], Tensor] | None:
        """The norm after the last block, before the pooling."""
        return InFloat(self._trunk.norm)

    def _project(self, x: Tensor, batch: Tensor | None) -> Tensor:
        trunk, normed, pool = self._trunk, InFloat(self._trunk.norm)(x), self._pool
        if pool is None:
            return self._projected(trunk.pool(normed))
        first = 0 if getattr(trunk, "pool_include_prefix", True) else trunk.num_prefix_tokens
        return self._projected(InFloat(pool)(normed[:, first:]))

    def _lens(self, x: Tensor) -> Tensor:
        normed, pool = InFloat(self._trunk.norm)(x), self._pool
        if pool is None:
            return self._projected(normed)
        if getattr(pool, "pos_embed", None) is not None:
            raise ConfigError(
                f"{self._title} adds positions when it pools, so a token alone has no projection. Use project(x)."
            )
        return self._projected(InFloat(pool)(normed.reshape(-1, 1, x.shape[-1])).unflatten(0, x.shape[:-1]))

    @property
    def _pool(self) -> nn.Module | None:
        """The attention by which SigLIP pools."""
        return getattr(self._trunk, "attn_pool", None)

    def mlp(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Rows `(neurons, d_model)` by which neurons read and write; None for a gated or normed MLP."""
        self._require(layer)
        block = self._trunk.blocks[layer]
        mlp: Any = getattr(block, "mlp", None)
        if not all(isinstance(getattr(mlp, name, None), nn.Linear) for name in ("fc1", "fc2")) or acts(mlp, "norm"):
            return None
        W_in, W_out = affine(self._root, mlp.fc1)[0], affine(self._root, mlp.fc2)[0].T
        if W_in.shape != W_out.shape:
            return None
        return W_in, W_out * self._scale(block, "ls2")

    def _projected(self, pooled: Tensor) -> Tensor:
        trunk = self._trunk
        for step in (getattr(trunk, "fc_norm", None), trunk.head, self._head):
            pooled = InFloat(step)(pooled) if isinstance(step, nn.Module) else pooled
        return pooled

    def _read_attention(self, layer: int) -> AttentionParts:
        block = self._trunk.blocks[layer]
        attention: Any = getattr(block, "attn", None)
        plain = all(isinstance(getattr(attention, name, None), nn.Linear) for name in ("qkv", "proj"))
        if not plain or acts(attention, "norm") or getattr(attention, "gate", None) is not None:
            raise ConfigError(
                f"The attention of block {layer} of {self._title} ({type(attention).__name__}) is not plain attention "
                "with qkv and proj. Its sites can be used, its heads cannot."
            )
        heads = attention.num_heads
        W_O, b_O = affine(self._root, attention.proj)
        weight, bias = affine(self._root, attention.qkv)
        width = W_O.shape[1]
        scale = self._scale(block, "ls1").to(W_O)
        return AttentionParts(
            layer=layer,
            site=f"{_STACK}.{layer}.{'ls1' if scale.ndim else 'attn'}",
            heads=heads,
            kv_heads=heads,
            d_head=width // heads,
            W_V=weight[-width:].unflatten(0, (heads, -1)).transpose(1, 2),
            b_V=None if bias is None else bias[-width:].unflatten(0, (heads, -1)),
            W_O=(W_O.T * scale).unflatten(0, (heads, -1)),
            b_O=None if b_O is None else b_O * scale,
            norm=block.norm1,
        )

    def _listen(self, layer: int, run: dict[str, Tensor]) -> list[Any]:
        attention = self._trunk.blocks[layer].attn

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            given = first_argument(args, kwargs)
            if given is not None:
                run["x_normed"] = given

        def pattern(module: nn.Module, args: Any, output: Any) -> None:
            run["pattern"] = output

        return [
            attention.register_forward_pre_hook(before, with_kwargs=True),
            attention.attn_drop.register_forward_hook(pattern),
        ]

    @contextmanager
    def _explicit_attention(self) -> Iterator[None]:
        """Unfused attention, whose dropout is handed the pattern; set back after."""
        attentions: list[Any] = [getattr(block, "attn", None) for block in self._trunk.blocks]
        fused: list[tuple[Any, bool]] = [(one, one.fused_attn) for one in attentions if hasattr(one, "fused_attn")]
        try:
            for attention, _ in fused:
                attention.fused_attn = False
            yield
        finally:
            for attention, before in fused:
                attention.fused_attn = before

    def _scale(self, block: nn.Module, name: str) -> Tensor:
        return float_weight(self._root, getattr(block, name), "gamma") if acts(block, name) else torch.ones(())
