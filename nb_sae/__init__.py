"""Interpret CLIP and language models with Matryoshka sparse autoencoders, inside a notebook.

The public names are resolved when they are first used, so that `import nb_sae` imports neither torch nor open_clip.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.5.0"

_HOME = {
    "errors": "nb_sae.errors",
    "plots": "nb_sae.plots",
    "capture": "nb_sae.hooks:capture",
    "intervene": "nb_sae.hooks:intervene",
    "Edit": "nb_sae.types:Edit",
    "types": "nb_sae.types",
    "load_clip": "nb_sae.models.clip:load_clip",
    "load_lm": "nb_sae.models.lm:load_lm",
    "images": "nb_sae.data.images:images",
    "texts": "nb_sae.data.texts:texts",
    "demo_texts": "nb_sae.data.texts:demo_texts",
    "celeba": "nb_sae.data.celeba:celeba",
    "fairface": "nb_sae.data.fairface:fairface",
    "utkface": "nb_sae.data.utkface:utkface",
    "attributes": "nb_sae.data.labels:attributes",
    "demo_faces": "nb_sae.data.faces:demo_faces",
    "ActivationStore": "nb_sae.store.activation_store:ActivationStore",
    "ActivationStream": "nb_sae.store.stream:ActivationStream",
    "pair": "nb_sae.store.paired:pair",
    "SAEConfig": "nb_sae.sae.config:SAEConfig",
    "TrainConfig": "nb_sae.sae.training:TrainConfig",
    "Session": "nb_sae.sae.session:Session",
    "train_sae": "nb_sae.sae.session:train_sae",
    "train_together": "nb_sae.sae.together:train_together",
    "Dictionary": "nb_sae.sae.dictionary:Dictionary",
    "load_dictionary": "nb_sae.sae.formats.door:load_dictionary",
    "export_dictionary": "nb_sae.sae.formats.door:export_dictionary",
    "push_to_hub": "nb_sae.sae.formats.publish:push_to_hub",
    "compare": "nb_sae.sae.compare:compare",
    "classical": "nb_sae.sae.classical",
    "metrics": "nb_sae.sae.metrics",
    "Analysis": "nb_sae.analysis.bundle:Analysis",
    "analyze": "nb_sae.analysis.scan:analyze",
    "analyze_all": "nb_sae.analysis.scan:analyze_all",
    "analyze_part": "nb_sae.analysis.scan:analyze_part",
    "merge_analyses": "nb_sae.analysis.scan:merge_analyses",
    "PartialAnalysis": "nb_sae.analysis.part:PartialAnalysis",
    "pca_quality": "nb_sae.analysis.quality:pca_quality",
    "layout": "nb_sae.analysis.layout:layout",
    "Layout": "nb_sae.analysis.layout:Layout",
    "vocabulary": "nb_sae.data.vocabulary:vocabulary",
    "name_concepts": "nb_sae.concepts.naming:name_concepts",
    "ConceptNames": "nb_sae.concepts.names:ConceptNames",
    "count_concepts": "nb_sae.concepts.counts:count_concepts",
    "search": "nb_sae.concepts.search:search",
    "SearchIndex": "nb_sae.concepts.index:SearchIndex",
    "steering_curve": "nb_sae.concepts.steering:steering_curve",
    "bias_report": "nb_sae.concepts.bias.making:bias_report",
    "BiasReport": "nb_sae.concepts.bias.report:BiasReport",
    "ConceptEditor": "nb_sae.concepts.editor:ConceptEditor",
    "layer_sites": "nb_sae.models.parts:layer_sites",
    "train_all": "nb_sae.sae.many:train_all",
    "Trainings": "nb_sae.sae.many:Trainings",
    "recovered": "nb_sae.flow.effects.recovered:recovered",
    "layer_quality": "nb_sae.flow.effects.quality:layer_quality",
    "feature_flow": "nb_sae.flow.links.making:feature_flow",
    "FeatureFlow": "nb_sae.flow.flow:FeatureFlow",
    "activation_groups": "nb_sae.flow.effects.groups:activation_groups",
    "deactivate": "nb_sae.flow.effects.deactivation:deactivate",
    "steer_chain": "nb_sae.flow.effects.chain_steering:steer_chain",
    "chain_effect": "nb_sae.flow.effects.chain_effect:chain_effect",
    "transcode": "nb_sae.flow.effects.transcoding:transcode",
    "level_tree": "nb_sae.flow.effects.levels:level_tree",
    "concept_flow": "nb_sae.flow.effects.concept_flow:concept_flow",
    "head_weights": "nb_sae.attribution.heads:head_weights",
    "head_scores": "nb_sae.attribution.patterns:head_scores",
    "induction_curve": "nb_sae.attribution.patterns:induction_curve",
    "direct_attribution": "nb_sae.attribution.direct:direct_attribution",
    "attribute": "nb_sae.attribution.output:attribute",
    "logit": "nb_sae.attribution.output_metrics:logit",
    "log_prob": "nb_sae.attribution.output_metrics:log_prob",
    "logit_difference": "nb_sae.attribution.output_metrics:logit_difference",
    "cosine_to": "nb_sae.attribution.output_metrics:cosine_to",
    "logit_lens": "nb_sae.analysis.lens:logit_lens",
    "neuron_lens": "nb_sae.attribution.neurons:neuron_lens",
    "vision_lens": "nb_sae.attribution.vision_lens:vision_lens",
    "reader": "nb_sae.analysis.reading:reader",
    "neuron_agreement": "nb_sae.attribution.neurons:neuron_agreement",
    "VisionLens": "nb_sae.attribution.vision_lens:VisionLens",
    "ConceptFlow": "nb_sae.flow.effects.concept_flow:ConceptFlow",
    "Attribution": "nb_sae.attribution.output:Attribution",
    "DirectAttribution": "nb_sae.attribution.direct:DirectAttribution",
    "FeatureDashboard": "nb_sae.widgets.feature:FeatureDashboard",
    "ConceptDashboard": "nb_sae.widgets.concept:ConceptDashboard",
    "BiasDashboard": "nb_sae.widgets.bias:BiasDashboard",
    "AttributionStrip": "nb_sae.widgets.attribution:AttributionStrip",
    "FlowDashboard": "nb_sae.widgets.flow:FlowDashboard",
    "link": "nb_sae.widgets.linking:link",
    "Link": "nb_sae.widgets.linking:Link",
    "share_scripts": "nb_sae.widgets.runtime:share_scripts",
    "AtlasDashboard": "nb_sae.widgets.atlas:AtlasDashboard",
    "TrainMonitor": "nb_sae.widgets.monitor:TrainMonitor",
    "show": "nb_sae.widgets.base:show",
    "report": "nb_sae.reporting.report:report",
    "provenance": "nb_sae.facts:provenance",
    "doctor": "nb_sae.diagnosis:doctor",
}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from nb_sae import errors as errors
    from nb_sae import plots as plots
    from nb_sae import types as types
    from nb_sae.analysis.bundle import Analysis as Analysis
    from nb_sae.analysis.layout import Layout as Layout
    from nb_sae.analysis.layout import layout as layout
    from nb_sae.analysis.lens import logit_lens as logit_lens
    from nb_sae.analysis.part import PartialAnalysis as PartialAnalysis
    from nb_sae.analysis.quality import pca_quality as pca_quality
    from nb_sae.analysis.reading import reader as reader
    from nb_sae.analysis.scan import analyze as analyze
    from nb_sae.analysis.scan import analyze_all as analyze_all
    from nb_sae.analysis.scan import analyze_part as analyze_part
    from nb_sae.analysis.scan import merge_analyses as merge_analyses
    from nb_sae.attribution.direct import DirectAttribution as DirectAttribution
    from nb_sae.attribution.direct import direct_attribution as direct_attribution
    from nb_sae.attribution.heads import head_weights as head_weights
    from nb_sae.attribution.neurons import neuron_agreement as neuron_agreement
    from nb_sae.attribution.neurons import neuron_lens as neuron_lens
    from nb_sae.attribution.output import Attribution as Attribution
    from nb_sae.attribution.output import attribute as attribute
    from nb_sae.attribution.output_metrics import cosine_to as cosine_to
    from nb_sae.attribution.output_metrics import log_prob as log_prob
    from nb_sae.attribution.output_metrics import logit as logit
    from nb_sae.attribution.output_metrics import logit_difference as logit_difference
    from nb_sae.attribution.patterns import head_scores as head_scores
    from nb_sae.attribution.patterns import induction_curve as induction_curve
    from nb_sae.attribution.vision_lens import VisionLens as VisionLens
    from nb_sae.attribution.vision_lens import vision_lens as vision_lens
    from nb_sae.concepts.bias.making import bias_report as bias_report
    from nb_sae.concepts.bias.report import BiasReport as BiasReport
    from nb_sae.concepts.counts import count_concepts as count_concepts
    from nb_sae.concepts.editor import ConceptEditor as ConceptEditor
    from nb_sae.concepts.index import SearchIndex as SearchIndex
    from nb_sae.concepts.names import ConceptNames as ConceptNames
    from nb_sae.concepts.naming import name_concepts as name_concepts
    from nb_sae.concepts.search import search as search
    from nb_sae.concepts.steering import steering_curve as steering_curve
    from nb_sae.data.celeba import celeba as celeba
    from nb_sae.data.faces import demo_faces as demo_faces
    from nb_sae.data.fairface import fairface as fairface
    from nb_sae.data.images import images as images
    from nb_sae.data.labels import attributes as attributes
    from nb_sae.data.texts import demo_texts as demo_texts
    from nb_sae.data.texts import texts as texts
    from nb_sae.data.utkface import utkface as utkface
    from nb_sae.data.vocabulary import vocabulary as vocabulary
    from nb_sae.diagnosis import doctor as doctor
    from nb_sae.facts import provenance as provenance
    from nb_sae.flow.effects.chain_effect import chain_effect as chain_effect
    from nb_sae.flow.effects.chain_steering import steer_chain as steer_chain
    from nb_sae.flow.effects.concept_flow import ConceptFlow as ConceptFlow
    from nb_sae.flow.effects.concept_flow import concept_flow as concept_flow
    from nb_sae.flow.effects.deactivation import deactivate as deactivate
    from nb_sae.flow.effects.groups import activation_groups as activation_groups
    from nb_sae.flow.effects.levels import level_tree as level_tree
    from nb_sae.flow.effects.quality import layer_quality as layer_quality
    from nb_sae.flow.effects.recovered import recovered as recovered
    from nb_sae.flow.effects.transcoding import transcode as transcode
    from nb_sae.flow.flow import FeatureFlow as FeatureFlow
    from nb_sae.flow.links.making import feature_flow as feature_flow
    from nb_sae.hooks import capture as capture
    from nb_sae.hooks import intervene as intervene
    from nb_sae.models.clip import load_clip as load_clip
    from nb_sae.models.lm import load_lm as load_lm
    from nb_sae.models.parts import layer_sites as layer_sites
    from nb_sae.reporting.report import report as report
    from nb_sae.sae import classical as classical
    from nb_sae.sae import metrics as metrics
    from nb_sae.sae.compare import compare as compare
    from nb_sae.sae.config import SAEConfig as SAEConfig
    from nb_sae.sae.dictionary import Dictionary as Dictionary
    from nb_sae.sae.formats.door import export_dictionary as export_dictionary
    from nb_sae.sae.formats.door import load_dictionary as load_dictionary
    from nb_sae.sae.formats.publish import push_to_hub as push_to_hub
    from nb_sae.sae.many import Trainings as Trainings
    from nb_sae.sae.many import train_all as train_all
    from nb_sae.sae.session import Session as Session
    from nb_sae.sae.session import train_sae as train_sae
    from nb_sae.sae.together import train_together as train_together
    from nb_sae.sae.training import TrainConfig as TrainConfig
    from nb_sae.store.activation_store import ActivationStore as ActivationStore
    from nb_sae.store.paired import pair as pair
    from nb_sae.store.stream import ActivationStream as ActivationStream
    from nb_sae.types import Edit as Edit
    from nb_sae.widgets.atlas import AtlasDashboard as AtlasDashboard
    from nb_sae.widgets.attribution import AttributionStrip as AttributionStrip
    from nb_sae.widgets.base import show as show
    from nb_sae.widgets.bias import BiasDashboard as BiasDashboard
    from nb_sae.widgets.concept import ConceptDashboard as ConceptDashboard
    from nb_sae.widgets.feature import FeatureDashboard as FeatureDashboard
    from nb_sae.widgets.flow import FlowDashboard as FlowDashboard
    from nb_sae.widgets.linking import Link as Link
    from nb_sae.widgets.linking import link as link
    from nb_sae.widgets.monitor import TrainMonitor as TrainMonitor
    from nb_sae.widgets.runtime import share_scripts as share_scripts


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        from nb_sae.errors import closest

        raise AttributeError(f"nb_sae has no {name!r}. {closest(name, _HOME)}The public names are in nb_sae.__all__.")
    module, _, attribute = _HOME[name].partition(":")
    value = import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(__all__) | set(globals()))
