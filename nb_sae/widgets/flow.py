"""The flow dashboard: latents of all layers as one graph, the chain of the chosen one, its cards, and steering it.

dashboard = ns.FlowDashboard(flow, {site: analysis, …}, names={site: names})
dashboard.choose("blocks.3", 417)     # or in the browser; dashboard.site and dashboard.latent say what is chosen
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import traitlets

from nb_sae.errors import WidgetError
from nb_sae.flow import schema
from nb_sae.widgets import wire
from nb_sae.widgets.base import Dashboard
from nb_sae.widgets.flow_cards import about_analyses, check_analyses, pack_cards
from nb_sae.widgets.flow_names import FlowNames
from nb_sae.widgets.flow_steer import MODES, read_answer, read_request
from nb_sae.widgets.flow_tables import SCORES, Filter, FlowIndex
from nb_sae.widgets.flow_trees import FlowTrees

SHOWN = 40
"""Latents of a site that are drawn."""
SAVED_BYTES = 500_000
"""A saved view in all: tables and pictures as base64, script, style sheet and static picture."""
GRAPH_BYTES = 120_000
CARD_BYTES = 105_000
TREE_BYTES = 14_000
"""Before base64. With 68 kB of script and style and at most 80 kB of static picture they stay below `SAVED_BYTES`."""
SAVED_CARDS = 96
_SHOWN_STEPS = (40, 32, 24, 18, 14, 10, 7, 5, 3, 2, 1)
_EDGES = 4_000
"""Edges that a page holds; of more, the nearest."""
_ASKED_CARDS = 40

Steer = Callable[[str, int, float, str], Any]
"""(site, latent, strength, mode) → what it gave before, after and for a control; see `flow_steer.read_answer`."""


class FlowSite(traitlets.TraitType):
    """A site of the flow, checked where it is set."""

    info_text = "a site of the flow"

    def validate(self, obj: Any, value: Any) -> str:
        """Raises `WidgetError` for what is no site of this flow."""
        return obj.index.check(value)[0]


class FlowLatent(traitlets.TraitType):
    """The number of a latent; whether the chosen site has it is asked once both are known."""

    info_text = "the number of a latent"

    def validate(self, obj: Any, value: Any) -> int:
        """Raises `WidgetError` for what is no whole number."""
        try:
            number = operator.index(value)
        except TypeError:
            raise WidgetError(f"latent={value!r} is no whole number.") from None
        if isinstance(value, bool):
            raise WidgetError(f"latent={value!r} is no whole number.")
        return number


class FlowDashboard(Dashboard):
    """Follow features between layers: where a latent is born, what carries it on, and what steering it does.

    The graph shows up to 40 latents of every site: the chosen one with its chain and its nearest neighbours, then those
    whose chain passes through most sites, by mean cosine. With a kernel, filters and the search choose among all.

    Args:
        flow: What `ns.feature_flow` gives.
        analyses: `{site: ns.analyze(…)}`, for the cards of a chain; sites may be missing.
        names: `{site: names}` with `{latent: name}`, a frame or what `ns.name_concepts` gives; or one frame with
            `site`, `latent` and `name`. The user's labels (`analysis.note`) win.
        tree: What `ns.level_tree` gives, for the site of `start`, or one per site: `{site: tree}`.
        steer: What steers: `(site, latent, strength, mode)` → what `ns.chain_effect` returns, or `{"before": …,
            "after": …, "control": …}` with texts or pictures; `mode` is "single" or "cumulative". Needs a kernel.
            None: nothing can be steered.
        start: (site, latent) to start with; None: the strongest chain's last latent.
        saved: More (site, latent) whose chains and cards a saved view holds, before the strongest ones.

    Raises:
        WidgetError: a frame, a site, a latent or a name is not what is expected, or the scripts are not built.
    """

    _dashboard = "flow"
    _selecting = ("site", "latent")

    site = FlowSite(default_value="", help="The chosen latent's site, in both directions.").tag(sync=True)
    latent = FlowLatent(default_value=0, help="The chosen latent, in both directions.").tag(sync=True)
    about = traitlets.Dict(help="Title, rules, counts, and what each site's cards look like.").tag(sync=True)
    graph_header = traitlets.Dict().tag(sync=True)
    graph = traitlets.Bytes(help="Sites, thresholds, and the saved latents and edges.").tag(sync=True)
    cards_header = traitlets.Dict().tag(sync=True)
    cards = traitlets.Bytes(help="The cards of saved latents, tables per site.").tag(sync=True)
    cards_thumbs_header = traitlets.Dict().tag(sync=True)
    cards_thumbs = traitlets.Bytes().tag(sync=True)
    tree_header = traitlets.Dict().tag(sync=True)
    tree = traitlets.Bytes(help="Parents and children of the start's site.").tag(sync=True)

    def __init__(
        self,
        flow: Any,
        analyses: Mapping[str, Any] | None = None,
        *,
        names: Any = None,
        tree: Any = None,
        steer: Steer | None = None,
        start: tuple[str, int] | None = None,
        saved: Iterable[tuple[str, int]] | None = None,
    ) -> None:
        if steer is not None and not callable(steer):
            raise WidgetError(f"steer is a {type(steer).__name__}. Give a callable (site, latent, strength, mode).")
        self.index = FlowIndex(flow)
        self.analyses = check_analyses(self.index, analyses)
        self.names = FlowNames(self.index, names, self.analyses)
        self._steer = steer
        site, latent = self._pair("start", start) if start is not None else self.index.strongest()
        self._trees = FlowTrees(self.index, tree, site)
        self.saved_latents = [(site, latent), *(self._pair("saved", one) for one in saved or ())]
        super().__init__(site=site, latent=latent, **self._state(flow, site, latent))

    def choose(self, site: str, latent: int) -> None:
        """Choose a latent of another site. Raises `WidgetError` where there is no such latent."""
        site, latent = self._pair("choose", (site, latent))
        with self.hold_trait_notifications():
            self.site, self.latent = site, latent

    @traitlets.validate("latent")
    def _check_latent(self, proposal: Any) -> int:
        return self.index.check(self.site, proposal["value"])[1]

    @traitlets.observe("site")
    def _keep_latent(self, _change: Any) -> None:
        """A site with fewer latents may not have the chosen one: its strongest is chosen instead."""
        if self.latent >= self.index.counts[self.index.sites.index(self.site)]:
            self.latent = self.index.check(self.site)[1]

    def _pair(self, what: str, given: Any) -> tuple[str, int]:
        if not isinstance(given, tuple | list) or len(given) != 2:
            raise WidgetError(f"{what}={given!r} is no pair (site, latent). The sites are in flow.sites.")
        return self.index.check(given[0], FlowLatent().validate(self, given[1]))

    def _places(self) -> Mapping[str, int | None]:
        return {site: int(count) for site, count in zip(self.index.sites, self.index.counts, strict=True)}

    def _selection(self) -> tuple[str, int]:
        return self.site, self.latent

    def _select(self, site: str, latent: int) -> None:
        with contextlib.suppress(WidgetError):
            self.choose(site, latent)

    # What a saved view holds

    def _state(self, flow: Any, site: str, latent: int) -> dict[str, Any]:
        chosen = [self.index.node(*one) for one in dict.fromkeys(self.saved_latents)]
        fixed = {"sites": self.index.sites_frame(), "nulls": self.index.nulls_frame()}
        nodes, shown, header, block = self.index.page(chosen, 1), 1, {}, b""
        for shown in _SHOWN_STEPS:
            nodes = self.index.page(chosen, shown)
            edges = self.index.edges_frame(nodes, _EDGES)
            tables = {**fixed, "nodes": self.index.nodes_frame(nodes, self.names.of), "edges": edges}
            header, block = wire.pack(tables)
            if len(block) <= GRAPH_BYTES:
                break
        wanted = [*chosen, *sorted(nodes.tolist(), key=lambda node: (-self.index.strength[node], node))]
        members = dict.fromkeys(node for one in wanted for node, _ in self.index.chain(one))
        offered = [one for one in map(self.index.latent_of, members) if one[0] in self.analyses]
        *cards, kept = pack_cards(self.index, self.analyses, offered[:SAVED_CARDS], CARD_BYTES)
        tree_header, tree = self._tree(site, latent)
        return {
            "about": {**self._about(flow, len(nodes), shown, kept), "tree_site": self.index.sites.index(site)},
            "graph_header": header, "graph": block,
            **dict(zip(("cards_header", "cards", "cards_thumbs_header", "cards_thumbs"), cards, strict=True)),
            "tree_header": tree_header, "tree": tree,
        }  # fmt: skip

    def _about(self, flow: Any, nodes: int, shown: int, cards: int) -> dict[str, Any]:
        given: Mapping[str, Any] = getattr(flow, "about", None) or {}
        return {
            "version": wire.WIRE_VERSION,
            "title": wire.clean_text(given.get("title") or "Feature flow"),
            "rule": wire.clean_text(given.get("rule") or "cosine"),
            "left_out": [wire.clean_text(one) for one in given.get("left_out") or ()],
            "latents": self.index.size,
            "edges": int(flow.edges.height),
            "shown": SHOWN,
            "most_edges": _EDGES,
            "saved": {"nodes": nodes, "shown": shown, "cards": cards},
            "analyses": about_analyses(self.analyses, self.index),
            "steer": self._steer is not None,
            "modes": list(MODES),
            "trees": {
                str(self.index.sites.index(site)): {"pairs": frame.height, "null": self._trees.found_null.get(site, -1)}
                for site, frame in self._trees.frames.items()
            },
        }

    def _tree(self, site: str, latent: int) -> tuple[dict[str, Any], bytes]:
        frame = self._trees.cut(site, latent)
        while True:
            header, block = wire.pack({"tree": frame})
            if len(block) <= TREE_BYTES:
                return header, block
            frame = frame.head(frame.height * TREE_BYTES // len(block))

    # Answers

    def _respond(self, kind: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        if kind == "page":
            return self._page(request)
        if kind == "find":
            return self._nodes(self.names.find(str(request.get("text", ""))))
        if kind == "cards":
            wanted = request.get("latents")
            if not isinstance(wanted, list):
                raise WidgetError("A request for cards names latents. Reload the page.")
            latents = [self._pair("latents", one) for one in wanted[:_ASKED_CARDS]]
            header, block, thumbs_header, thumbs, _ = pack_cards(self.index, self.analyses, latents)
            return {"header": header, "thumbs_header": thumbs_header}, [block, thumbs]
        if kind == "tree":
            site, latent = self._asked(request)
            header, block = wire.pack({"tree": self._trees.cut(site, latent)})
            return {"header": header}, [block]
        if kind == "steer" and self._steer is not None:
            site, latent = self._asked(request)
            tables, thumbs = read_answer(self._steer(site, latent, *read_request(request)))
            header, block = wire.pack(tables)
            thumbs_header, packed = wire.pack_thumbs(thumbs)
            return {"header": header, "thumbs_header": thumbs_header}, [block, packed]
        return super()._respond(kind, request)

    def _asked(self, request: Mapping[str, Any]) -> tuple[str, int]:
        return self._pair("request", (request.get("site"), request.get("latent")))

    def _page(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        site, latent = self._asked(request)
        nodes = self.index.page([self.index.node(site, latent)], SHOWN, read_filter(request))
        header, block = wire.pack(
            {
                "nodes": self.index.nodes_frame(nodes, self.names.of),
                "edges": self.index.edges_frame(nodes, _EDGES),
            }
        )
        return {"header": header}, [block]

    def _nodes(self, nodes: list[int]) -> tuple[dict[str, Any], list[bytes]]:
        header, block = wire.pack({"nodes": self.index.nodes_frame(np.asarray(nodes, np.int64), self.names.of)})
        return {"header": header}, [block]

    # Display

    def _picture_key(self) -> object:
        return self.site, self.latent

    def _draw_picture(self) -> bytes:
        from nb_sae.widgets.flow_picture import draw_flow

        return draw_flow(self.index, self.names.of, self.analyses, (self.site, self.latent), self.about)

    def _summary(self) -> str:
        index, node = self.index, self.index.node(self.site, self.latent)
        name = self.names.of.get(node)
        named = f" “{wire.visible_text(name)}”" if name else ""
        chain = index.chain(node)
        first, last = (index.latent_of(chain[end][0]) for end in (0, -1))
        said = f"FlowDashboard of {len(index.sites)} sites and {index.size:,} latents; latent {self.latent}{named} at "
        said += f"{wire.visible_text(self.site)}"
        if index.kind[node] >= 0:
            said += f" is {schema.KINDS[index.kind[node]]}"
        if first == last:
            return f"{said}; no latent of another site reaches its threshold."
        return f"{said}; its chain runs from latent {first[1]} at {first[0]} to latent {last[1]} at {last[0]}."


def read_filter(request: Mapping[str, Any]) -> Filter:
    """The filter of a request.

    Raises:
        WidgetError: a lane, a kind or a score that does not exist.
    """
    lanes, kind = request.get("lanes") or [], request.get("only_kind") or ""
    score, least = request.get("score") or SCORES[0], request.get("least") or 0
    for given, known in (*((lane, schema.LANES) for lane in lanes), (kind, ["", *schema.KINDS]), (score, SCORES)):
        if given not in known:
            raise WidgetError(f"{given!r} is none of {', '.join(filter(None, known))}. Reload the page.")
    if isinstance(least, bool) or not isinstance(least, int | float):
        raise WidgetError(f"least={least!r} is no number. Reload the page.")
    return Filter(tuple(lanes), kind, score, float(least))
