"""Linking dashboards: a latent chosen in one is chosen in the others.

link = ns.link(features, concepts, flow)
link.selection        # ("image_embed", 417)
link.unlink()

A selection is a site and a latent. Two ways carry it: in the page, views tell each other (`core/link.ts`), which needs
no kernel and works in saved views and reports; in the kernel, this module sets the traits of the others, so that Python
sees one selection and hosts that put every output into a frame of its own (Colab) follow too.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from nb_sae.errors import WidgetError
from nb_sae.widgets.base import Dashboard

ANY_SITE = ""
"""The site of a dashboard that does not know its own: it takes that of the others."""
Places = Mapping[str, int | None]


def link(*dashboards: Dashboard) -> Link:
    """Make dashboards of the same dictionary show one selection, that of the first.

    A dashboard that does not show the latent (no concept of its own, another site) stays as it is. A dashboard is in
    one link: linking it anew takes it out of the link before.

    Args:
        dashboards: Two or more. Those of one site show the same dictionary; a `FlowDashboard` takes part with every
            site that it has, and so links dashboards of several sites.

    Raises:
        WidgetError: fewer than two, something without a latent to choose, or dashboards of different dictionaries.
    """
    if len(set(map(id, dashboards))) < len(dashboards):
        raise WidgetError("ns.link was given the same dashboard twice. Give every dashboard once.")
    if len(dashboards) < 2:
        raise WidgetError(
            f"ns.link was given {len(dashboards)} dashboard{'s' if len(dashboards) != 1 else ''}, and a link joins two "
            "or more. Give them all in one call: ns.link(features, concepts)."
        )
    return Link(dashboards, _joined([(one, _places(one)) for one in dashboards]))


class Link:
    """Dashboards that show one selection; what `ns.link` gives."""

    def __init__(self, dashboards: Iterable[Dashboard], places: Iterable[Places]) -> None:
        self.dashboards = tuple(dashboards)
        self._lock = threading.RLock()  # a choice may come from the browser while a cell makes another
        self._following = False
        group = uuid.uuid4().hex
        for one, sites in zip(self.dashboards, places, strict=True):
            if one.link is not None:
                one.link.unlink(one)
            one.link = self
            one.linked = {"group": group, "sites": dict(sites)}
            one.observe(self._follow, names=one._selecting)
        self._spread(self.dashboards[0])

    @property
    def selection(self) -> tuple[str, int]:
        """(site, latent) of the first dashboard."""
        self._check()
        return self.dashboards[0]._selection()

    def unlink(self, *dashboards: Dashboard) -> None:
        """Take these dashboards out of the link; without any, all of them. A link of one ends.

        Raises:
            WidgetError: one is not in this link.
        """
        with self._lock:
            for one in dashboards:
                if one not in self.dashboards:
                    raise WidgetError(f"{type(one).__name__} is not in this link. Those that are: link.dashboards.")
            leaving = set(map(id, dashboards or self.dashboards))
            staying = [one for one in self.dashboards if id(one) not in leaving]
            if len(staying) == 1:
                leaving.add(id(staying.pop()))
            for one in self.dashboards:
                if id(one) in leaving:
                    one.unobserve(self._follow, names=one._selecting)
                    one.link, one.linked = None, {}
            self.dashboards = tuple(staying)

    def _check(self) -> None:
        if not self.dashboards:
            raise WidgetError("This link has ended. Link the dashboards again with ns.link(…).")

    def _follow(self, change: Any) -> None:
        with self._lock:
            if not self._following:
                self._spread(change.owner)

    def _spread(self, source: Dashboard) -> None:
        """Give the others what `source` shows now: not what was announced, which another thread may have changed."""
        site, latent = source._selection()
        self._following = True
        try:
            for one in self.dashboards:
                if one is not source and site in one.linked["sites"]:
                    one._select(site, latent)
        finally:
            self._following = False

    def __repr__(self) -> str:
        if not self.dashboards:
            return "<Link that has ended>"
        site, latent = self.selection
        names = ", ".join(type(one).__name__ for one in self.dashboards)
        return f"<Link of {names}; latent {latent}{f' at {site}' if site else ''}>"


def _places(dashboard: Any) -> Places:
    if not isinstance(dashboard, Dashboard):
        raise WidgetError(
            f"ns.link was given a {type(dashboard).__name__}. Give dashboards, such as ns.FeatureDashboard(analysis)."
        )
    places = dashboard._places()
    if not places:
        raise WidgetError(f"{type(dashboard).__name__} has no latent to choose, so it cannot be linked. Leave it out.")
    return places


def _joined(given: list[tuple[Dashboard, Places]]) -> list[Places]:
    """The places of every dashboard, with the site of the others where one does not know its own.

    Raises:
        WidgetError: two of the same site have different numbers of latents, or one shares no site with the others.
    """
    known: dict[str, tuple[int, str]] = {}
    for one, places in given:
        for site, count in places.items():
            if site == ANY_SITE or count is None:
                continue
            before, name = known.setdefault(site, (count, type(one).__name__))
            if before != count:
                raise WidgetError(
                    f"{name} shows {before:,} latents at {site!r}, {type(one).__name__} shows {count:,}: these are "
                    "different dictionaries, and a latent of one says nothing about the other. Link dashboards of one "
                    "dictionary."
                )
    named = list(dict.fromkeys(site for _, places in given for site in places if site != ANY_SITE))
    found: list[Places] = []
    for at, (one, places) in enumerate(given):
        if ANY_SITE in places:
            if len(named) > 1:
                raise WidgetError(
                    f"{type(one).__name__} does not say of which site it is, and the others are of "
                    f"{', '.join(named)}. Link it with dashboards of one site."
                )
            found.append({named[0] if named else ANY_SITE: places[ANY_SITE]})
            continue
        others = {site for place, (_, more) in enumerate(given) if place != at for site in more}
        if not others & {*places, ANY_SITE}:
            raise WidgetError(
                f"{type(one).__name__} is of {', '.join(places)}, the other dashboards are of "
                f"{', '.join(sorted(others))}: no selection can be in both. Link dashboards of one dictionary, or add "
                "a FlowDashboard that has these sites."
            )
        found.append(places)
    return found
