"""Edits of latents: what a row becomes when some of its latents are set, shifted, scaled, clamped or removed.

Every edit keeps the reconstruction error: x' = x + (z' − z) W_dec, so an edit that changes nothing changes nothing, bit
for bit. Owns the arithmetic and the `Edit` that `ns.intervene` applies; curves and controls are in `nb_sae.concepts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from nb_sae.errors import ConfigError, ShapeError
from nb_sae.types import Edit

if TYPE_CHECKING:
    from nb_sae.sae.dictionary import Dictionary

Unit = Literal["activation", "p99"]
Latent = int | str


class Names(Protocol):
    """What turns a name into the number of a latent, such as `ConceptNames`."""

    def find(self, name: str) -> int:
        """The latent of that name; an error lists candidates."""
        ...


@dataclass(frozen=True)
class Changes:
    """What happens to some latents: z' = min(max(factor · z + shift, low), high), each `(m,)`; every latent once."""

    latents: tuple[int, ...]
    factor: tuple[float, ...]
    shift: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def of(self, z: Float[Tensor, "rows m"]) -> Float[Tensor, "rows m"]:
        """z' − z; exactly 0 where nothing changes."""
        factor, shift, low, high = (z.new_tensor(one) for one in (self.factor, self.shift, self.low, self.high))
        return torch.minimum(torch.maximum(factor * z + shift, low), high) - z

    @property
    def reads_latents(self) -> bool:
        """Whether z has to be known; a constant that is added needs no encoder."""
        return any(factor != 1 for factor in self.factor) or self.bounded

    @property
    def bounded(self) -> bool:
        """Whether a latent is clamped."""
        return any(map(math.isfinite, (*self.low, *self.high)))


class Editable:
    """What `Dictionary` can do to rows: `edit_rows` on rows at hand, `steer`, `ablate` and `clamp` in a running model.

    Latents are numbers, or names where `names` is given (`name_concepts`). Values are in the latent's own activation
    units; with `unit="p99"` they count in its 99th percentile over the rows on which it is active, which `analysis`
    knows. A latent may be taken below 0 by `set` and `add`, where no row of the model takes it: that is the caller's
    wish. Gradients pass through an edit as if it were a constant.

    Raises (all of them):
        ConfigError: no such latent, a value that is not finite, a latent that is changed twice, a transcoder (its
            decoder writes to another site), no site, or a percentile of a latent that is never active.
        ShapeError: rows of another width.
    """

    site: str | None

    def edit_rows(
        self: Any,
        x: Float[Tensor, "*rows d_in"],
        *,
        set: Mapping[Latent, float] | None = None,  # noqa: A002 (the users' word)
        add: Mapping[Latent, float] | None = None,
        scale: Mapping[Latent, float] | None = None,
        remove: Iterable[Latent] = (),
        clamp: Mapping[Latent, tuple[float | None, float | None]] | None = None,
        unit: Unit = "activation",
        analysis: Any = None,
        names: Names | None = None,
    ) -> Float[Tensor, "*rows d_in"]:
        """Rows in model units with latents changed and the error term kept; `(d_in,)`, `(rows, d_in)` or deeper.

        Args:
            x: Rows as the model gives them, not normalised.
            set: Latent → the activation it gets.
            add: Latent → what is added to its activation, also where it is 0.
            scale: Latent → what its activation is multiplied with. It has no unit.
            remove: Latents that become 0.
            clamp: Latent → lowest and highest activation; None: no bound on that side.
            unit: Of `set`, `add` and `clamp`.
            analysis: Where percentiles come from, for `unit="p99"`.
            names: What knows latents by name.
        """
        asked = {"set": set, "add": add, "scale": scale, "remove": remove, "clamp": clamp}
        return apply_changes(self, x, make_changes(self, asked, unit=unit, analysis=analysis, names=names))

    def steer(
        self: Any,
        latent: Latent | Sequence[Latent],
        *,
        add: float | None = None,
        set: float | None = None,  # noqa: A002 (the users' word)
        scale: float | None = None,
        unit: Unit = "activation",
        analysis: Any = None,
        names: Names | None = None,
        site: str | None = None,
    ) -> Edit:
        """An edit for `ns.intervene`: one of `add`, `set` and `scale` for a latent or several.

        Every row of the site is edited: of a text or of patches, each token.

        Args:
            latent: Which.
            add: What is added to the activation in every row.
            set: The activation in every row.
            scale: What the activation is multiplied with.
            unit: Of `add` and `set`.
            analysis: Where percentiles come from, for `unit="p99"`.
            names: What knows latents by name.
            site: Where; None: where the dictionary was trained.
        """
        given = {what: value for what, value in (("add", add), ("set", set), ("scale", scale)) if value is not None}
        if len(given) != 1:
            raise ConfigError(f"steer was given {', '.join(given) or 'no change'}. Give one of add=, set=, scale=.")
        ((what, value),) = given.items()
        asked = {what: dict.fromkeys(listed(latent), value)}
        return _edit(self, make_changes(self, asked, unit=unit, analysis=analysis, names=names), site, what, value)

    def ablate(
        self: Any, latents: Latent | Iterable[Latent], *, names: Names | None = None, site: str | None = None
    ) -> Edit:
        """An edit for `ns.intervene` that removes what these latents add to every row of the site."""
        return _edit(self, make_changes(self, {"remove": listed(latents)}, names=names), site, "ablate", 0)

    def clamp(
        self: Any,
        latent: Latent | Sequence[Latent],
        low: float | None = None,
        high: float | None = None,
        *,
        unit: Unit = "activation",
        analysis: Any = None,
        names: Names | None = None,
        site: str | None = None,
    ) -> Edit:
        """An edit for `ns.intervene` that keeps the activation between `low` and `high`; None: no bound there."""
        asked = {"clamp": dict.fromkeys(listed(latent), (low, high))}
        changes = make_changes(self, asked, unit=unit, analysis=analysis, names=names)
        return _edit(self, changes, site, "clamp", f"{low} … {high}")


@torch.no_grad()
def activations_of(
    dictionary: Dictionary, x: Float[Tensor, "rows d_in"], latents: Sequence[int]
) -> Float[Tensor, "rows m"]:
    """Activations of a few latents by the trained rule, without holding all of them; on the dictionary's device."""
    values, indices = dictionary.encode(x, sparse=True)
    column = torch.full((dictionary.d_sae,), len(latents), dtype=torch.long, device=indices.device)
    column[list(latents)] = torch.arange(len(latents), device=indices.device)
    # The last column takes what nobody asked for.
    z = values.new_zeros(len(x), len(latents) + 1).scatter_add_(1, column[indices], values)
    return z[:, :-1]


def moved(
    dictionary: Dictionary, x: Float[Tensor, "rows d_in"], latents: Sequence[int], delta: Float[Tensor, "rows m"]
) -> Float[Tensor, "rows d_in"]:
    """x + delta W_dec for these latents, times the scale of the row where the dictionary normalises rows."""
    with torch.no_grad():
        step = delta.to(dictionary.device) @ dictionary.W_dec[list(latents)]
        if dictionary.row_norm is not None:
            step = step * dictionary.row_scale(x)
    return x + step.to(x.device, x.dtype)


def apply_changes(dictionary: Dictionary, x: Tensor, changes: Changes) -> Tensor:
    """Rows with these changes, in the shape, dtype and on the device in which they came."""
    if dictionary.is_transcoder:
        raise ConfigError(
            f"A transcoder reads {dictionary.site!r} and writes {dictionary.target or 'other rows'!r}: its latents "
            "have no direction among the rows it reads. Edit with an SAE of the site."
        )
    if x.ndim < 1 or x.shape[-1] != dictionary.d_in:
        raise ShapeError(f"Rows of shape {tuple(x.shape)} were given; this dictionary takes (…, {dictionary.d_in}).")
    if not changes.latents or not x.numel():
        return x
    rows = x.reshape(-1, dictionary.d_in).to(torch.promote_types(x.dtype, torch.float32))
    if changes.reads_latents:
        delta = changes.of(activations_of(dictionary, rows, changes.latents))
    else:
        delta = torch.tensor([changes.shift], dtype=torch.float32, device=dictionary.device).expand(len(rows), -1)
    return moved(dictionary, rows, changes.latents, delta).reshape(x.shape).to(x.dtype)


def make_changes(
    dictionary: Dictionary,
    asked: Mapping[str, Any],
    *,
    unit: Unit = "activation",
    analysis: Any = None,
    names: Names | None = None,
) -> Changes:
    """What `edit_rows` was asked for, by number and in activation units; `asked` has its arguments by name."""
    if unit not in ("activation", "p99"):
        raise ConfigError(f"unit={unit!r} is not known. Use 'activation' or 'p99'.")
    chosen: dict[int, tuple[float, float, float, float]] = {}
    for what, given in asked.items():
        if given is not None and what != "remove" and not isinstance(given, Mapping):
            raise ConfigError(f"{what}={given!r}: give a mapping from latents to values, such as {what}={{12: 3.0}}.")
        for which in listed(given) if what == "remove" else given or ():
            latent = latent_number(which, names, dictionary.d_sae)
            if latent in chosen:
                raise ConfigError(f"Latent {latent} is changed twice ({which!r} under {what}=). Name it once.")
            value = given[which] if isinstance(given, Mapping) else None
            factor = 1.0
            if unit == "p99" and what in ("set", "add", "clamp"):
                factor = percentile(analysis, latent)
            chosen[latent] = _rule(what, value, factor)
    factor, shift, low, high = zip(*chosen.values(), strict=True) if chosen else ((), (), (), ())
    return Changes(tuple(chosen), factor, shift, low, high)


def latent_number(which: Latent, names: Names | None, d_sae: int) -> int:
    """The number of a latent that is given by number or by name."""
    if isinstance(which, str):
        if names is None:
            raise ConfigError(f"Latent {which!r} is a name; give names= (from name_concepts), or its number.")
        which = names.find(which)
    if isinstance(which, bool) or not isinstance(which, int | np.integer):
        raise ConfigError(f"A latent was given as {which!r}; expected its number 0 … {d_sae - 1}, or its name.")
    if not 0 <= which < d_sae:
        raise ConfigError(f"There is no latent {which}; this dictionary has 0 … {d_sae - 1}.")
    return int(which)


def percentile(analysis: Any, latent: int, share: float = 0.99) -> float:
    """The activation below which `share` of the active rows lie, from the histogram in `analysis.latents`.

    It is read within one bin of that histogram, as if activations were spread evenly in it.
    """
    if analysis is None:
        raise ConfigError("unit='p99' counts in percentiles of the data; give analysis= (from ns.analyze).")
    frame = analysis.latents.filter(analysis.latents["latent"] == latent)
    if not frame.height or not frame["active_rows"][0]:
        raise ConfigError(f"Latent {latent} is never active in the analysis, so it has no 99th percentile.")
    counts = np.asarray(frame["histogram"][0].to_list(), dtype=np.float64)
    reached = np.concatenate([[0.0], counts.cumsum() / counts.sum()])
    edges = np.linspace(0.0, frame["histogram_max"][0], len(counts) + 1)
    at = int(np.searchsorted(reached, share, side="left"))
    part = (share - reached[at - 1]) / (reached[at] - reached[at - 1])
    return float(min(edges[at - 1] + part * (edges[at] - edges[at - 1]), frame["max"][0]))


def listed(latents: Latent | Iterable[Latent] | None) -> list[Latent]:
    """One latent or several, as a list."""
    if latents is None:
        return []
    if isinstance(latents, int | np.integer | str):
        return [latents]  # pyright: ignore[reportReturnType]
    return list(latents)


def _rule(what: str, value: Any, unit: float) -> tuple[float, float, float, float]:
    """Factor, shift and bounds of one change; `unit` is how many activation units one of `value` is."""
    if what == "remove":
        return 0.0, 0.0, -math.inf, math.inf
    if what == "clamp":
        low, high = value
        low = -math.inf if low is None else unit * _finite(what, low)
        high = math.inf if high is None else unit * _finite(what, high)
        if low > high or (math.isinf(low) and math.isinf(high)):
            raise ConfigError(f"clamp to {value[0]} … {value[1]}: give low= or high=, and low not above high.")
        return 1.0, 0.0, low, high
    number = _finite(what, value)
    factor, shift = {"set": (0.0, unit * number), "add": (1.0, unit * number), "scale": (number, 0.0)}[what]
    return factor, shift, -math.inf, math.inf


def _finite(what: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{what} got the value {value!r}; expected a finite number.")
    return number


def _edit(dictionary: Dictionary, changes: Changes, site: str | None, what: str, value: Any) -> Edit:
    place = site or dictionary.site
    if place is None:
        raise ConfigError("This dictionary does not say which site it is of. Give site=, a name from hook_names().")
    if dictionary.is_transcoder:
        apply_changes(dictionary, torch.zeros(0, dictionary.d_in), changes)  # refuses
    numbers = ", ".join(map(str, changes.latents))
    label = f"ablate latent {numbers}" if what == "ablate" else f"{what} {value} on latent {numbers}"
    return Edit(place, lambda x: apply_changes(dictionary, x, changes), label)
