"""A dictionary trained on one modality, read on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl
import torch
from torch import Tensor

from nb_sae.errors import ConfigError, ShapeError
from nb_sae.sae.metrics.recovery import RECOVERY, Meter
from nb_sae.sae.metrics.rows import Rows, check_same_site, chunks_of, rows_at_a_time

if TYPE_CHECKING:
    from nb_sae.sae.dictionary import Dictionary

CROSS_MODAL = pl.Schema(
    {
        "trained_on": pl.String,
        "read_on": pl.String,
        "centring": pl.Enum(["dictionary", "own mean", "own mean and scale"]),
        **RECOVERY,
    }
)


def cross_modal(
    dictionaries: Mapping[str, Dictionary],
    rows: Mapping[str, Rows],
    ks: Sequence[int],
    *,
    chunk_rows: int | None = None,
) -> pl.DataFrame:
    """Every dictionary on every set of rows, with the rows as they are and brought to where the dictionary was trained.

    Images and texts of a CLIP have different means, so how rows are centred decides the result. Each line says which:

    - "dictionary": rows as they are; the dictionary subtracts the mean it was trained with;
    - "own mean": the rows' own mean is moved to the training mean before encoding, and back after decoding;
    - "own mean and scale": their root mean square distance from the mean is brought to that of training as well (what
      the paper's code does for every evaluation set).

    Args:
        dictionaries: By what they were trained on, for example {"image": d, "text": e}.
        rows: By the same or other names: tensors `(rows, d_in)` or stores. The mean is that of all rows given.
        ks: Active latents per row, ascending.
        chunk_rows: Rows encoded at a time, None: what fits; tensors are read twice.

    Returns:
        `trained_on, read_on, centring, k, fvu, cosine, l0, dead, rows`. FVU is about the mean of the rows that are
        read, so 1 is what their mean alone gives, whatever the centring.

    Raises:
        ConfigError: a dictionary that does not know the mean of its training rows, a transcoder, or nothing given.
        ShapeError: rows of another width.

    Source:
        Zaigrajew et al. 2025, arXiv:2502.20578: models trained on images read on texts, and back.
    """
    if not dictionaries or not rows:
        raise ConfigError("Nothing to compare. Give at least one dictionary and one set of rows, by name.")
    for name, dictionary in dictionaries.items():
        check_same_site(dictionary)
        if dictionary.mean is None or not dictionary.mean_square_distance:
            raise ConfigError(
                f"The dictionary {name!r} does not know the mean and scale of the rows it was trained on, so rows "
                "cannot be brought to them. Use recovery_curve, or a dictionary that a session trained."
            )
    block = rows_at_a_time(chunk_rows, *dictionaries.values())
    lines = []
    for read_on, given in rows.items():
        mean, distance = _moments(given)
        meters = {name: _CentredMeters(one, ks, mean, distance) for name, one in dictionaries.items()}
        for part in chunks_of(given, block):
            for meter in meters.values():
                meter.add(part)
        for trained_on, meter in meters.items():
            lines += [{"trained_on": trained_on, "read_on": read_on, **line} for line in meter.lines()]
    return pl.DataFrame(lines, schema=CROSS_MODAL)


class _CentredMeters:
    """One dictionary, one set of rows, the three centrings."""

    def __init__(self, dictionary: Dictionary, ks: Sequence[int], mean: Tensor, distance: float) -> None:
        if len(mean) != dictionary.d_in:
            raise ShapeError(f"Rows of width {len(mean)} were given; the dictionary takes {dictionary.d_in}.")
        assert dictionary.mean is not None
        assert dictionary.mean_square_distance
        trained = dictionary.mean.double().cpu()
        scale = (dictionary.mean_square_distance / distance) ** 0.5 if distance > 0 else 1.0
        # FVU does not change when rows and reconstructions move and scale together, cosine does: so each
        # reconstruction is brought back to where its rows were before anything is measured.
        self._meters = {
            "dictionary": Meter(dictionary, ks),
            "own mean": Meter(_Moved(dictionary, mean, trained, 1.0), ks),
            "own mean and scale": Meter(_Moved(dictionary, mean, trained, scale), ks),
        }

    def add(self, rows: Tensor) -> None:
        for meter in self._meters.values():
            meter.add(rows, rows)

    def lines(self) -> list[dict[str, float | str | None]]:
        return [{"centring": name, **line} for name, meter in self._meters.items() for line in meter.lines()]


class _Moved:
    """A dictionary in front of which rows are moved from their mean to the training mean, and scaled."""

    is_transcoder = False

    def __init__(self, dictionary: Dictionary, mean: Tensor, trained: Tensor, scale: float) -> None:
        self.dictionary = dictionary
        self.scale = scale
        self.mean, self.trained = (one.to(dictionary.device, torch.float32) for one in (mean, trained))
        self.d_in, self.d_sae, self.device = dictionary.d_in, dictionary.d_sae, dictionary.device
        self.row_norm = getattr(dictionary, "row_norm", None)
        self.W_dec = dictionary.W_dec / scale
        self.b_dec = (dictionary.b_dec - self.trained) / scale + self.mean

    def encode(self, x: Tensor, k: int | None = None, sparse: bool = False):
        moved = (x - self.mean) * self.scale + self.trained
        return self.dictionary.encode(moved, k, sparse=True) if sparse else self.dictionary.encode(moved, k)

    def reconstruct(self, x: Tensor, k: int | None = None) -> Tensor:
        moved = (x - self.mean) * self.scale + self.trained
        return (self.dictionary.reconstruct(moved, k) - self.trained) / self.scale + self.mean

    def decode_prefixes(self, values: Tensor, indices: Tensor, ks: Sequence[int]) -> list[Tensor]:
        x_hats = self.dictionary.decode_prefixes(values, indices, ks)
        return [(x_hat - self.trained) / self.scale + self.mean for x_hat in x_hats]

    def decode(self, latents):
        return (self.dictionary.decode(latents) - self.trained) / self.scale + self.mean


def _moments(rows: Rows) -> tuple[Tensor, float]:
    """Mean and mean square distance from it, float64, in two passes."""
    if not isinstance(rows, Tensor):
        statistics = rows.statistics()
        return torch.as_tensor(statistics.mean, dtype=torch.float64), statistics.mean_square_distance
    total = torch.zeros(rows.shape[-1], dtype=torch.float64)
    for part in chunks_of(rows):
        total += part.cpu().double().sum(0)
    mean = total / len(rows)
    distance = sum(float((part.cpu().double() - mean).square().sum()) for part in chunks_of(rows))
    return mean, distance / len(rows)
