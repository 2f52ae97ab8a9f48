"""Direct feature attribution: what every head and every source position adds to the pre-activation of a latent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from nb_sae.attribution.attention import ReadAttention, read_attention
from nb_sae.attribution.batches import Batches
from nb_sae.attribution.schema import DIRECT, DIRECT_PRE
from nb_sae.errors import ConfigError, InputError
from nb_sae.models.contexts import Batch
from nb_sae.models.parts import heads_sum
from nb_sae.models.tokens import PADDING
from nb_sae.models.tower_parts import AttentionRun
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.edits import activations_of, latent_number, listed

MOST_LINES = 5_000_000
"""A table of more would take more than 100 MB."""


@dataclass(frozen=True, repr=False)
class DirectAttribution:
    """The pre-activation of some latents at some positions of one input, taken apart by head and source position."""

    frame: pl.DataFrame
    """`schema.DIRECT`: the contributions, without sources that a head does not attend to at all."""
    pre: pl.DataFrame
    """`schema.DIRECT_PRE`: the plain pre-activation of each latent at each target, and the part that no head gives."""
    about: Mapping[str, Any]
    """Site, layer, model, heads, positions, `tokens` (the text of each position; null for pictures), and `gap`: the
    largest |Σ contributions + bias − pre|."""

    @property
    def heads(self) -> pl.DataFrame:
        """`latent, target, head, contribution`: summed over sources; a head that gives nothing at all is left out."""
        return self._by("head")

    @property
    def sources(self) -> pl.DataFrame:
        """`latent, target, source, contribution`: summed over heads."""
        return self._by("source")

    @property
    def bias(self) -> pl.DataFrame:
        """`latent, target, bias`: what b_enc, b_dec and the attention's b_O give."""
        return self.pre.select("latent", "target", "bias")

    def _by(self, column: str) -> pl.DataFrame:
        keys = ["latent", "target", column]
        return self.frame.group_by(keys).agg(pl.col("contribution").cast(pl.Float64).sum()).sort(keys)

    def __repr__(self) -> str:
        about = self.about
        return (
            f"DirectAttribution({self.pre['latent'].n_unique()} latents of {about['site']!r} at "
            f"{self.pre['target'].n_unique()} of {about['positions']} positions by {about['heads']} heads; "
            f"sums within {about['gap']:.1g} of the pre-activation)"
        )


@torch.no_grad()
def direct_attribution(
    model: Any,
    dictionary: Dictionary,
    given: Any,
    latents: int | Iterable[int],
    *,
    targets: int | Iterable[int] | Literal["strongest", "all"] = "strongest",
    site: str | None = None,
) -> DirectAttribution:
    """Which heads, looking at which positions, make a latent fire.

    With the attention pattern held as it is, the output of an attention is a sum over heads k and sources s of
    A_k[t, s] (x_s W_V^k + b_V^k) W_O^k, and the pre-activation is linear in it: head k at source s contributes
    A_k[t, s] (x_s W_V^k + b_V^k)·(W_O^k W_enc[:, i]), and Σ over heads and sources + bias = pre. Before W_O the block
    of W_enc takes the place of W_O^k W_enc.

    What is explained is the plain pre-activation, (x − b_dec) W_enc + b_enc. A dictionary that encodes in rounds goes
    by it in its first round only, a gated one scales it after the gate. With `row_norm`, and where a norm stands
    between W_O and the site, the scale of each row is held as it is.

    Args:
        model: From `load_lm` or `load_clip`.
        dictionary: Of an attention site of it.
        given: One text, picture, row of token ids, or pixels.
        latents: Which.
        targets: Positions whose pre-activation is explained; negative ones count from the end. "strongest": of each
            latent, the position where it is largest, special tokens left out, as in a store.
        site: Where; None: where the dictionary was trained.

    Raises:
        ConfigError: another model than the dictionary's, no attention site, no such latent or position, or a table of
            too many lines.
        ShapeError: the dictionary has another width.
        InputError: not one input, an empty prompt, or one longer than the context.

    Source:
        Kissane et al. 2024, Interpreting Attention Layer Outputs with Sparse Autoencoders, arXiv:2406.17759, section 4.
    """
    read = read_attention(model, dictionary, site)
    chosen = list(dict.fromkeys(latent_number(one, None, dictionary.d_sae) for one in listed(latents)))
    if not chosen:
        raise ConfigError("No latents were given. Name at least one.")
    batches = Batches(model, read.parts.tower, given, 1)
    if len(batches) != 1:
        raise InputError("Several inputs were given; one is taken apart at a time. Give one, such as texts[0].")
    batch = batches[0]
    run = read.parts.attention_run(batch.given, [read.weights.layer])[read.weights.layer]
    taken = _Taken.of(model, read, dictionary, batch, run, chosen)
    places = [_places(targets, taken.pre[:, j], taken.real, taken.counted) for j in range(len(chosen))]
    heads, positions = run.pattern.shape[1], run.pattern.shape[3]
    lines = sum(len(one) for one in places) * heads * positions
    if lines > MOST_LINES:
        raise ConfigError(
            f"{len(chosen)} latents at these targets make {lines:,} lines; expected at most {MOST_LINES:,}. Ask for "
            "fewer latents, or for targets by number."
        )
    frame = pl.concat([taken.lines(j, latent, places[j]) for j, latent in enumerate(chosen)])
    pre = pl.concat([taken.totals(j, latent, places[j]) for j, latent in enumerate(chosen)])
    ids, spelled = batch.given[0], None
    if ids.ndim == 1 and model.tokenizer is not None:
        spelled = model.token_strings(ids[ids != PADDING].tolist())
    about = {
        "site": read.site,
        "layer": read.weights.layer,
        "model": model.name,
        "heads": heads,
        "positions": positions,
        "tokens": spelled,
        "gap": _gap(frame, pre),
    }
    return DirectAttribution(frame, pre, about)


@dataclass(frozen=True)
class _Taken:
    """One input at an attention, as its latents read it: m latents, one column each."""

    pattern: Float[Tensor, "heads dst src"]
    read_values: Float[Tensor, "heads src m"]
    """v_s·(W_O^k W_enc): what each source would give by full attention."""
    factor: Float[Tensor, " dst"]
    """What norms after the heads multiply each row with."""
    bias: Float[Tensor, "dst m"]
    pre: Float[Tensor, "dst m"]
    activation: Float[Tensor, "dst m"]
    real: list[int]
    """Positions that hold a token."""
    counted: list[int]
    """Those of them that hold no special one; all where there is no other."""

    @classmethod
    def of(
        cls,
        model: Any,
        read: ReadAttention,
        dictionary: Dictionary,
        batch: Batch,
        run: AttentionRun,
        latents: list[int],
    ) -> _Taken:
        own = read.weights
        values = torch.einsum("sd,hdk->hsk", run.x_normed[0], own.W_V)
        values = values if own.b_V is None else values + own.b_V[:, None]
        output = heads_sum(own, run)[0]
        if read.before_output:
            x = torch.einsum("hts,hsk->thk", run.pattern[0], values).flatten(1)
        else:
            x = model.capture_rows(batch.given, [read.site], read.parts.tower)[read.site][0].float()
        scale = _after_scale(read, output, x)
        W, constant, row_factor = _plain_encoder(dictionary, x, latents)
        W = W.to(x)
        attention_bias = 0.0
        if own.b_O is not None and not read.before_output:
            attention_bias = (scale * row_factor)[:, None] * (own.b_O @ read.gained(W))
        ids = batch.given[0]
        real = (ids != PADDING).nonzero().flatten().tolist() if ids.ndim == 1 else list(range(len(x)))
        kept = batch.counted((1, *x.shape))[0]
        return cls(
            pattern=run.pattern[0],
            read_values=torch.einsum("hsk,hkm->hsm", values, read.pulled_back(W)),
            factor=scale * row_factor,
            bias=attention_bias + constant.to(x).expand(len(x), -1),
            pre=row_factor[:, None] * (x @ W) + constant.to(x),
            activation=activations_of(dictionary, x, latents).to(x),
            real=real,
            counted=[place for place in real if kept[place]] or real,
        )

    def lines(self, j: int, latent: int, targets: Sequence[int]) -> pl.DataFrame:
        """`schema.DIRECT` of one latent."""
        attention = self.pattern[:, list(targets)]
        contribution = attention * self.read_values[:, None, :, j] * self.factor[list(targets)][:, None]
        head, target, source = attention.nonzero(as_tuple=True)
        frame = pl.DataFrame(
            {
                "latent": np.full(len(head), latent),
                "target": np.asarray(targets)[target.cpu().numpy()],
                "head": head.cpu().numpy(),
                "source": source.cpu().numpy(),
                "attention": attention[head, target, source].cpu().numpy(),
                "contribution": contribution[head, target, source].cpu().numpy(),
            },
            schema=DIRECT,
        )
        return frame.sort("target", "head", "source")

    def totals(self, j: int, latent: int, targets: Sequence[int]) -> pl.DataFrame:
        """`schema.DIRECT_PRE` of one latent."""
        at = list(targets)
        columns = {name: getattr(self, name)[at, j].cpu().double().numpy() for name in ("pre", "bias", "activation")}
        return pl.DataFrame({"latent": [latent] * len(at), "target": at, **columns}, schema=DIRECT_PRE)


def _plain_encoder(
    dictionary: Dictionary, x: Tensor, latents: list[int]
) -> tuple[Float[Tensor, "d_in m"], Float[Tensor, " m"], Float[Tensor, " rows"]]:
    """W, constant and factor of (factor · x) W + constant = pre; a row's mean is taken off in W."""
    W = dictionary.W_enc[:, latents]
    constant = dictionary.b_enc[latents]
    if dictionary.pre_bias:
        constant = constant - dictionary.b_dec @ W
    factor = torch.ones(len(x), device=x.device)
    if dictionary.row_norm is not None:
        scale = torch.as_tensor(dictionary.row_scale(x)).to(x.device).flatten()
        # The small number is that of Dictionary.encode.
        factor = 1 / (scale + 1e-5) if dictionary.row_norm == "layer_norm" else 1 / scale
    if dictionary.row_norm == "layer_norm":
        W = W - W.mean(0)
    return W, constant, factor


def _after_scale(read: ReadAttention, output: Tensor, x: Tensor) -> Float[Tensor, " dst"]:
    """What a norm after W_O multiplies each row with, beside its factors per dimension."""
    if read.after is None:
        return torch.ones(len(x), device=x.device)
    gained = read.gained(output.T).T
    return (x * gained).sum(-1) / gained.square().sum(-1).clamp_min(1e-30)


def _places(
    targets: int | Iterable[int] | Literal["strongest", "all"],
    pre: Float[Tensor, " dst"],
    real: list[int],
    counted: list[int],
) -> list[int]:
    if isinstance(targets, str) and targets == "all":
        return real
    if isinstance(targets, str) and targets == "strongest":
        return [counted[int(pre[counted].argmax())]]
    if isinstance(targets, str):
        raise ConfigError(f"targets={targets!r} is not known. Use 'strongest', 'all', or positions.")
    asked: list[Any] = list(listed(targets))
    wrong = [one for one in asked if not isinstance(one, int | np.integer) or not -len(real) <= one < len(real)]
    if wrong or not asked:
        raise ConfigError(f"targets={asked}: the input has positions 0 … {len(real) - 1}. Choose some of them.")
    return list(dict.fromkeys(real[one] for one in asked))


def _gap(frame: pl.DataFrame, pre: pl.DataFrame) -> float:
    keys = ["latent", "target"]
    sums = frame.group_by(keys).agg(pl.col("contribution").cast(pl.Float64).sum())
    both = pre.join(sums, on=keys, how="left").with_columns(pl.col("contribution").fill_null(0.0))
    return float(np.abs((both["contribution"] + both["bias"] - both["pre"]).to_numpy()).max())
