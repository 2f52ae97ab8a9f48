"""One dashboard of every kind, from planted tables: what is held for all of them is tried on these."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from bias_fakes import fake_bias
from flow_fakes import fake_flow, fake_tree
from monitor_fakes import fake_monitor
from PIL import Image
from strip_fakes import PROMPT, fake_attribution, fake_direct, fake_faithfulness
from test_widgets_concept import FakeEditor, fake_names
from test_widgets_flow import steer
from widget_fakes import fake_analysis, fake_read, thumb

from nb_sae.widgets.atlas import AtlasDashboard
from nb_sae.widgets.attribution import AttributionStrip
from nb_sae.widgets.base import Dashboard
from nb_sae.widgets.bias import BiasDashboard
from nb_sae.widgets.concept import ConceptDashboard
from nb_sae.widgets.feature import FeatureDashboard
from nb_sae.widgets.flow import FlowDashboard


def _image() -> Dashboard:
    names = {latent: f"concept {latent}" for latent in range(0, 512, 3)}
    return FeatureDashboard(fake_analysis("patches", d_sae=512), names=names, latent=3)


def _text() -> Dashboard:
    return FeatureDashboard(fake_analysis("text"), latent=2, read=fake_read)


def _concept() -> Dashboard:
    editor: Any = FakeEditor()
    return ConceptDashboard(fake_analysis("pooled"), fake_names(), editor=editor)


def _bias() -> Dashboard:
    return BiasDashboard(fake_bias(60))


def _strip_text() -> Dashboard:
    return AttributionStrip(
        fake_attribution(), tokens=PROMPT, names={14: "women"}, direct=fake_direct(), faithfulness=fake_faithfulness()
    )


def _strip_image() -> Dashboard:
    picture = Image.open(io.BytesIO(thumb(3)))
    return AttributionStrip(fake_attribution(positions=65), picture=picture, faithfulness=fake_faithfulness())


def _flow() -> Dashboard:
    flow = fake_flow(6, 64)
    residual = [site for site in flow.sites if "resid" in site]
    analyses = {site: fake_analysis("patches", seed=seed % 2) for seed, site in enumerate(residual)}
    names = {site: {latent: f"concept {latent}" for latent in range(0, 64, 2)} for site in flow.sites}
    tree = {residual[2]: fake_tree(64)}
    return FlowDashboard(flow, analyses, names=names, tree=tree, steer=steer, start=(residual[2], 21))


def _atlas() -> Dashboard:
    angle = 2 * np.pi * np.arange(512) / 64
    spread = 1 + np.arange(512) // 64 / 4
    layout = pl.DataFrame({"latent": range(512), "x": spread * np.cos(angle), "y": spread * np.sin(angle)})
    names = {latent: f"concept {latent}" for latent in range(0, 512, 3)}
    return AtlasDashboard(fake_analysis("patches", d_sae=512), layout, names=names, latent=3)


@dataclass(frozen=True)
class Kind:
    """One kind of dashboard, and what to look at beyond its first sight."""

    make: Callable[[], Dashboard]
    views: tuple[str, ...] = ()
    """Buttons that turn to another view, in the order they are pressed."""
    keys: tuple[str, ...] = ("/", "[", "?")
    """What its sheet of keys must list."""


KINDS: dict[str, Kind] = {
    "feature-image": Kind(_image, ("All strengths",)),
    "feature-text": Kind(_text),
    "concept": Kind(_concept),
    "bias": Kind(_bias, ("Error gaps", "Retrieval")),
    "attribution-text": Kind(_strip_text, ("This latent", "By source", "Whole input")),
    "attribution-image": Kind(_strip_image, ("This latent", "Whole input")),
    "atlas": Kind(_atlas),
    "monitor": Kind(fake_monitor, ("FVU against k", "Sample", "Features", "Curves"), keys=("[", "?")),
    "flow": Kind(_flow, ("Steer", "Levels", "Table")),
}
