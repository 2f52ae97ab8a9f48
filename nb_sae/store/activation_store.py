"""Activations on disk or in memory, as rows keyed by `(input_id, token)`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import polars as pl
from torch import Tensor

from nb_sae.errors import ConfigError, StoreError
from nb_sae.store import files
from nb_sae.store import manifest as manifests
from nb_sae.store.collect import CollectOptions, collect_sites, site_folders
from nb_sae.store.importing import Imported, import_file, import_tensor
from nb_sae.store.ranks import Rank
from nb_sae.store.reading import ShardReader, TensorReader
from nb_sae.store.remote import RemoteShardReader, place_of
from nb_sae.store.view import StoredRows, TableFiles, TableFrames
from nb_sae.types import HookedModel, Inputs, Site, Tokens


class ActivationStore(StoredRows):
    """Rows of one site of one model, read from memory-mapped shards or from a tensor.

    Made by `collect`, `open`, `from_tensor` and `from_file`. `split` and `subset` give views that share the files.
    Implements `types.ActivationSource`.
    """

    # ── making one ────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    @classmethod
    def collect(
        cls, model: HookedModel, inputs: Inputs, *, site: str, path: str | Path, tokens: Tokens = "all",
        dtype: str = "float16", batch_inputs: int | None = None, workers: int | None = None,
        inputs_per_shard: int | None = None, special_tokens: bool = False, overwrite: bool = False,
        progress: bool = True, rank: int | None = None, world: int | None = None,
    ) -> ActivationStore: ...  # fmt: skip

    @overload
    @classmethod
    def collect(
        cls, model: HookedModel, inputs: Inputs, *, site: list[str] | tuple[str, ...], path: str | Path,
        tokens: Tokens = "all", dtype: str = "float16", batch_inputs: int | None = None, workers: int | None = None,
        inputs_per_shard: int | None = None, special_tokens: bool = False, overwrite: bool = False,
        progress: bool = True, rank: int | None = None, world: int | None = None,
    ) -> dict[str, ActivationStore]: ...  # fmt: skip

    @classmethod
    def collect(
        cls,
        model: HookedModel,
        inputs: Inputs,
        *,
        site: str | list[str] | tuple[str, ...],
        path: str | Path,
        tokens: Tokens = "all",
        dtype: str = "float16",
        batch_inputs: int | None = None,
        workers: int | None = None,
        inputs_per_shard: int | None = None,
        special_tokens: bool = False,
        overwrite: bool = False,
        progress: bool = True,
        rank: int | None = None,
        world: int | None = None,
    ) -> ActivationStore | dict[str, ActivationStore]:
        """Run the model over the inputs once and store the rows of one site or of several.

        A collection that was killed or interrupted goes on where it stopped when it is called again with the same
        arguments; a complete one is opened.

        Args:
            model: From `load_clip` or `load_lm`.
            inputs: From `images`, `texts`, `celeba` or `demo_faces`.
            site: A name from `model.hook_names()`, or a list of them for one store per site in folders below `path`.
            path: Folder of the store, made if it does not exist; or an address that fsspec knows, such as
                `s3://bucket/acts`.
            tokens: "all" rows of an input, "cls" for the prefix tokens only, "patches" for all but prefix and
                special tokens. Padding is never kept.
            dtype: "float16", "bfloat16" or "float32" on disk. Rows are always given as float32.
            batch_inputs: Inputs (for text: contexts) that the model sees at a time.
            workers: Processes that decode; 0 decodes in this process. Default: up to four for images.
            inputs_per_shard: Inputs between two points at which an interrupted collection can go on.
            special_tokens: Keep the rows of BOS, EOS and the like of texts.
            overwrite: Replace a store that is at `path`. Other files are never touched.
            progress: Print the byte budget and show the progress.
            rank: Number of this process among several that fill one store, each its own shards; every one of them
                calls `collect` with the same arguments and returns when the store is complete. Default: what torchrun
                says; give `rank=0, world=1` for a call that one process of several makes alone.
            world: How many processes there are.

        Raises:
            HookError: The site does not exist.
            ConfigError: A setting has no meaning for the site.
            PathExistsError: `path` holds something that is no store.
            StoreError: `path` holds a store of another request or another process is filling it, the disk is too
                small, a worker died, or another rank did.
            InputError: No input could be read. Single unreadable inputs are skipped, counted and listed in `skipped`.
            NonFiniteError: A row holds NaN or infinity, or does not fit `dtype`.
            NotEnoughMemoryError: The GPU cannot hold a batch.
        """
        names = [site] if isinstance(site, str) else list(site)
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"site={site!r} should name at least one site, each once. See model.hook_names().")
        sites = [model.site(name, inputs.modality) for name in names]
        root = place_of(path)
        folders = [root] if isinstance(site, str) else site_folders(root, names)
        options = CollectOptions(
            tokens=tokens, dtype=dtype, batch_inputs=batch_inputs, workers=workers, inputs_per_shard=inputs_per_shard,
            special_tokens=special_tokens, overwrite=overwrite, progress=progress, rank=Rank.given(rank, world),
        )  # fmt: skip
        collect_sites(model, inputs, sites, folders, options)
        stores = {name: cls.open(folder) for name, folder in zip(names, folders, strict=True)}
        return stores[site] if isinstance(site, str) else stores

    @classmethod
    def open(cls, path: str | Path, *, model: HookedModel | None = None) -> ActivationStore:
        """Open a complete store. Nothing but the manifest is read until rows are asked for.

        Args:
            path: Folder that `collect` wrote, or its address for fsspec; there, ranges of bytes are fetched in place of
                memory-mapping, and shards are checked by their sizes alone.
            model: If given, the store must be of this model.

        Raises:
            StoreError: No store, an incomplete one, or one of another model.
            FormatError: Another format or version.
            CorruptShardError: A file is missing or truncated; an altered one is named when it is first read.
        """
        folder = place_of(path)
        manifest = manifests.read_manifest(folder)
        request = manifest.request
        if not manifest.complete:
            done = len(manifests.read_parts(folder))
            raise StoreError(
                f"{folder} is incomplete: {done} of {manifest.shard_count} shards are there "
                f"({request.site.name} of {request.model}). Call ActivationStore.collect again with the same "
                "arguments to go on."
            )
        sizes = {shard.file: shard.bytes for shard in manifest.shards}
        sizes |= {name: manifest.tables[name].bytes for name in (manifests.ROWS_TABLE, manifests.INPUTS_TABLE)}
        files.check_sizes(folder, sizes)
        make_reader: Any = ShardReader if isinstance(folder, Path) else RemoteShardReader
        store = cls(
            make_reader(folder, manifest.shards, d_in=request.site.width, dtype=request.dtype),
            site=request.site,
            model=request.model,
            revision=request.revision,
            modality="image" if request.modality == "image" else "text",
            tables=TableFiles(folder, manifest.tables),
            path=folder,
            statistics=manifest.statistics,
        )
        if model is not None:
            store.check(model)
        return store

    @classmethod
    def from_tensor(
        cls,
        x: Tensor | np.ndarray,
        *,
        rows: pl.DataFrame | None = None,
        keys: Sequence[str] | None = None,
        site: str = "rows",
        model: str = "tensor",
    ) -> ActivationStore:
        """Use rows that are in memory. They are not copied.

        Args:
            x: `(rows, d_in)`.
            rows: `input_id, token` of each row, ascending; default: one row per input.
            keys: The inputs' own ids, by `input_id`; default: their numbers.
            site: Name of what the rows are.
            model: Name of what they come from.

        Raises:
            ShapeError: Not two dimensions, or no rows, or `rows`/`keys` of another length.
            NonFiniteError: Names the first row that holds NaN or infinity.
        """
        return cls._of_imported(import_tensor(x, rows=rows, keys=keys), site=site, model=model, path=None)

    @classmethod
    def from_file(
        cls, path: str | Path, *, tensor: str | None = None, site: str = "rows", model: str | None = None
    ) -> ActivationStore:
        """Use rows from a `.npy`, `.safetensors` or `.parquet` file.

        `.npy` and `.safetensors` are memory-mapped. Parquet gives its numeric columns in their order, or its one
        list column; columns `input_id`, `token` and `key` say whose rows they are.

        Args:
            path: The file.
            tensor: Which tensor of a `.safetensors` file with several.
            site: Name of what the rows are.
            model: Name of what they come from; default: the file's name.

        Raises:
            InputNotFoundError: No such file.
            FormatError: The file is of another kind, or is damaged.
            ShapeError: No rows, or not two dimensions.
            NonFiniteError: Names the first row that holds NaN or infinity.
        """
        file = Path(path).expanduser()
        return cls._of_imported(import_file(file, tensor=tensor), site=site, model=model or file.name, path=file)

    @classmethod
    def _of_imported(cls, got: Imported, *, site: str, model: str, path: Path | None) -> ActivationStore:
        return cls(
            TensorReader(got.x, in_memory=got.in_memory),
            site=Site(site, width=got.x.shape[1], pooled=got.positions == 1, positions=got.positions),
            model=model,
            revision="",
            modality=None,
            tables=TableFrames(got.rows, got.inputs),
            path=path,
        )
