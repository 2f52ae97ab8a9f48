"""The single streaming pass over a store, whole or in parts, and the tables that are derived from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from nb_sae.analysis.bundle import Analysis
from nb_sae.analysis.lens import check_top, promoted_where_known
from nb_sae.analysis.maps import example_frame
from nb_sae.analysis.part import PartialAnalysis, check_parts, check_same, description, empty_of
from nb_sae.analysis.pictures import Thumbnails, contexts_frame
from nb_sae.analysis.schema import INPUTS
from nb_sae.errors import ConfigError, InputError
from nb_sae.progress import progress as progress_bar
from nb_sae.sae.metrics.rows import targets_of

if TYPE_CHECKING:
    from nb_sae.sae.dictionary import Dictionary
    from nb_sae.types import ActivationSource, HookedModel, Inputs

BLOCK_BYTES = 16 * 2**20
"""Size of the block of pre-activations that is held at a time."""


def analyze(
    dictionary: Dictionary,
    store: ActivationSource,
    inputs: Inputs | None = None,
    *,
    model: HookedModel | None = None,
    top: int = 16,
    per_interval: int = 2,
    seed: int = 0,
    thumbnail: int | None = 112,
    promoted: int = 10,
    title: str | None = None,
    progress: bool = True,
) -> Analysis:
    """Tables of what each latent does on the rows of a store.

    Memory is bounded by latents × examples, not by rows. Activations are those of the trained rule
    (`dictionary.encode` with k=None), in model units.

    Args:
        dictionary: Latents to describe.
        store: Rows of the site it was trained on. A transcoder takes `ns.pair(x, y)`: its latents are described on x,
            its quality is that of y.
        inputs: The images or texts behind the rows; without them there are numbers but no pictures.
        model: Needed to show texts: its tokenizer cuts them as it did when they were collected. A language model with
            an unembedding also gives the tokens that each latent promotes and suppresses (`logit_lens`).
        top: Strongest contexts kept per latent, each with its strongest token; exact.
        per_interval: Rows sampled per latent from each of ten equal-width intervals of activation; uniform, seeded.
        seed: Of the sample.
        thumbnail: Longest side of the pictures, pixels; None: no pictures.
        promoted: Tokens per latent, side and sign in the table `promoted`; 0: no such table.
        title: Shown above the dashboard.

    Raises:
        ConfigError: a setting that has no meaning.
        StoreError: the rows are of another model, site, width or scale; or a transcoder was given no pairs.
        InputError: the inputs are not those of the store.
    """
    dictionary.check(store)
    _check_shown(store, inputs, model, promoted)
    part = analyze_part(
        dictionary, store, part=(0, 1), top=top, per_interval=per_interval, seed=seed, progress=progress
    )  # fmt: skip
    return merge_analyses(
        [part], dictionary, store, inputs, model=model, thumbnail=thumbnail, promoted=promoted, title=title
    )


def analyze_all(
    dictionaries: Mapping[str, Dictionary],
    stores: Mapping[str, ActivationSource],
    inputs: Inputs | None = None,
    *,
    model: HookedModel | None = None,
    top: int = 16,
    per_interval: int = 2,
    seed: int = 0,
    thumbnail: int | None = 112,
    promoted: int = 10,
    progress: bool = True,
) -> dict[str, Analysis]:
    """`analyze` for the dictionaries of many sites, whose pictures are read and made small once.

    Args:
        dictionaries: By site.
        stores: Rows of every one of these sites.
        inputs: See `analyze`, as are the others. The same inputs at every site.
        model: See `analyze`.
        top: See `analyze`.
        per_interval: See `analyze`.
        seed: See `analyze`.
        thumbnail: See `analyze`.
        promoted: See `analyze`.
        progress: Show the progress of each site.

    Returns:
        Site → analysis, in the order of `dictionaries`.

    Raises:
        ConfigError: no dictionaries, a site without rows, or a setting that has no meaning.
        StoreError: the rows are of another model, site, width or scale.
        InputError: the inputs are not those of a store.
    """
    missing = [site for site in dictionaries if site not in stores]
    if missing or not dictionaries:
        told = f"No rows are given for {', '.join(map(repr, missing))}" if missing else "No dictionaries were given"
        raise ConfigError(f"{told}; expected the same sites in dictionaries and stores. Collect them in one call.")
    for site, dictionary in dictionaries.items():
        dictionary.check(stores[site])
        _check_shown(stores[site], inputs, model, promoted)
    drawn = Thumbnails(inputs, thumbnail) if inputs is not None and inputs.modality == "image" and thumbnail else None
    found = {}
    for site, dictionary in dictionaries.items():
        settings = {"top": top, "per_interval": per_interval, "seed": seed, "progress": progress}
        part = analyze_part(dictionary, stores[site], part=(0, 1), **settings)
        found[site] = _tables(
            [part], dictionary, stores[site], inputs, drawn, model=model, promoted=promoted, title=None
        )  # fmt: skip
    return found


def analyze_part(
    dictionary: Dictionary,
    store: ActivationSource,
    *,
    part: tuple[int, int],
    top: int = 16,
    per_interval: int = 2,
    seed: int = 0,
    progress: bool = True,
) -> PartialAnalysis:
    """The pass over one of several parts of a store, for one of several processes or machines.

    Parts are runs of neighbouring rows. `merge_analyses` makes of all of them bit for bit the tables that `analyze`
    makes of the whole store, on the same kind of processor and with the same number of threads.

    Args:
        dictionary: See `analyze`.
        store: The whole store, the same for every part.
        part: `(i, n)`: part i of n, numbered from 0. Of a short store some parts are empty.
        top: See `analyze`.
        per_interval: See `analyze`.
        seed: See `analyze`.
        progress: Show the progress.

    Raises:
        ConfigError: there is no such part, or a setting has no meaning.
        StoreError: the rows are of another model, site, width or scale.
    """
    if top < 1 or per_interval < 0:
        raise ConfigError(f"top={top} must be at least 1 and per_interval={per_interval} at least 0.")
    index, count = part
    if not 0 <= index < count:
        raise ConfigError(f"part={part} does not exist. Give (i, n) with i from 0 to n - 1.")
    dictionary.check(store)
    targets = targets_of(dictionary, store)
    chunk_rows = max(1024, BLOCK_BYTES // (4 * dictionary.d_sae))
    settings = {"chunk_rows": chunk_rows, "top": top, "per_interval": per_interval, "seed": seed}
    about = description(dictionary, store, targets, **settings)
    kept = empty_of(about)
    spans = list(store.chunk_spans(chunk_rows))
    mine = range(len(spans) * index // count, len(spans) * (index + 1) // count)
    label = "analyze" if count == 1 else f"analyze part {index} of {count}"
    with progress_bar(sum(spans[n][1] - spans[n][0] for n in mine), "rows", label, enabled=progress) as bar:
        for number in mine:
            first, stop = spans[number]
            rows = store[first:stop]
            beside = rows if targets is store else targets[first:stop]
            kept.add(number, first, rows, beside, store.rows.slice(first, stop - first), dictionary)
            bar.update(stop - first)
    return PartialAnalysis(about, (index, count), kept)


def merge_analyses(
    parts: Sequence[PartialAnalysis],
    dictionary: Dictionary,
    store: ActivationSource,
    inputs: Inputs | None = None,
    *,
    model: HookedModel | None = None,
    thumbnail: int | None = 112,
    promoted: int = 10,
    title: str | None = None,
) -> Analysis:
    """The tables of a whole store from all of its parts, in any order. Reads only the contexts of the examples again.

    Args:
        parts: From `analyze_part` or `PartialAnalysis.load`, each once.
        dictionary: The one that made the parts.
        store: The one that the parts are of.
        inputs: See `analyze`.
        model: See `analyze`.
        thumbnail: See `analyze`.
        promoted: See `analyze`.
        title: See `analyze`.

    Raises:
        ConfigError: a setting that has no meaning.
        StoreError: parts are missing, given twice, or of another dictionary, store or setting.
        InputError: the inputs are not those of the store.
    """
    check_parts(parts)
    _check_shown(store, inputs, model, promoted)
    drawn = Thumbnails(inputs, thumbnail) if inputs is not None and inputs.modality == "image" and thumbnail else None
    return _tables(parts, dictionary, store, inputs, drawn, model=model, promoted=promoted, title=title)


def _tables(
    parts: Sequence[PartialAnalysis],
    dictionary: Dictionary,
    store: ActivationSource,
    inputs: Inputs | None,
    drawn: Thumbnails | None,
    *,
    model: HookedModel | None,
    promoted: int,
    title: str | None,
) -> Analysis:
    about = parts[0].about
    settings = {name: about[name] for name in ("chunk_rows", "top", "per_interval", "seed")}
    targets = targets_of(dictionary, store)
    check_same(about, description(dictionary, store, targets, **settings))
    kept = empty_of(about)
    for part in sorted(parts, key=lambda part: part.part):
        kept.merge(copy.deepcopy(part.kept) if len(parts) > 1 else part.kept)
    starts = [first for first, _ in store.chunk_spans(about["chunk_rows"])]
    examples = example_frame(dictionary, store, kept.chosen(), starts)
    used = examples["input_id"].unique().sort()
    contexts = None
    if inputs is not None and inputs.modality == "text" and model is not None:
        contexts = contexts_frame(inputs, examples, store.site, model)
    return Analysis(
        latents=kept.latents(),
        examples=examples,
        quality=kept.quality(),
        inputs=store.inputs.filter(pl.col("input_id").is_in(used.implode())).select(INPUTS.names()).cast(INPUTS),
        pictures=drawn.frame(used.to_list(), store.site) if drawn is not None else None,
        contexts=contexts,
        promoted=promoted_where_known(model, dictionary, store.site.name, top=promoted),
        site=store.site,
        rows=len(store),
        budgets=kept.rule.budgets,
        widths=kept.rule.widths,
        modality=inputs.modality if inputs is not None else "image",
        model=store.model,
        title=title or f"{store.site.name}{'' if targets is store else f' → {targets.site.name}'} of {store.model}",
    )


def _check_shown(store: ActivationSource, inputs: Inputs | None, model: HookedModel | None, promoted: int) -> None:
    if promoted != 0:
        check_top(promoted)
    if inputs is None:
        return
    _check_inputs(store, inputs)
    if inputs.modality == "text" and model is None:
        raise InputError("Texts are shown as tokens, which needs their tokenizer. Pass analyze(…, model=lm).")


def _check_inputs(store: ActivationSource, inputs: Inputs) -> None:
    known = store.inputs
    largest = known["input_id"].max()
    if isinstance(largest, int) and largest >= len(inputs):
        raise InputError(
            f"The store numbers its inputs up to {largest}, but {len(inputs)} were given. "
            "Give the inputs that were collected, all of them, in the same order."
        )
    probe = known.sample(min(64, known.height), seed=0)
    for input_id, key in probe.select("input_id", "key").iter_rows():
        if inputs.keys[input_id] != key:
            raise InputError(
                f"Input {input_id} of the store is {key!r}, of the given inputs {inputs.keys[input_id]!r}. "
                "Give the inputs that were collected, in the same order."
            )
