"""One concept through a CLIP's image tower: its latent at every block, what it is called there, and where it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.nn import functional as F

from nb_sae.errors import ConfigError, InputError, closest
from nb_sae.flow.effects.map_agreement import Codes, answer_agreement, map_agreement
from nb_sae.flow.flow import FeatureFlow
from nb_sae.flow.links.nulls import chance_in, covariance_null
from nb_sae.flow.links.spaces import through_final_norm
from nb_sae.flow.schema import CONCEPT_CHAIN, CONCEPT_FLOW, MAP_AGREEMENT
from nb_sae.flow.settings import check_whole
from nb_sae.flow.sources import check_sites, dictionary_at
from nb_sae.models.clip import ClipModel
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.origin import check_model

FALSE_NAME_RATE = 0.05
"""Chance at which a word of the lens still counts as a name."""
DRAWS = 2000
"""Meaningless directions of the null of the lens words."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ConceptFlow:
    """What `concept_flow` found. Holds tables only."""

    chain: pl.DataFrame
    """`schema.CONCEPT_CHAIN`: the latent at every site, from the input on, with its name there."""
    frame: pl.DataFrame
    """`schema.CONCEPT_FLOW`: its map over the patches at every site, one line per step and picture."""
    agreement: pl.DataFrame
    """`schema.MAP_AGREEMENT`: whether neighbouring steps look at the same places, beside what chance gives."""
    about: dict[str, Any]

    def __repr__(self) -> str:
        named = self.chain.drop_nulls("name")
        called = f", {named['name'][-1]!r} from {named['site'][0]}" if named.height else ""
        start, end = self.chain["site"][0], self.chain["site"][-1]
        return f"ConceptFlow({self.chain.height} steps, {start} to {end}{called}, {self.about['inputs']:,} pictures)"


@torch.no_grad()
def concept_flow(
    flow: FeatureFlow,
    dictionaries: Mapping[str, Dictionary],
    clip: Any,
    images: Any,
    site: str,
    latent: int,
    *,
    names: Any = None,
    texts: Sequence[str] | None = None,
    cut: bool = True,
    controls: int = 50,
    batch: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> ConceptFlow:
    """Follow a concept from the patches of early blocks to the image embedding, and look where it is active.

    The chain is that of the flow: by decoder cosine, link by link. Each latent of it is then read on pictures. Whether
    two neighbours look at the same places is the rank correlation of their maps over the patches; the null is that of
    other latents of the source site, matched in density and activation. Into the embedding, which has no patches, it is
    the rank correlation over pictures between the activation on CLS and that of the embedding.

    Names come in three kinds. "label" and "name" are those of `names`. "lens", where these have none: the text nearest
    to the latent's direction after the final norm and the projection, as if no block lay between; the further from the
    end, the weaker. It counts only where a direction that means nothing, drawn with the second moments of the
    dictionary's directions, comes as near with a chance of at most 0.05.

    Args:
        flow: Of the image tower.
        dictionaries: Site → dictionary, those of the flow.
        clip: The model that they were trained on.
        images: What `clip.encode_image` takes: some to some hundred pictures, all of whose latents are kept.
        site: Where to begin.
        latent: Its number there; it is step 0.
        names: `ConceptNames` of the embedding's dictionary, or a mapping from site to `ConceptNames`.
        texts: Words for the lens; None: the accepted names of `names`; of fewer than two there is no lens.
        cut: End the chain where a link falls below its threshold. False: follow the best matches all the way.
        controls: Other latents of each null; fewer where a site has fewer.
        batch: Pictures per forward pass.
        seed: Of the nulls.
        progress: Show how far it is.

    Raises:
        ConfigError: not a CLIP, a flow of the text tower, no such site or latent, a dictionary that is missing or is
            another than that of the flow or of another model.
        InputError: no pictures.
    """
    if not isinstance(clip, ClipModel):
        raise ConfigError(f"Got a {type(clip).__name__}; expected a CLIP from load_clip(), whose patches can be shown.")
    check_whole(controls=controls, seed=seed)
    check_whole(1, batch=batch)
    check_sites(flow, [site])
    chain = flow.chain(site, latent, cut=cut)
    _check(flow, chain, dictionaries, clip)
    given = _by_site(names, flow)
    blocks = chain.filter(pl.col("lane") != "embedding")["site"]
    d_model = dictionaries[blocks[0]].W_dec.shape[1] if len(blocks) else None
    lens, without_lens = _lens(clip, given, texts, d_model, seed)
    named = _named(chain, dictionaries, given, lens)
    count = len(images) if hasattr(images, "__len__") else 1
    if not count:
        raise InputError("No pictures were given. Give at least one.")
    sites = chain["site"].to_list()
    codes = {one: Codes(clip.site(one, "image"), dictionaries[one]) for one in sites}
    with progress_bar(count, "pictures", "concept flow", enabled=progress) as bar:
        for pixels in clip.pixel_batches(images, batch):
            for one, rows in clip.capture_rows(pixels, sites, "image").items():
                codes[one].add(rows)
            bar.update(len(pixels))
    keys = getattr(images, "keys", None)
    return ConceptFlow(
        chain=named,
        frame=pl.concat([_lines(step, codes[step["site"]]) for step in named.iter_rows(named=True)]),
        agreement=_agreements(named, codes, controls=controls, seed=seed),
        about={
            "site": site,
            "latent": latent,
            "model": clip.name,
            "inputs": count,
            "keys": [str(key) for key in keys] if isinstance(keys, Sequence) else None,
            "lens_texts": len(lens.texts) if lens is not None else 0,
            "without_lens": without_lens,
            "false_name_rate": FALSE_NAME_RATE,
            "seed": seed,
        },
    )


def _check(flow: FeatureFlow, chain: pl.DataFrame, dictionaries: Mapping[str, Dictionary], clip: ClipModel) -> None:
    places = flow.about["places"]
    if any(place["tower"] != "image" for place in places.values()):
        raise ConfigError("The flow is of the text tower, whose tokens are no patches. Make one of the image tower.")
    for site in chain["site"]:
        given = dictionary_at(dictionaries, site, flow)
        check_model(clip, given, site)
        if clip.site(site, "image").width != given.d_in:
            raise ConfigError(
                f"{site!r} of {clip.name} is {clip.site(site, 'image').width} wide, its dictionary takes {given.d_in}. "
                "Give the model that the flow is of."
            )


def _by_site(names: Any, flow: FeatureFlow) -> dict[str, Any]:
    if names is None:
        return {}
    if isinstance(names, Mapping):
        wrong = next((site for site in names if site not in flow.sites), None)
        if wrong is not None:
            raise ConfigError(f"names= has {wrong!r}, which is no site of the flow. {closest(wrong, flow.sites)}")
        given = dict(names)
    else:
        embedding = [site for site, place in flow.about["places"].items() if place["lane"] == "embedding"]
        if not embedding:
            raise ConfigError("The flow has no embedding that these names could be of. Give names={site: names}.")
        given = {embedding[0]: names}
    for one in given.values():
        if not hasattr(one, "frame") or not hasattr(one, "labels"):
            raise ConfigError(
                f"names= holds a {type(one).__name__}; expected what ns.name_concepts gives. Words for the lens are "
                "texts=."
            )
    return given


def _named(
    chain: pl.DataFrame, dictionaries: Mapping[str, Dictionary], names: Mapping[str, Any], lens: _TextLens | None
) -> pl.DataFrame:
    """The chain with a name at each step that has one."""
    found = []
    for site, latent, lane in chain.select("site", "latent", "lane").iter_rows():
        line = _given_name(names.get(site), latent)
        if not line and lens is not None and lane != "embedding":
            line = lens.name(dictionaries[site], latent)
        found.append(line)
    extra = {name: CONCEPT_CHAIN[name] for name in ("name", "name_kind", "nearest", "name_cosine", "name_p")}
    told = pl.DataFrame([{name: line.get(name) for name in extra} for line in found], schema=extra)
    return pl.concat([chain, told], how="horizontal").cast(dict(CONCEPT_CHAIN))  # pyright: ignore[reportArgumentType]


def _given_name(names: Any, latent: int) -> dict[str, Any]:
    """The user's label or the accepted name; empty without either."""
    if names is None:
        return {}
    if latent in names.labels:
        return {"name": names.labels[latent], "name_kind": "label"}
    lines = names.frame.filter((pl.col("latent") == latent) & pl.col("accepted"))
    if not lines.height:
        return {}
    return {
        "name": lines["name"][0],
        "name_kind": "name",
        "name_cosine": lines["cosine"][0],
        "name_p": lines["p"][0],
    }


def _lens(
    clip: ClipModel, names: Mapping[str, Any], texts: Sequence[str] | None, d_model: int | None, seed: int
) -> tuple[_TextLens | None, str | None]:
    """What names blocks by texts; or None and why there is none."""
    if texts is None:
        accepted = [one.frame.filter("accepted")["name"] for one in names.values()]
        listed = pl.concat(accepted).unique(maintain_order=True).to_list() if accepted else []
    else:
        listed = list(dict.fromkeys([texts] if isinstance(texts, str) else texts))
    if len(listed) < 2:
        return None, "fewer than two texts to choose from; give texts="
    if d_model is None:
        return None, "the chain passes no block"
    try:
        through_final_norm(clip, "image", torch.eye(d_model)[:1])
    except ConfigError as error:
        return None, str(error)
    return _TextLens(clip, listed, seed), None


class _TextLens:
    """Directions of the residual stream by the texts that they point to in the embedding."""

    def __init__(self, clip: ClipModel, texts: Sequence[str], seed: int) -> None:
        self.clip, self.texts, self.seed = clip, texts, seed
        vectors = clip.encode_text(list(texts), normalize=True).cpu()
        self.vectors = F.normalize(vectors - vectors.mean(0), dim=-1)

    def name(self, dictionary: Dictionary, latent: int) -> dict[str, Any]:
        """The nearest text of a latent, and how near meaningless directions of this dictionary come."""
        unit = F.normalize(through_final_norm(self.clip, "image", dictionary.W_dec).cpu(), dim=-1)
        cosines = self.vectors @ unit[latent]
        best = int(cosines.argmax())
        null = covariance_null(unit, self.vectors, draws=DRAWS, seed=self.seed)
        p = float(chance_in(null, np.array(float(cosines[best]))))
        told = {"nearest": self.texts[best], "name_cosine": float(cosines[best]), "name_p": p}
        return told | ({"name": self.texts[best], "name_kind": "lens"} if p <= FALSE_NAME_RATE else {})


def _lines(step: dict[str, Any], codes: Codes) -> pl.DataFrame:
    latent, site = step["latent"], codes.site
    whole = codes.of([latent])[..., 0]
    rows, columns = site.grid if site.grid is not None else (None, None)
    maps = None if site.grid is None else whole[:, site.prefix_tokens :].tolist()
    count = len(whole)
    told = {name: [step[name]] * count for name in ("step", "site", "layer", "lane", "latent", "name", "name_kind")}
    return pl.DataFrame(
        told
        | {
            "cosine": [step["cosine"]] * count,
            "input_id": np.arange(count, dtype=np.uint32),
            "rows": [rows] * count,
            "columns": [columns] * count,
            "map": [None] * count if maps is None else maps,
            "cls": whole[:, 0].numpy() if codes.has_answer else [None] * count,
        },
        schema=CONCEPT_FLOW,
        strict=False,
    )


def _agreements(chain: pl.DataFrame, codes: Mapping[str, Codes], *, controls: int, seed: int) -> pl.DataFrame:
    steps = list(chain.iter_rows(named=True))
    lines = []
    for source, target in pairwise(steps):
        from_codes, to_codes = codes[source["site"]], codes[target["site"]]
        answers = from_codes.site.grid is None or to_codes.site.grid is None
        others = from_codes.controls(source["latent"], controls, answers=answers, seed=seed)
        chosen = [source["latent"], *others]
        if answers:
            found, inputs = answer_agreement(from_codes.answers(chosen), to_codes.answers([target["latent"]])[:, 0])
        else:
            found, inputs = map_agreement(from_codes.patches(chosen), to_codes.patches([target["latent"]])[..., 0])
        own, null = float(found[0]), found[1:].numpy()
        known = inputs > 0 and len(null) > 0
        low, high = np.quantile(null, (0.025, 0.975)) if known else (None, None)
        lines.append(
            {
                "step": target["step"],
                "source_site": source["site"],
                "source_latent": source["latent"],
                "target_site": target["site"],
                "target_latent": target["latent"],
                "over": "inputs" if answers else "patches",
                "agreement": own if inputs else None,
                "inputs": inputs,
                "null_mean": float(null.mean()) if known else None,
                "null_low": low,
                "null_high": high,
                "p": (1 + int((null >= own).sum())) / (1 + len(null)) if known else None,
                "controls": len(null),
            }
        )
    return pl.DataFrame(lines, schema=MAP_AGREEMENT, orient="row")
