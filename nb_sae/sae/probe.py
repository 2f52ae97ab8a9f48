"""A few rows on which a session is looked at while it trains: what they are decoded to, which latents they make active.

The rows are the same at every look, so that what changes is the dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nb_sae.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from nb_sae.sae.session import Session

PROBE_ROWS = 256
SHOWN_ROWS = 8
"""Rows of which the reconstruction itself is given."""
SHOWN_DIMENSIONS = 64


@dataclass(frozen=True)
class Look:
    """What one look finds, as numpy arrays."""

    step: int
    ks: tuple[int | None, ...]
    """The budgets, sparsest first; (None,) for a rule that sets no k."""
    fvu: NDArray[np.float64]
    """`(ks,)`, over the probe's rows, about the mean of the training rows."""
    explained: NDArray[np.float64]
    """`(shown, ks)`: 1 − ‖x − x̂‖² / ‖x − mean‖² of each shown row; below 0 where it is worse than the mean."""
    x: NDArray[np.float32]
    """`(shown, dimensions)`, about the mean, in units of the rows' root mean square per dimension."""
    x_hat: NDArray[np.float32]
    """`(shown, ks, dimensions)`, the same."""
    values: NDArray[np.float32]
    """`(rows, k)` activations in model units, strongest first, by the trained rule; 0 is not active."""
    indices: NDArray[np.int64]
    """`(rows, k)` their latents."""


class Probe:
    """Rows of a session's source, chosen by chance with a seed, and what the session makes of them.

    Args:
        session: Its source must give rows by number.
        rows: How many; fewer where the source has fewer.
        seed: Which.

    Raises:
        StoreError: the source, such as a stream, gives no rows by number.
        ConfigError: the dictionary is split over processes, which would all have to look at once.
    """

    def __init__(self, session: Session, *, rows: int = PROBE_ROWS, seed: int = 0) -> None:
        if session.group.latent_shares > 1:
            raise ConfigError(
                f"This process holds one of {session.group.latent_shares} parts of the dictionary, and cannot look at "
                "rows by itself. Save the session and look at session.dictionary of what Session.load gives."
            )
        source: Any = session.source
        count = min(rows, len(source))
        generator = np.random.default_rng(seed)
        self.rows: NDArray[np.int64] = np.sort(generator.choice(len(source), count, replace=False))
        """Numbers of the rows in the source."""
        self.shown: NDArray[np.int64] = np.sort(generator.choice(count, min(SHOWN_ROWS, count), replace=False))
        """Which of them are shown themselves, as positions in `rows`."""
        try:
            self._x = self._read(source)
            self._target = self._x if getattr(source, "target", None) is None else self._read(source.target)
            frame = source.rows[self.rows.tolist()]
            self.input_ids: list[int] = frame["input_id"].to_list()
            self.tokens: list[int] = frame["token"].to_list()
        except (StoreError, TypeError, AttributeError, NotImplementedError) as error:
            raise StoreError(f"These rows cannot be read by number ({error}); collect them into a store.") from error
        spread = self._target[self.shown].var(0)
        most = min(SHOWN_DIMENSIONS, self._target.shape[1])
        self.dimensions: NDArray[np.int64] = np.sort(spread.topk(most).indices.numpy())
        """The dimensions in which the shown rows vary most, ascending."""

    def _read(self, source: Any) -> Tensor:
        rows = torch.as_tensor(source[self.rows])
        return rows.detach().to("cpu", torch.float32)

    @torch.no_grad()
    def look(self, session: Session) -> Look:
        """Encode and decode with the dictionary as it is now. On a GPU this waits for the device."""
        dictionary = session.dictionary
        device = dictionary.device
        x, target = self._x.to(device), self._target.to(device)
        values, indices = dictionary.encode(x, sparse=True)
        ks: tuple[int | None, ...] = (None,)
        if dictionary.sets_k:
            ks = dictionary.rank_budgets
            x_hats = dictionary.decode_levels(values, indices)
        else:
            x_hats = [dictionary.decode(dictionary.encode(x))]
        mean = torch.as_tensor(session.target_mean, dtype=torch.float32, device=device)
        spread = (target - mean).square().sum(-1)
        errors = torch.stack([(target - one).square().sum(-1) for one in x_hats], -1)
        unit = float((spread.mean() / target.shape[1]).sqrt().clamp_min(1e-12))
        shown = torch.as_tensor(self.shown, device=device)
        columns = torch.as_tensor(self.dimensions, device=device)
        few = torch.stack([(one - mean)[shown][:, columns] for one in (target, *x_hats)], 1) / unit
        return Look(
            step=session.step,
            ks=ks,
            fvu=(errors.sum(0) / spread.sum().clamp_min(1e-12)).double().cpu().numpy(),
            explained=(1 - errors[shown] / spread[shown, None].clamp_min(1e-12)).double().cpu().numpy(),
            x=few[:, 0].cpu().numpy(),
            x_hat=few[:, 1:].cpu().numpy(),
            values=values.float().cpu().numpy(),
            indices=indices.cpu().numpy(),
        )
