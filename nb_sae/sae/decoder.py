"""x̂ = latents W_dec + b_dec: what trained dictionaries and the classical baselines share."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nb_sae.errors import ShapeError
from nb_sae.sae.model import decode_sparse


class LinearDecoder:
    """Directions in model units, one per latent, and where they start."""

    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    target: str | None
    """Site whose rows are reconstructed, for a transcoder; None: the site that is read."""

    @property
    def d_in(self) -> int:
        """Width of a row."""
        raise NotImplementedError

    @property
    def d_out(self) -> int:
        """Width of a reconstruction: `d_in`, except for a transcoder."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    @property
    def is_transcoder(self) -> bool:
        """Whether its reconstructions are of other rows than it reads."""
        return self.target is not None or self.d_out != self.d_in

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_dec.device

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "rows d_sae"] | tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]
    ) -> Float[Tensor, "rows d_out"]:
        """Rows in model units from latents, dense or as `(values, latent numbers)`.

        Of a dictionary with `row_norm` they come out normalised: the norm of a row is not in its latents; see
        `reconstruct`.

        Raises:
            ShapeError: another number of latents.
        """
        if isinstance(latents, tuple):
            return self.b_dec + decode_sparse(*latents, self.W_dec)
        if latents.ndim != 2 or latents.shape[1] != self.d_sae:
            raise ShapeError(f"Latents of shape {tuple(latents.shape)} were given; expected (rows, {self.d_sae}).")
        return torch.addmm(self.b_dec, latents.to(self.device, torch.float32), self.W_dec)
