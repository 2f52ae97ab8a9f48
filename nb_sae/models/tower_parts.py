"""What the parts of a transformer look like to an analysis, whatever the library that the transformer comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nb_sae.errors import ConfigError
from nb_sae.hooks import capture, display_name
from nb_sae.layers import Tower

_AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-6}
"""How far, relative to the largest value, what is read off the weights may be from what the model gives."""
_HALF_AGREEMENT = 0.05


@dataclass(frozen=True)
class BlockParts:
    """The sites of one block; each gives what is in, or added to, the residual stream."""

    layer: int
    residual: str
    attention: str | None
    mlp: str | None


@dataclass(frozen=True)
class AttentionParts:
    """The weights of one attention, float32 on the model's device. Shared key-value heads are repeated.

    `Σ_heads Σ_src pattern · (x_normed W_V + b_V) W_O + b_O` is what `site` gives.
    """

    layer: int
    site: str
    """What W_O gives. It is the attention site of the block, except where `after` comes between the two."""
    heads: int
    kv_heads: int
    d_head: int
    W_V: Float[Tensor, "heads d_model d_head"]
    b_V: Float[Tensor, "heads d_head"] | None  # noqa: N815
    W_O: Float[Tensor, "heads d_head d_model"]
    b_O: Float[Tensor, " d_model"] | None  # noqa: N815
    norm: nn.Module
    """What is applied to the residual stream before W_V; `nn.Identity` in a block that normalises afterwards."""
    after: nn.Module | None = None
    """What normalises the output of W_O before it is added to the residual stream (Gemma 2 and 3, OLMo 2)."""


@dataclass(frozen=True)
class AttentionRun:
    """What the attention of one block read and where it looked."""

    pattern: Float[Tensor, "batch heads dst src"]
    """float32; every row sums to 1, less where the model attends to a sink."""
    x_normed: Float[Tensor, "batch src d_model"]
    """What W_V was applied to, float32."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.pattern, self.x_normed))


class Parts(ABC):
    """One tower of a model by its parts. Made by `nb_sae.models.parts.parts`.

    Weights are read when asked for and not kept. What is read is compared with what the model computes, once per
    layer, so that a model that looks like a known family and computes something else is refused.
    """

    def __init__(self, model: Any, tower: Tower, family: str) -> None:
        self.model = model
        self.tower: Tower = tower
        self.family = family
        self._proved: set[int] = set()
        self._proved_logits = False
        self._proved_additions = False
        self._proved_projection = False

    def __repr__(self) -> str:
        return f"Parts({display_name(self.model)}, {self.tower} tower, {self.family}, {len(self.blocks)} blocks)"

    # What a family says of itself.

    @cached_property
    @abstractmethod
    def blocks(self) -> tuple[BlockParts, ...]:
        """The sites of every block, first to last."""

    @abstractmethod
    def _read_attention(self, layer: int) -> AttentionParts: ...

    @abstractmethod
    def _listen(self, layer: int, run: dict[str, Tensor]) -> list[Any]:
        """Put hooks that fill `run["pattern"]` and `run["x_normed"]`; their handles."""

    @abstractmethod
    def mlp(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Rows `(neurons, d_model)` by which the neurons of an MLP read and write, float32.

        Of a gated MLP the first are those of the gate. A norm or scale between the MLP and the residual stream is
        multiplied in as far as it does not depend on the token. None where the MLP has another form (experts).
        """

    @property
    def normalises_after(self) -> bool:
        """Whether the blocks normalise the sum and not what they read, as BERT does."""
        return False

    @property
    def final_norm(self) -> Callable[[Tensor], Tensor] | None:
        """What is applied to the last residual stream before the unembedding or projection; None if nothing is."""
        return None

    def _read_unembed(self) -> tuple[Tensor, Tensor | None]:
        raise ConfigError(
            f"{self._title} has no unembedding: it ends in an embedding. Use final_lens(x) or project(x)."
        )

    softcap: float | None = None
    """Where the logits are `softcap · tanh(logits / softcap)` (Gemma 2); None where they are left alone."""

    def logits(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocabulary"]:
        """The last residual stream through the final norm and the unembedding."""
        return self._logits(x, *self.unembed)

    def _project(self, x: Tensor, batch: Tensor | None) -> Tensor:
        raise ConfigError(f"{self._title} has no projection to an embedding. Use logits(x).")

    def _lens(self, x: Tensor) -> Tensor:
        raise ConfigError(f"{self._title} has no projection to an embedding. Use logits(x).")

    # What is the same for every family.

    @property
    def unembed(self) -> tuple[Float[Tensor, "d_model vocabulary"], Float[Tensor, " vocabulary"] | None]:
        """W_U and its bias, float32, tied or not; a factor of the logits is multiplied in.

        Raises:
            ConfigError: no language-model head, or logits that are made in another way.
        """
        read = self._read_unembed()
        if not self._proved_logits:
            self._prove_logits(*read)
            self._proved_logits = True
        return read

    def project(
        self, x: Float[Tensor, "batch token d_model"], batch: Tensor | None = None
    ) -> Float[Tensor, "batch embed_dim"]:
        """What the tower does with its last block: norm, pooling, projection; float32, not normalised.

        Args:
            x: The last residual stream.
            batch: The token ids that were run, where the pooling looks for the end of a text or for its padding.

        Raises:
            ConfigError: a language model, `batch` is needed and missing, or a tower that does something else.
        """
        self._prove_projection()
        return self._project(x.to(self.model.device), batch).float()

    def final_lens(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch embed_dim"]:
        """Every token by itself through the final norm and the projection; float32, not normalised.

        A tower that pools by attention (CoCa, SigLIP) is given each token as an input of one token: what the embedding
        would be if the pooling looked at nothing else.

        Raises:
            ConfigError: a language model, or a tower that does something else than `project`.
        """
        self._prove_projection()
        return self._lens(x.to(self.model.device)).float()

    def attention(self, layer: int) -> AttentionParts:
        """The weights of the attention of one block.

        Raises:
            ConfigError: no such block, no attention in it, or one that computes something else than these weights say.
        """
        self._require(layer)
        read = self._read_attention(layer)
        if layer not in self._proved:
            self._prove_attention(read)
            self._proved.add(layer)
        return read

    @torch.no_grad()
    def attention_run(self, batch: Tensor, layers: Sequence[int]) -> dict[int, AttentionRun]:
        """Where every head looks on a batch, and what it reads.

        Args:
            batch: `(context, position)` ids, −1 on padding; or `(context, 3, h, w)` pixels.
            layers: Numbers of blocks.

        Returns:
            Layer → pattern and normed input; unpacks to `pattern, x_normed`. Rows of padding mean nothing.
        """
        runs, _ = self._attend(batch, layers, [])
        return runs

    @torch.no_grad()
    def additions(self, batch: Tensor) -> dict[int, float]:
        """How far residual_out − residual_in is from attention + MLP, by block from the second on.

        The largest difference relative to the largest value of the residual stream: about 1e-7 where attention and MLP
        are added to the stream and nothing else happens (pre-norm), large where it is normalised in between.
        """
        sites = [site for block in self.blocks for site in (block.residual, block.attention, block.mlp) if site]
        with capture(self.model, sites) as seen:
            self._forward(batch)
        found = {}
        for before, block in zip(self.blocks, self.blocks[1:], strict=False):
            added = sum(seen[site].float() for site in (block.attention, block.mlp) if site)
            change = seen[block.residual].float() - seen[before.residual].float()
            found[block.layer] = float((change - added).abs().max() / seen[block.residual].float().abs().max())
        return found

    def _attend(
        self, batch: Tensor, layers: Sequence[int], sites: Sequence[str]
    ) -> tuple[dict[int, AttentionRun], dict[str, Tensor]]:
        if not layers:
            raise ConfigError(f"layers={layers!r} names no block; expected one or more of 0 to {len(self.blocks) - 1}.")
        for layer in layers:
            self._require(layer)
        heard: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}
        # The pass ends with the last of the blocks: some models show a pattern only after the attention's output.
        ends = list(dict.fromkeys([*sites, self.blocks[max(layers)].residual]))
        with ExitStack() as installed:
            installed.enter_context(self._explicit_attention())
            for layer in layers:
                for handle in self._listen(layer, heard[layer]):
                    installed.callback(handle.remove)
            with capture(self.model, ends, stop=True) as seen:
                self._forward(batch)
        missing = [layer for layer in layers if len(heard[layer]) < 2]
        if missing:
            raise ConfigError(
                f"{self._title} does not show the attention pattern of block {missing[0]}. Load it with "
                "attn_implementation='eager'."
            )
        runs = {n: AttentionRun(run["pattern"].float(), run["x_normed"].float()) for n, run in heard.items()}
        return runs, dict(seen)

    @contextmanager
    def _explicit_attention(self) -> Iterator[None]:
        """Make the model show its attention patterns while the block runs."""
        yield

    @torch.no_grad()
    def _prove_attention(self, read: AttentionParts) -> None:
        runs, seen = self._attend(self._probe(), [read.layer], [read.site])
        expected = seen[read.site]
        off = _relative(heads_sum(read, runs[read.layer]), expected)
        if not off <= _AGREEMENT.get(expected.dtype, _HALF_AGREEMENT):
            raise ConfigError(
                f"The attention of block {read.layer} of {self._title} is not the sum of its heads as nb_sae reads "
                f"them (relative difference {off:.1g}): it does more than attend to W_V and multiply by W_O. Methods "
                "that go by head cannot explain it; use those that take a site as a whole."
            )

    @torch.no_grad()
    def prove_additions(self) -> None:
        """Raise `ConfigError` unless attention and MLP give what their block adds to the residual stream; tried once.

        Nothing is asked of a model that normalises after every addition, nor of one whose MLP gives no rows.
        """
        whole = all(block.attention and block.mlp for block in self.blocks)
        if self._proved_additions or self.normalises_after or not whole:
            return
        batch = self._probe()
        off = max(self.additions(batch).values(), default=0.0)
        dtype = next((x.dtype for x in self._root.parameters() if x.is_floating_point()), torch.float32)
        if not off <= _AGREEMENT.get(dtype, _HALF_AGREEMENT):
            raise ConfigError(
                f"Attention and MLP of {self._title} do not give what their block adds to the residual stream "
                f"(relative difference {off:.1g}): it scales them, or adds more. Take lanes='residual', or choose the "
                "sites of what is added from model.hook_names()."
            )
        self._proved_additions = True

    def _logits(self, x: Tensor, W_U: Tensor, b_U: Tensor | None) -> Tensor:
        normed = x if self.final_norm is None else self.final_norm(x)
        logits = normed.to(W_U) @ W_U
        logits = logits if b_U is None else logits + b_U
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    @torch.no_grad()
    def _prove_logits(self, W_U: Tensor, b_U: Tensor | None) -> None:
        batch, last = self._probe(), self.blocks[-1].residual
        with capture(self.model, last) as seen:
            expected = self.model.logits(batch)
        normed = seen[last] if self.final_norm is None else self.final_norm(seen[last])
        fits = normed.shape[-1] == len(W_U)  # OPT-350m projects in between
        off = _relative(self._logits(seen[last], W_U, b_U), expected) if fits else float("inf")
        if not off <= _AGREEMENT.get(expected.dtype, _HALF_AGREEMENT):
            raise ConfigError(
                f"The logits of {self._title} are not its last block through the final norm and the unembedding as "
                f"nb_sae reads them (relative difference {off:.1g}). The logit lens does not apply to it."
            )

    @torch.no_grad()
    def _prove_projection(self) -> None:
        if self._proved_projection or not self._clip:
            return
        batch, last, embed = self._probe(), self.blocks[-1].residual, f"{self.tower}_embed"
        with capture(self.model, [last, embed]) as seen:
            self._forward(batch)
        off = _relative(self._project(seen[last], batch), seen[embed])
        if not off <= _AGREEMENT.get(seen[embed].dtype, _HALF_AGREEMENT):
            raise ConfigError(
                f"{self._title} does not make {embed} of its last block as nb_sae reads it (relative difference "
                f"{off:.1g}): norm, pooling, projection. Capture {embed} itself; the lens does not apply."
            )
        self._proved_projection = True

    def _probe(self) -> Tensor:
        return self.model.probe_batch(self.tower)

    def _forward(self, batch: Tensor) -> Any:
        return self.model.forward(batch, self.tower)

    @property
    def _clip(self) -> bool:
        return "image_embed" in self.model.pseudo_sites

    @property
    def _root(self) -> nn.Module:
        return self.model.module

    @property
    def _title(self) -> str:
        return f"The {self.tower} tower of {display_name(self.model)}" if self._clip else display_name(self.model)

    def _require(self, layer: int) -> None:
        if not isinstance(layer, int) or not 0 <= layer < len(self.blocks):
            raise ConfigError(
                f"layer={layer!r} does not exist in {self._title}; expected 0 to {len(self.blocks) - 1}. "
                "Blocks are counted from 0."
            )


def _relative(given: Tensor, expected: Tensor) -> float:
    """Largest difference as a part of the largest expected value."""
    scale = expected.float().abs().max().clamp_min(1e-12)
    return float((given.float() - expected.float()).abs().max() / scale)


def heads_sum(read: AttentionParts, run: AttentionRun) -> Float[Tensor, "batch dst d_model"]:
    """What the heads give together: the output of W_O, from the weights, the pattern and what was read."""
    values = torch.einsum("bsd,hdk->bhsk", run.x_normed, read.W_V)
    values = values if read.b_V is None else values + read.b_V[:, None]
    out = torch.einsum("bhts,bhsk,hkd->btd", run.pattern, values, read.W_O)
    return out if read.b_O is None else out + read.b_O
