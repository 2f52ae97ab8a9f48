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
            attention = "ls1" if acts(block, "ls1") else "attn"
            mlp = "ls2" if acts(block, "ls2") else "mlp"
            found.append(BlockParts(i, f"{_STACK}.{i}", f"{_STACK}.{i}.{attention}", f"{_STACK}.{i}.{mlp}"))
        return tuple(found)

    @property
    def final_norm(self) -> Callable[[Tensor], Tensor] | None:
        """The norm after the last block, before the pooling."""
        return InFloat(self._trunk.norm)

    def project(self, x: Tensor, batch: Tensor | None = None) -> Tensor:
        """What the tower does with its last block: norm, pooling, heads, `(batch, embed_dim)` float32."""
        trunk = self._trunk
        normed = InFloat(trunk.norm)(x.to(self.model.device))
        if trunk.attn_pool is None:
            pooled = trunk.pool(normed)
        else:
            first = 0 if getattr(trunk, "pool_include_prefix", True) else trunk.num_prefix_tokens
            pooled = InFloat(trunk.attn_pool)(normed[:, first:])
        return self._projected(pooled)

    def final_lens(self, x: Tensor) -> Tensor:
        """Every token by itself through norm, pooling and heads, `(…, embed_dim)` float32.

        A tower that pools by attention (SigLIP) is given each token as an input of one token: what the embedding would
        be if the pooling looked at nothing else.

        Raises:
            ConfigError: a pooling that adds positions, which a token alone has not.
        """
        normed = InFloat(self._trunk.norm)(x.to(self.model.device))
        pool = self._trunk.attn_pool
        if pool is None:
            return self._projected(normed)
        if getattr(pool, "pos_embed", None) is not None:
            raise ConfigError(
                f"{self._title} adds positions when it pools, so a token alone has no projection. Use project(x)."
            )
        return self._projected(InFloat(pool)(normed.reshape(-1, 1, x.shape[-1])).unflatten(0, x.shape[:-1]))

    def mlp(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Rows `(neurons, d_model)` by which neurons read and write; None for a gated or normed MLP."""
        self._require(layer)
        block = self._trunk.blocks[layer]
        mlp = block.mlp
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
        return pooled.float()

    def _read_attention(self, layer: int) -> AttentionParts:
        block = self._trunk.blocks[layer]
        attention = block.attn
        plain = isinstance(getattr(attention, "qkv", None), nn.Linear) and isinstance(attention.proj, nn.Linear)
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
        fused = [
            (block.attn, block.attn.fused_attn) for block in self._trunk.blocks if hasattr(block.attn, "fused_attn")
        ]
        try:
            for attention, _ in fused:
                attention.fused_attn = False
            yield
        finally:
            for attention, before in fused:
                attention.fused_attn = before

    def _scale(self, block: nn.Module, name: str) -> Tensor:
        return float_weight(self._root, getattr(block, name), "gamma") if acts(block, name) else torch.ones(())
