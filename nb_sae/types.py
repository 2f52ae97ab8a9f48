"""The shapes and protocols that cross the borders between the parts of nb_sae.

Nothing here imports torch or numpy when the package is imported; the names are for annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    import torch
    from torch import Tensor, nn

Modality = Literal["image", "text"]
Tokens = Literal["all", "cls", "patches"]
"""Which rows of an input are kept: every one, the prefix tokens only, or all but prefix and special tokens."""


@dataclass(frozen=True)
class Site:
    """Where a model is hooked, and how the rows of one input lie there.

    A token's number is its position: `token // positions` is the context (always 0 for an image),
    `token % positions` the position in it. Prefix tokens (CLS, registers) come first.
    """

    name: str
    width: int
    """Width of a row, `d_in`."""
    pooled: bool = False
    """One row per input (`token` is always 0)."""
    prefix_tokens: int = 0
    """Leading tokens that stand for no patch (CLS, registers)."""
    positions: int = 1
    """Positions of one context, prefix tokens included: `1 + 8*8` for a ViT, the context length for text."""
    grid: tuple[int, int] | None = None
    """Rows and columns of patches, row by row from the top left; None for text and for pooled sites."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """How the preprocessing brings a picture to the model's shape: by its central part, by squashing, by a border."""


@runtime_checkable
class Inputs(Protocol):
    """A numbered collection of images or texts. `input_id` is the position in it."""

    modality: Modality
    name: str

    @property
    def keys(self) -> Sequence[str]:
        """The input's own id: file name relative to its folder, data set index, or what the user gave."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, input_id: int) -> Any:
        """A `PIL.Image.Image` in RGB, or a `str`. Raises `InputError` if this one cannot be read."""
        ...


@dataclass
class Prepared:
    """One input made ready for a model: what a worker process gives back. Holds plain CPU tensors only.

    An image has one context; a text has as many as its tokens fill.
    """

    tensor: Tensor
    """`(contexts, …)`: pixels `(1, 3, h, w)`, or token ids `(contexts, positions)`."""
    keep: Tensor | None = None
    """`(contexts, positions)` bool: False on padding. None: every position is real."""
    special: Tensor | None = None
    """`(contexts, positions)` bool: True on BOS, EOS, CLS, SEP and padding. None: none is special."""


@runtime_checkable
class HookedModel(Protocol):
    """A model that can be hooked: `load_clip`, `load_lm`, or the user's own module with its preprocessing."""

    name: str
    revision: str
    """Hash or tag that tells two sets of weights apart."""
    module: nn.Module

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    def hook_names(self) -> list[str]:
        """Every site that gives rows, in the order of the forward pass."""
        ...

    def site(self, name: str, modality: Modality) -> Site:
        """What lies at a site. Raises `HookError` with the closest names."""
        ...

    def preprocessor(self, modality: Modality, *, context_tokens: int | None = None) -> Callable[[Any], Prepared]:
        """A picklable function from one raw input to `Prepared`, run in worker processes. Holds no weights."""
        ...

    def capture_rows(self, batch: Tensor, sites: Sequence[str], modality: Modality) -> dict[str, Tensor]:
        """Run forward as far as the last site needs and return `(contexts, tokens, width)` or `(contexts, width)`."""
        ...

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The text of each token id, as shown to a reader. Raises `InputError` for a model without text."""
        ...


@dataclass(frozen=True)
class Edit:
    """A change of the activations at one site, applied by `hooks.intervene`.

    `apply` takes and gives `(batch, token, width)` or `(batch, width)` in model units.
    """

    site: str
    apply: Callable[[Tensor], Tensor]
    label: str = ""


@dataclass(frozen=True)
class RowStatistics:
    """Mean and norm of the rows, as training and the scale check need them."""

    rows: int
    mean: np.ndarray = field(repr=False)
    """`(d_in,)` float64."""
    mean_square_distance: float = 0.0
    """Mean over rows of ‖x − mean‖²."""


@runtime_checkable
class ActivationSource(Protocol):
    """Rows `(row, d_in)` keyed by `(input_id, token)`, read from disk or memory."""

    site: Site
    model: str
    revision: str

    @property
    def d_in(self) -> int:
        """Width of a row."""
        ...

    @property
    def rows(self) -> pl.DataFrame:
        """`input_id, token`, one line per row, in the order of the rows."""
        ...

    @property
    def inputs(self) -> pl.DataFrame:
        """`input_id, key, status, reason`: every input that was offered, also those skipped."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Tensor:
        """Rows by number, slice or integer array, float32 on the CPU."""
        ...

    def statistics(self) -> RowStatistics:
        """Mean and spread of all rows."""
        ...

    def batches(
        self,
        batch_rows: int,
        *,
        seed: int,
        epoch: int = 0,
        skip: int = 0,
        device: Any = "cpu",
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[Tensor]:
        """Shuffled full batches of one epoch; the order depends on `(seed, epoch)` alone.

        `share=(i, n)` gives every n-th row of each batch, from the i-th on: what process i of n trains on.
        """
        ...

    def chunks(self, chunk_rows: int) -> Iterator[tuple[int, Tensor]]:
        """`(first row, rows)` in order; a chunk ends where a context ends."""
        ...

    def chunk_spans(self, chunk_rows: int) -> Iterator[tuple[int, int]]:
        """`(first row, last row + 1)` of every chunk that `chunks` gives."""
        ...
