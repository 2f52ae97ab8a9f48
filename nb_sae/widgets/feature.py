"""The feature dashboard: every latent in a list, and the card of the chosen one.

dashboard = ns.FeatureDashboard(analysis)
dashboard = ns.FeatureDashboard(analysis, read=ns.reader(lm, dictionary))   # a text of your own, read by the kernel
dashboard.latent = 417        # or choose it in the browser and read it here
analysis.note(417, label="glasses", rating=5)   # or on the card; both show it at once
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl
import traitlets

from nb_sae.errors import WidgetError
from nb_sae.widgets import wire
from nb_sae.widgets.base import Dashboard
from nb_sae.widgets.cards import Limits, choose_saved, cut_cards

SAVED_CARDS = 64
SAVED_BYTES = 900_000
"""What the cards of a saved view may hold; with the script and the list of latents it stays below 1 MB."""
READ_CHARS = 100_000
"""A longer text of the user is refused before it reaches a tokenizer."""
READ_STRONGEST = 24
"""Strongest latents on a text of the user that an answer names."""
_SAVED_WINDOW = (40, 16)
_LIST_COLUMNS = ("latent", "density", "active_rows", "mean", "max", "level", "dead")


class Reading(Protocol):
    """What the model does with a text of the user: see `nb_sae.analysis.reading.Reading`."""

    @property
    def tokens(self) -> Sequence[str]:
        """One string per position."""
        ...

    @property
    def activations(self) -> Any:
        """`(token, latent)`, of the latents that were asked for."""
        ...

    @property
    def strongest(self) -> pl.DataFrame:
        """`latent, act, token`: the latents with the largest activation on the text, strongest first."""
        ...

    @property
    def next_token(self) -> Any:
        """`(token, latent)`: what the latent does to the log-probability of the next token; None: not known."""
        ...


class Reader(Protocol):
    """Reads a text with the model; handed in, so that dashboards know tables only: `ns.reader(lm, dictionary)`."""

    def __call__(self, text: str, latents: Sequence[int]) -> Reading:
        """Raises an `NbSaeError` with the reason for a text that cannot be read."""
        ...


class LatentNumber(traitlets.TraitType):
    """A latent's number, checked where it is set."""

    info_text = "the number of a latent"

    def validate(self, obj: Any, value: Any) -> int:
        """Raises `WidgetError` for what is no number of a latent of this dictionary."""
        try:
            number = operator.index(value)
        except TypeError:
            raise WidgetError(f"latent={value!r} is no whole number. Expected 0 … {obj.d_sae - 1}.") from None
        if isinstance(value, bool) or not 0 <= number < obj.d_sae:
            raise WidgetError(
                f"latent={value!r} is outside 0 … {obj.d_sae - 1}, the latents of this dictionary. "
                "The numbers are in analysis.latents['latent']."
            )
        return number


class FeatureDashboard(Dashboard):
    """Look at what each latent means: its histogram, density and level, and the inputs on which it is active.

    Args:
        analysis: What `ns.analyze` gives.
        latent: The latent to start with; None: the first of the saved ones.
        saved: The latents whose cards stay in the saved notebook and in the report, or how many of them. A number lets
            the levels take turns, each giving its latent with the largest maximum; see `saved_latents`.
        names: Names to show, `{latent: name}` or a frame with the columns `latent` and `name`. A label of the user
            (`analysis.note`, or typed on the card) is shown in place of a name.
        examples: Top examples of a card; each of the ten intervals shows a quarter of it.
        read: What reads a text of the user, `ns.reader(lm, dictionary)`; None: the card of a text has no field for it.

    Raises:
        WidgetError: The analysis, a latent, a reader or a name is not what is expected, or the scripts are not built.
    """

    _dashboard = "feature"

    latent = LatentNumber(default_value=0, help="The chosen latent, in both directions.").tag(sync=True)
    about = traitlets.Dict(help="Title, site, counts and rules.").tag(sync=True)
    latents_header = traitlets.Dict().tag(sync=True)
    latents = traitlets.Bytes(help="One row per latent.").tag(sync=True)
    saved_header = traitlets.Dict().tag(sync=True)
    saved = traitlets.Bytes(help="The cards of the saved latents.").tag(sync=True)
    thumbs_header = traitlets.Dict(help="Where each picture of `thumbs` ends.").tag(sync=True)
    thumbs = traitlets.Bytes(help="The pictures of the saved cards, each once.").tag(sync=True)
    notes = traitlets.Dict(
        None, allow_none=True, help="{latent: {label, rating, comment}}; None where the analysis keeps no notes."
    ).tag(sync=True)

    def __init__(
        self,
        analysis: Any,
        *,
        latent: int | None = None,
        saved: Iterable[int] | int | None = None,
        names: Mapping[int, str] | pl.DataFrame | None = None,
        examples: int = 16,
        read: Reader | None = None,
    ) -> None:
        check_analysis(type(self).__name__, analysis)
        if read is not None and not callable(read):
            raise WidgetError(f"read is a {type(read).__name__}, which reads no text. Give ns.reader(lm, dictionary).")
        if not isinstance(examples, int) or not 1 <= examples <= 256:
            raise WidgetError(f"examples={examples!r} is not between 1 and 256, the top examples that a card can show.")
        self.analysis = analysis
        self.read = read
        self.d_sae = int(analysis.d_sae)
        self.names = read_names(names, self.d_sae)
        self._limits = Limits(top=examples, interval=max(1, examples // 4))
        self.saved_latents, rule = self._choose(saved)
        start = latent if latent is not None else (self.saved_latents or [0])[0]
        start = LatentNumber().validate(self, start)
        if start not in self.saved_latents:
            self.saved_latents.append(start)
        super().__init__(latent=start, **self._state(rule), notes=read_notes(analysis))
        if self.notes is not None:
            analysis.book.watch(self._show_notes)

    def _choose(self, saved: Iterable[int] | int | None) -> tuple[list[int], str]:
        """The latents whose cards are saved, and the rule in words."""
        if saved is None or isinstance(saved, int):
            count = SAVED_CARDS if saved is None else saved
            if isinstance(saved, bool) or count < 1:
                raise WidgetError(f"saved={saved} keeps no card. Give a number of at least 1, or a list of latents.")
            found = choose_saved(self.analysis.latents, count)
            return found, "levels take turns, each giving the latent with the largest maximum"
        try:
            listed = list(saved)
        except TypeError:
            raise WidgetError(f"saved={saved!r} is neither a number nor a list of latents.") from None
        number = LatentNumber()
        return list(dict.fromkeys(number.validate(self, one) for one in listed)), "named by saved="

    def _state(self, rule: str) -> dict[str, Any]:
        analysis = self.analysis
        table = analysis.latents.select(_LIST_COLUMNS).sort("latent")
        if self.names:
            names = [self.names.get(number) for number in table["latent"]]
            table = table.with_columns(pl.Series("name", names, pl.String))
        latents_header, latents = wire.pack({"latents": table})
        limits = Limits(self._limits.top, self._limits.interval, SAVED_BYTES, _SAVED_WINDOW)
        cards = cut_cards(analysis, self.saved_latents, limits)
        saved_header, saved, thumbs_header, thumbs = cards.pack()
        about = {
            **about_analysis(analysis),
            "rule": rule,
            "dropped": cards.dropped,
            "reads": self.read is not None,
        }
        return {
            "about": about, "latents_header": latents_header, "latents": latents, "saved_header": saved_header,
            "saved": saved, "thumbs_header": thumbs_header, "thumbs": thumbs,
        }  # fmt: skip

    def _respond(self, kind: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        if kind == "note" and self.notes is not None:
            self.analysis.note(*(request.get(name) for name in ("latent", "label", "rating", "comment")))
            return {}, []
        if kind not in ("card", "read"):
            return super()._respond(kind, request)
        latent = LatentNumber().validate(self, request.get("latent"))
        if kind == "read":
            header, block = wire.pack(self._read_text(request.get("text"), latent))
            return {"header": header}, [block]
        header, block, thumbs_header, thumbs = cut_cards(self.analysis, [latent], self._limits).pack()
        return {"header": header, "thumbs_header": thumbs_header}, [block, thumbs]

    def _read_text(self, text: Any, latent: int) -> dict[str, pl.DataFrame]:
        """The tokens of a text of the user with the activation of one latent, and the strongest latents on it."""
        if self.read is None:
            raise WidgetError("This dashboard has nothing to read with. Give read=ns.reader(lm, dictionary).")
        if not isinstance(text, str) or not text.strip():
            raise WidgetError("The text is empty. Type at least one word.")
        if len(text) > READ_CHARS:
            raise WidgetError(
                f"The text has {len(text):,} characters; at most {READ_CHARS:,} are read. Give a shorter passage."
            )
        found = self.read(text, [latent])
        tokens = [wire.clean_text(token) for token in found.tokens]
        acts = np.asarray(found.activations, np.float32)
        if acts.shape != (len(tokens), 1):
            raise WidgetError(
                f"read gave activations of shape {acts.shape} for {len(tokens)} tokens and 1 latent; expected "
                f"({len(tokens)}, 1). Use ns.reader(lm, dictionary)."
            )
        effect = np.full(len(tokens), np.nan) if found.next_token is None else np.asarray(found.next_token)[:, 0]
        frame = {"token": tokens, "act": acts[:, 0], "effect": effect.astype(np.float32)}
        strongest = found.strongest.head(READ_STRONGEST).select(
            pl.col("latent").cast(pl.UInt32), pl.col("act").cast(pl.Float32), pl.col("token").cast(pl.UInt32)
        )
        return {"tokens": pl.DataFrame(frame), "strongest": strongest}

    def _show_notes(self) -> None:
        self.notes = read_notes(self.analysis)

    def name_of(self, latent: int) -> str | None:
        """The user's label of a latent, else its name in `names=`; None where it has neither."""
        return (self.notes or {}).get(str(latent), {}).get("label") or self.names.get(latent)

    def _picture_key(self) -> object:
        return self.latent, self.name_of(self.latent)

    def _draw_picture(self) -> bytes:
        from nb_sae.widgets.picture import draw_feature

        return draw_feature(self.analysis, self.latent, self.name_of(self.latent))

    def _summary(self) -> str:
        row = self.analysis.latents.row(by_predicate=pl.col("latent") == self.latent, named=True)
        name = self.name_of(self.latent)
        named = f" “{wire.visible_text(name)}”" if name else ""
        said = f"FeatureDashboard of {self.d_sae:,} latents at {wire.visible_text(self.analysis.site.name)}; "
        if row["dead"]:
            return said + f"latent {self.latent}{named} is never active on {self.analysis.rows:,} rows."
        share, largest = wire.sig3(row["density"] * 100), wire.sig3(row["max"])
        return (
            said + f"latent {self.latent}{named}: active on {share} % of {self.analysis.rows:,} rows, "
            f"largest activation {largest}."
        )


def about_analysis(analysis: Any) -> dict[str, Any]:
    """What the browser is told of an analysis by every dashboard that shows its cards."""
    site = analysis.site
    return {
        "version": wire.WIRE_VERSION,
        "title": wire.clean_text(analysis.title),
        "site": wire.clean_text(site.name),
        "modality": analysis.modality,
        "pooled": bool(site.pooled),
        "grid": list(site.grid) if site.grid else None,
        "prefix_tokens": int(site.prefix_tokens),
        "positions": int(site.positions),
        "rows": int(analysis.rows),
        "d_sae": int(analysis.d_sae),
        "budgets": [int(k) for k in analysis.budgets],
        "widths": [int(width) for width in analysis.widths],
    }


def check_analysis(asking: str, analysis: Any) -> None:
    """Raises `WidgetError` for what is no analysis; `asking` is the dashboard that was given it."""
    needed = ("latents", "examples", "inputs", "site", "modality", "rows", "d_sae", "budgets", "widths", "title")
    missing = [name for name in needed if not hasattr(analysis, name)]
    if missing:
        raise WidgetError(
            f"{asking} was given {type(analysis).__name__}, which has no {', '.join(missing)}. "
            "Give it what ns.analyze(dictionary, store) returns, or ns.Analysis.load(path)."
        )
    if analysis.latents.height != analysis.d_sae:
        raise WidgetError(
            f"The table of latents has {analysis.latents.height} rows, the dictionary {analysis.d_sae} latents. "
            "Run ns.analyze again on this dictionary."
        )


def read_notes(analysis: Any) -> dict[str, dict[str, Any]] | None:
    """The notes as the browser reads them; None for an analysis without."""
    frame = getattr(analysis, "notes", None)
    if frame is None:
        return None
    return {
        str(latent): {"label": label, "rating": rating, "comment": comment}
        for latent, label, rating, comment in frame.select("latent", "label", "rating", "comment").iter_rows()
    }


def read_names(names: Mapping[int, str] | pl.DataFrame | None, d_sae: int) -> dict[int, str]:
    """Names by latent, as text that can be stored. Raises `WidgetError` for what is no table of names."""
    if names is None:
        return {}
    if isinstance(names, pl.DataFrame):
        if missing := {"latent", "name"} - set(names.columns):
            raise WidgetError(
                f"names has the columns {', '.join(names.columns)}; {', '.join(sorted(missing))} is missing."
            )
        pairs: Iterable[tuple[Any, Any]] = names.select("latent", "name").iter_rows()
    elif isinstance(names, Mapping):
        pairs = names.items()
    else:
        raise WidgetError(f"names is a {type(names).__name__}. Give {{latent: name}} or a frame with latent and name.")
    found: dict[int, str] = {}
    for latent, name in pairs:
        if not isinstance(latent, int) or not 0 <= latent < d_sae:
            raise WidgetError(f"names speaks of latent {latent!r}; this dictionary has 0 … {d_sae - 1}.")
        if name is not None:
            found[latent] = wire.clean_text(name)
    return found
