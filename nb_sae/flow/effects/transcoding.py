"""Two dictionaries as a transcoder: rows of a later site from the latents of an earlier one, by way of matching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nb_sae.errors import ConfigError, ShapeError
from nb_sae.flow.links.matching import nearest_rows
from nb_sae.flow.links.permutation import mean_activations
from nb_sae.flow.schema import TRANSCODED
from nb_sae.flow.settings import check_whole
from nb_sae.flow.sources import Flow, check_sites, checked_stores, dictionary_at, sources_of
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.metrics.alignment import align
from nb_sae.sae.metrics.reconstruction import RunningQuality
from nb_sae.sae.metrics.rows import rows_at_a_time
from nb_sae.sae.model import decode_sparse
from nb_sae.store.view import StoredRows

_NAMES = {"cosine": "top1", "permutation": "permutation", "correlation": "correlation"}
"""Rule of a flow → what the table calls it."""


@dataclass(frozen=True)
class _Carry:
    """Where each source latent goes and how much of it, `(sources, m)`."""

    targets: Int[Tensor, "sources m"]
    weights: Float[Tensor, "sources m"]


@torch.no_grad()
def transcode(
    flow: Flow,
    dictionaries: Mapping[str, Dictionary],
    stores: Mapping[str, StoredRows],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    others: Sequence[Flow] = (),
    top: int = 5,
    fold: bool = False,
    seed: int = 0,
    chunk_rows: int | None = None,
    progress: bool = True,
) -> pl.DataFrame:
    """How much of the rows of a later site the latents of an earlier one explain when each is handed to its match.

    x̂_B = Σ_i z_i w_ij d_j + b_B over the matches j of source latent i. "top1": the target with the largest cosine of
    decoder rows. "topk": the `top` largest with a positive cosine, which share the activation in proportion to it.
    "permutation": one partner each, by the nearest free pair (a lower bound of the best assignment), or from a flow
    with that rule. "correlation": from a flow with that rule. "random": every source to a target drawn by chance
    without repetition, the null. `explained_own` is what the target's own dictionary explains. Memory does not grow
    with the number of rows.

    Args:
        flow: Whose residual sites are paired.
        dictionaries: Those from which it was made.
        stores: Rows of every site, collected in one call.
        pairs: (source site, target site) of one width and the same rows; None: every residual site with the one before.
        others: Flows of the same dictionaries by other rules, for "permutation" and "correlation".
        top: Targets of "topk".
        fold: Bring each activation to the scale of its target by the ratio of their mean activations over the same rows
            (the folding of the paper), which costs one more pass. It helps where the residual stream grows from block
            to block, and harms where matches are weak: wrong latents then get louder.
        seed: Of "random".
        chunk_rows: Rows encoded at a time; None: what fits.
        progress: Show the progress.

    Returns:
        `schema.TRANSCODED`; `explained` is null where all rows of the target are equal.

    Raises:
        ConfigError: a site that is not there, or a dictionary with normalised rows.
        ShapeError: two sites of other widths.
        StoreError: a site without a store, or stores with other rows.

    Source:
        Laptev et al. 2025, Analyze Feature Flow, appendix on pairs of SAEs as transcoders.
    """
    check_whole(1, top=top)
    check_whole(seed=seed)
    if not isinstance(others, Sequence):
        raise ConfigError(f"others is a {type(others).__name__}; expected a list of flows, such as others=[flow].")
    for one in (flow, *others):
        check_sites(one, ())
    wanted = _pairs(flow) if pairs is None else list(pairs)
    if not wanted:
        raise ConfigError(f"No residual site of the flow ({', '.join(flow.sites)}) has another before it. Give pairs=.")
    for pair in wanted:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ConfigError(f"pairs= holds {pair!r}; expected (source site, target site).")
        _check_pair(flow, dictionaries, *pair)
    rows = checked_stores(stores, dictionaries, dict.fromkeys(site for pair in wanted for site in pair))
    lines = []
    with progress_bar(sum(len(rows[b]) for _, b in wanted), "rows", "transcoding", enabled=progress) as bar:
        for source, target in wanted:
            a, b = dictionaries[source], dictionaries[target]
            carries = _carries(flow, others, source, target, a, b, top=top, seed=seed)
            block = rows_at_a_time(chunk_rows, a, b)
            if fold:
                means = [
                    mean_activations(dictionaries[site], rows[site], chunk_rows=block) for site in (source, target)
                ]
                carries = {rule: _folded(carry, *means) for rule, carry in carries.items()}
            quality = RunningQuality(len(carries) + 1)
            for first, stop in rows[source].chunk_spans(block):
                _add(quality, a, b, rows[source][first:stop], rows[target][first:stop], list(carries.values()))
                bar.update(stop - first)
            explained = [1 - one["fvu"] for one in quality.result()]
            lines += [
                (source, target, rule, value, explained[-1], quality.rows)
                for rule, value in zip(carries, explained, strict=False)
            ]
    return pl.DataFrame(lines, schema=TRANSCODED, orient="row").with_columns(pl.col(pl.Float64).fill_nan(None))


def _pairs(flow: Flow) -> list[tuple[str, str]]:
    lanes = dict(flow.latents.select("site", pl.col("lane").cast(pl.String)).unique().iter_rows())
    found = [(sources_of(flow, site).get("residual"), site) for site in flow.sites if lanes[site] == "residual"]
    return [(source, site) for source, site in found if source is not None]


def _check_pair(flow: Flow, dictionaries: Mapping[str, Dictionary], source: str, target: str) -> None:
    check_sites(flow, (source, target))
    a, b = (dictionary_at(dictionaries, site, flow) for site in (source, target))
    if a.d_in != b.d_in:
        raise ShapeError(
            f"{source!r} has width {a.d_in}, {target!r} {b.d_in}: their directions cannot be compared. Pair two sites "
            "of the residual stream."
        )
    for site, one in ((source, a), (target, b)):
        if one.row_norm is not None:
            raise ConfigError(
                f"The dictionary of {site!r} normalises every row ({one.row_norm}): the norm of a row of one site is "
                "not known from the latents of the other. Use dictionaries without row_norm."
            )


def _carries(
    flow: Flow, others: Sequence[Flow], source: str, target: str, a: Dictionary, b: Dictionary, *, top: int, seed: int
) -> dict[str, _Carry]:
    """Rule → where each source latent goes."""
    near = nearest_rows(a.W_dec, b.W_dec, top)
    share = near.cosines.clamp_min(0)
    share = share / share.sum(1, keepdim=True).clamp_min(1e-12)
    one = torch.ones(a.d_sae, 1)
    carries = {"top1": _Carry(near.sources[:, :1], one), "topk": _Carry(near.sources, share)}
    given = {
        _NAMES[str(other.about.get("rule"))]: other for other in (flow, *others) if other.about.get("rule") in _NAMES
    }
    for rule in ("permutation", "correlation"):
        if rule in given:
            carries[rule] = _of_flow(given[rule], source, target, a.d_sae)
    if "permutation" not in carries:
        matched = align(a, b, method="greedy")
        partner = torch.full((a.d_sae,), -1, dtype=torch.long)
        partner[matched.first.cpu()] = matched.second.cpu()
        carries["permutation"] = _partners(partner)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.cat([torch.randperm(b.d_sae, generator=generator) for _ in range(-(-a.d_sae // b.d_sae))])[: a.d_sae]
    return {**carries, "random": _Carry(drawn[:, None], one)}


def _of_flow(flow: Flow, source: str, target: str, sources: int) -> _Carry:
    """Of each source latent the target latent for which it is the best source with the largest score."""
    between = (pl.col("source_site") == source) & (pl.col("target_site") == target) & (pl.col("rank") == 0)
    best = flow.edges.filter(between).sort("cosine", descending=True).unique("source_latent", keep="first")
    if best.is_empty():
        raise ConfigError(f"The flow by {flow.about.get('rule')!r} does not match {source!r} with {target!r}.")
    partner = torch.full((sources,), -1, dtype=torch.long)
    partner[torch.from_numpy(best["source_latent"].to_numpy().astype("int64"))] = torch.from_numpy(
        best["target_latent"].to_numpy().astype("int64")
    )
    return _partners(partner)


def _partners(partner: Int[Tensor, " sources"]) -> _Carry:
    """One target each; −1: none, and the activation goes nowhere."""
    return _Carry(partner.clamp_min(0)[:, None], (partner >= 0).float()[:, None])


def _folded(carry: _Carry, mean_a: Tensor, mean_b: Tensor) -> _Carry:
    ratio = mean_b[carry.targets] / torch.where(mean_a > 0, mean_a, torch.inf)[:, None]
    return _Carry(carry.targets, carry.weights * ratio)


def _add(
    quality: RunningQuality, a: Dictionary, b: Dictionary, x_a: Tensor, x_b: Tensor, carries: Sequence[_Carry]
) -> None:
    """One chunk of rows, reconstructed by every rule and by the target's own dictionary."""
    values, latents = (one.cpu() for one in a.encode(x_a, sparse=True))
    W_dec, b_dec = b.W_dec.cpu(), b.b_dec.cpu()
    x_hats = [
        b_dec
        + decode_sparse(
            (values[..., None] * carry.weights[latents]).flatten(1), carry.targets[latents].flatten(1), W_dec
        )
        for carry in carries
    ]
    quality.add(
        x_b, [*x_hats, b.reconstruct(x_b).cpu()], [torch.zeros(len(x_b), dtype=torch.long)] * (len(carries) + 1)
    )
