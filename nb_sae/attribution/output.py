"""What a number of a model's output owes to each latent of a dictionary: by gradient, along a path, or by removing it.

Latents are held as constants: z is what the dictionary makes of the rows as they are, and what is asked is what the
output owes to the directions it writes, x̂ = z W_dec + b_dec, not to the encoder. Decoding is linear in z for every
dictionary, also for one that encodes in rounds; with `row_norm` the scale of each row is held as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from nb_sae.attribution.batches import Tower, tower_of
from nb_sae.attribution.faithfulness import faithfulness
from nb_sae.attribution.output_metrics import Metric, OutputMetric, bound
from nb_sae.attribution.readout import Code, Readout
from nb_sae.attribution.schema import ATTRIBUTED, ATTRIBUTED_TOKENS
from nb_sae.errors import ConfigError
from nb_sae.models.contexts import Batch
from nb_sae.models.tokens import PADDING
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.edits import latent_number, listed
from nb_sae.sae.origin import check_model
from nb_sae.types import Tokens

Method = Literal["gradient", "integrated", "ablation"]
STEPS = 16
"""Points of the path of method "integrated": Gauss–Legendre, exact for polynomials up to degree 31."""
BATCH = 8
"""Contexts per forward pass."""
PER_TOKEN = 64
"""Latents of each token that are listed, the strongest by |attribution|; `latents` counts all of them."""
SPELLED = 64
"""Texts whose tokens are spelled in `about`."""
MOST_ABLATED = 1024
"""Active latents of one batch beyond which method "ablation" asks for a choice: each one is a forward pass."""


@dataclass(frozen=True, repr=False)
class Attribution:
    """What a metric owes to the latents of a dictionary, summed over inputs."""

    latents: pl.DataFrame
    """`schema.ATTRIBUTED`, strongest first: every latent that is active in these inputs, or those asked for."""
    tokens: pl.DataFrame
    """`schema.ATTRIBUTED_TOKENS`: the strongest latents of each token, and a line for its reconstruction error (latent
    and activation null). Empty for method "ablation", which takes a latent off all tokens at once."""
    about: Mapping[str, Any]
    """Method, metric, site, model, inputs, rows, and sums over the inputs: `value` of the metric; `error`, the share of
    the reconstruction error; `bias`, that of `b_dec` (gradient only); `none`, the metric with all latents at 0, and
    `gap`, the sum of the attributions less value − none (both of method "integrated" only). `tokens` spells the
    positions of the first texts, by input. `note` says what is degenerate, or nothing."""
    readout: Readout = field(compare=False)
    """How to run the model again."""

    def faithfulness(
        self,
        counts: int | Sequence[int] | None = None,
        *,
        fill: Literal["zero", "mean"] = "zero",
        orders: int = 20,
        seed: int = 0,
    ) -> pl.DataFrame:
        """How much of the metric the n strongest latents bring back, beside n latents in random order.

        The other latents of `latents` are set to 0 (`fill="zero"`) or to their mean over the rows of these inputs
        (`"mean"`); the error term and latents that are not listed stay as they are. 1 is the metric with all of them, 0
        with none; over several inputs it is the ratio of sums.

        Args:
            counts: How many to keep; None: 0, 1, 2, 4, … and all.
            fill: What the others become.
            orders: Random orders of the same latents: their mean and their 2.5th and 97.5th percentile.
            seed: Of the random orders.

        Returns:
            `schema.FAITHFULNESS`. It costs counts · (1 + orders) forward passes.

        Raises:
            ConfigError: no latent is active, or taking all of them off leaves the metric as it is.
        """
        order = self.latents.filter(pl.col("rows") > 0)["latent"].to_numpy()
        return faithfulness(self.readout, order, counts, fill=fill, orders=orders, seed=seed)

    def __repr__(self) -> str:
        about = self.about
        note = f"; {about['note']}" if about["note"] else ""
        return (
            f"Attribution({about['metric']} = {about['value']:.4g} over {about['inputs']:,} inputs, {about['method']}: "
            f"{self.latents.height:,} latents of {about['site']!r}, error {about['error']:+.3g}{note})"
        )


def attribute(
    model: Any,
    dictionary: Dictionary,
    inputs: Any,
    metric: OutputMetric | Metric,
    *,
    method: Method = "gradient",
    steps: int = STEPS,
    latents: int | Iterable[int] | None = None,
    site: str | None = None,
    tokens: Tokens = "all",
    special_tokens: bool = False,
    keep_error: bool = True,
    per_token: int | None = PER_TOKEN,
    batch: int = BATCH,
) -> Attribution:
    """What a number of the output owes to each latent.

    "gradient" takes z_i D_i·∂m/∂x̂ in one backward pass: exact where the output is linear in the rows, else the first
    order. "integrated" takes the mean of that gradient along the path from z = 0 to z, all latents of all tokens
    together: the sum over latents is m(all) − m(none), within `about["gap"]`. "ablation" is m(all) less m without
    latent i, by one forward pass per latent: exact for each latent alone, while their sum is nothing in particular. The
    path is for sharing out what all latents do; to rank single ones the gradient is as good or better
    (`benchmarks/attribution.py`).

    The reconstruction error stays in the model unless `keep_error` is False (then x̂ takes the place of x). Its share is
    its own line: (x − x̂)·∂m/∂x, in "integrated" with the mean gradient and outside of the sum, in "ablation"
    m(x) − m(x̂) for all tokens together.

    Memory grows with `batch` and with the lines of `.tokens`, not otherwise with the number of inputs.

    Args:
        model: From `load_lm` or `load_clip`.
        dictionary: Of a site of it; its latents.
        inputs: `Inputs`, a text or texts, a picture or pictures, token ids `(context, position)`, or pixels
            `(context, 3, h, w)`. Each is one context.
        metric: `logit_difference(…)`, `log_prob(…)`, `cosine_to(…)`, or a function of the output for one input that
            gives one number: it gets logits `(position, vocabulary)` or an embedding `(embed_dim,)`.
        method: See above.
        steps: Points of the path of "integrated"; each is a forward and a backward pass.
        latents: Which to report; None: all that are active. "ablation" wants a choice where many are.
        site: Where; None: where the dictionary was trained.
        tokens: Whose latents count, as in a store: all, "cls" (prefix tokens of pictures) or "patches" (all but those).
            The rows of other tokens stay as they are.
        special_tokens: Whether those of BOS, EOS, CLS and SEP of texts count; a store leaves them out too.
        keep_error: Whether the model goes on with x, or with x̂ alone.
        per_token: Lines of each token in `.tokens`; None: all.
        batch: Contexts per forward pass.

    Raises:
        ConfigError: another model than the dictionary's, a transcoder, no site, an unknown method or latent, a metric
            without gradient, an encoder asked for the next token, no inputs, or too many latents to ablate.
        HookError: the model has no such site.
        ShapeError: another width, or a metric that gives no single number.
        InputError: an empty prompt, or one longer than the context.
        NonFiniteError: the metric or its gradient is NaN or infinite.

    Source:
        Nanda 2023, Attribution patching; Marks et al. 2024, Sparse feature circuits, arXiv:2403.19647 (with the error
        as a node); Sundararajan et al. 2017, arXiv:1703.01365.
    """
    if method not in ("gradient", "integrated", "ablation"):
        raise ConfigError(f"method={method!r} is not known. Use 'gradient', 'integrated' or 'ablation'.")
    check_model(model, dictionary, site)
    if not isinstance(steps, int) or steps < 1 or (per_token is not None and per_token < 0):
        raise ConfigError(f"steps={steps!r}, per_token={per_token}: expected at least 1 step and 0 lines.")
    chosen = None if latents is None else [latent_number(one, None, dictionary.d_sae) for one in listed(latents)]
    which = {"tokens": tokens, "special_tokens": special_tokens}
    tower = tower_of(model, _site(dictionary, site), inputs, batch=batch, d_in=dictionary.d_in, **which)
    label, function = bound(metric, model)
    readout = Readout(tower, dictionary, function, label, keep_error)
    sums = _Sums(dictionary.d_sae, chosen, per_token)
    for one in tower:
        if method == "gradient":
            _by_gradient(readout, one, sums)
        elif method == "integrated":
            _along_path(readout, one, sums, steps)
        else:
            _by_ablation(readout, one, sums)
    about = {
        "method": method,
        "metric": label,
        "site": tower.site,
        "model": tower.model.name,
        "inputs": tower.inputs,
        "rows": sums.count,
        "counted": tokens,
        "tokens": _spelled(tower),
        "keep_error": keep_error,
        "steps": steps if method == "integrated" else None,
        **{name: sums.totals.get(name) for name in ("value", "error", "bias", "none", "gap")},
        "note": sums.note(),
    }
    return Attribution(sums.latents_frame(), sums.tokens_frame(), about, readout)


def _by_gradient(readout: Readout, batch: Batch, sums: _Sums) -> None:
    values, code, gradient = readout.gradient(batch)
    sums.add(batch, code, code.along(gradient), _error_share(readout, code, gradient), value=values)
    bias = (gradient * code.scale) @ readout.dictionary.b_dec
    sums.total("bias", bias)


def _along_path(readout: Readout, batch: Batch, sums: _Sums, steps: int) -> None:
    points, weights = np.polynomial.legendre.leggauss(steps)
    value, code = readout.code(batch)
    written = code.written(code.values)
    none = readout.values(batch, lambda code: readout.base(code) - written)
    mean = torch.zeros_like(code.x)
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        left_out = (1 - float(point)) * written
        gradient = readout.gradient(batch, lambda code, left_out=left_out: readout.base(code) - left_out)[2]
        mean += float(weight) * gradient
    attributions = code.along(mean)
    sums.add(batch, code, attributions, _error_share(readout, code, mean), value=value)
    sums.total("none", none)
    sums.total("gap", attributions)
    sums.total("gap", none - value)


def _by_ablation(readout: Readout, batch: Batch, sums: _Sums) -> None:
    value, code = readout.code(batch)
    active = code.indices[code.values != 0].unique().tolist()
    if sums.chosen is not None:
        active = [latent for latent in active if latent in set(sums.chosen)]
    elif len(active) > MOST_ABLATED:
        raise ConfigError(
            f"{len(active):,} latents are active in {len(batch.given)} inputs, and each would take a forward pass. "
            "Choose some by latents=, such as the first of method='gradient'."
        )
    effect = torch.zeros(readout.dictionary.d_sae, dtype=torch.float64)
    for latent in active:
        own = code.written(code.values * (code.indices == latent))
        without = readout.values(batch, lambda code, own=own: readout.base(code) - own)
        effect[latent] = (value - without).cpu().double().sum()
    error = torch.zeros(len(code.x))
    sums.add(batch, code, None, error, value=value)
    sums.attribution += effect.numpy()
    if readout.keep_error:
        sums.total("error", value - readout.values(batch, lambda code: code.x_hat))


def _error_share(readout: Readout, code: Code, gradient: Tensor) -> Tensor:
    return ((code.x - code.x_hat) * gradient).sum(-1) if readout.keep_error else torch.zeros(len(code.x))


class _Sums:
    """Attributions by latent, and the lines of the tokens, as batches come in."""

    def __init__(self, d_sae: int, chosen: Sequence[int] | None, per_token: int | None) -> None:
        self.chosen = None if chosen is None else list(dict.fromkeys(chosen))
        self.attribution, self.activation = np.zeros(d_sae), np.zeros(d_sae)
        self.rows = np.zeros(d_sae, dtype=np.int64)
        self.totals: dict[str, float] = {"value": 0.0, "error": 0.0}
        self.count = 0
        self._per_token = per_token
        self._lines: list[pl.DataFrame] = []

    def total(self, name: str, values: Tensor) -> None:
        """Add to a sum over the inputs."""
        self.totals[name] = self.totals.get(name, 0.0) + float(values.detach().cpu().double().sum())

    def add(self, batch: Batch, code: Code, attributions: Tensor | None, error: Tensor, *, value: Tensor) -> None:
        """Count the rows of a batch; without attributions, only what is active."""
        self.total("value", value)
        self.total("error", error)
        self.count += len(code.x)
        active = code.values != 0
        index = code.indices[active].cpu().numpy()
        np.add.at(self.activation, index, code.values[active].cpu().double().numpy())
        np.add.at(self.rows, index, 1)
        if attributions is not None:
            np.add.at(self.attribution, index, attributions[active].cpu().double().numpy())
            self._lines.append(self._listed(batch, code, attributions, error))

    def latents_frame(self) -> pl.DataFrame:
        """`schema.ATTRIBUTED`."""
        shown = np.flatnonzero(self.rows) if self.chosen is None else np.array(self.chosen, dtype=np.int64)
        # Of equal ones the lower number comes first.
        shown = shown[np.lexsort((shown, -np.abs(self.attribution[shown])))]
        return pl.DataFrame(
            {
                "latent": shown,
                "attribution": self.attribution[shown],
                "activation": self.activation[shown],
                "rows": self.rows[shown],
                "rank": np.arange(len(shown)),
            },
            schema=ATTRIBUTED,
        )

    def tokens_frame(self) -> pl.DataFrame:
        """`schema.ATTRIBUTED_TOKENS`, in the order of inputs and tokens, each with its strongest latent first."""
        return pl.concat(self._lines) if self._lines else ATTRIBUTED_TOKENS.to_frame()

    def note(self) -> str:
        """What is degenerate, in words."""
        if not self.rows.any():
            return "no latent is active in these inputs"
        silent = [] if self.chosen is None else [latent for latent in self.chosen if not self.rows[latent]]
        if silent:
            return f"never active in these inputs: latent {', '.join(map(str, silent[:8]))}"
        if not self.attribution.any() and not self.totals["error"]:
            return "the metric does not change with the rows of this site: every attribution is 0"
        return ""

    def _listed(self, batch: Batch, code: Code, attributions: Tensor, error: Tensor) -> pl.DataFrame:
        shown = code.values != 0
        if self.chosen is not None:
            shown &= torch.isin(code.indices, torch.tensor(self.chosen, device=shown.device))
        weight = attributions.abs().masked_fill(~shown, -1.0)
        most = weight.shape[1] if self._per_token is None else min(self._per_token, weight.shape[1])
        best = weight.topk(most, dim=-1)
        row, column = (best.values >= 0).nonzero(as_tuple=True)
        at = best.indices[row, column]
        input_id = (code.context + batch.inputs.start).numpy()
        token, row_number = code.token.numpy(), row.cpu().numpy()
        many = len(code.x)
        lines = pl.DataFrame(
            {
                "input_id": np.concatenate([input_id[row_number], input_id]),
                "token": np.concatenate([token[row_number], token]),
                "latent": [*code.indices[row, at].tolist(), *[None] * many],
                "activation": [*code.values[row, at].tolist(), *[None] * many],
                "attribution": torch.cat([attributions[row, at], error.to(attributions.device)]).cpu().double().numpy(),
            },
            schema=ATTRIBUTED_TOKENS,
        )
        return lines.sort("input_id", "token", maintain_order=True)


def _spelled(tower: Tower) -> dict[int, list[str]]:
    """The text of every position of the first texts; nothing for pictures or without a tokenizer."""
    if tower.modality == "image" or tower.model.tokenizer is None:
        return {}
    first = [(i, ids) for batch in tower.batches[:SPELLED] for i, ids in zip(batch.inputs, batch.given, strict=True)]
    return {i: tower.model.token_strings(ids[ids != PADDING].tolist()) for i, ids in first[:SPELLED]}


def _site(dictionary: Dictionary, site: str | None) -> str:
    if dictionary.is_transcoder:
        raise ConfigError(
            f"A transcoder reads {dictionary.site!r} and writes {dictionary.target or 'other rows'!r}: what it writes "
            "is not among the rows of its site. Attribute to an SAE of the site."
        )
    place = site or dictionary.site
    if place is None:
        raise ConfigError("This dictionary does not say which site it is of. Give site=, a name from hook_names().")
    return place
