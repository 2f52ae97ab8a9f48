"""A dictionary in place of a site: the model runs on with reconstructions instead of what it computed there."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from nb_sae.errors import ConfigError, ShapeError
from nb_sae.types import Edit

if TYPE_CHECKING:
    from nb_sae.sae.dictionary import Dictionary


class Spliceable:
    """What lets a `Dictionary` stand in a running model: `ns.intervene(model, dictionary)` calls `splice`."""

    def splice(self: Any, k: int | None = None, keep_error: bool = False, site: str | None = None) -> Edit:
        """An edit for `ns.intervene` that replaces every row of the site by its reconstruction, x → x̂.

        Of a text or of patches each token is replaced, also special ones, which a store leaves out unless told
        otherwise; `ns.recovered` keeps those as they are. Gradients do not pass through a reconstruction.

        Args:
            k: Active latents per row; None: the trained rule.
            keep_error: Add what the reconstruction misses, x̂ + (x − x̂), which is x: the rows stay as they are, bit
                for bit. The control of a splice; to change latents and keep the error use `steer`, `ablate`, `clamp`.
            site: Where; None: where the dictionary was trained.

        Raises:
            ConfigError: no site, a transcoder (it writes to another site than it reads), or k outside [1, d_sae].
            ShapeError: when the model runs, rows of another width.
        """
        place = site or self.site
        if place is None:
            raise ConfigError("This dictionary does not say which site it is of. Give site=, a name from hook_names().")
        if self.is_transcoder:
            raise ConfigError(
                f"A transcoder reads {self.site!r} and writes {self.target or 'other rows'!r}: what it gives are no "
                "rows of the site that it reads. Splice an SAE of the site."
            )
        if k is not None and (isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= self.d_sae):
            raise ConfigError(f"k={k!r} is outside [1, d_sae={self.d_sae}]. Ask for fewer active latents per row.")
        label = f"the reconstruction at {place!r}" + (f" with k={k}" if k else "")
        return Edit(place, lambda x: spliced(self, x, k, keep_error=keep_error), label)


@torch.no_grad()
def spliced(
    dictionary: Dictionary, x: Float[Tensor, "*rows d_in"], k: int | None, *, keep_error: bool
) -> Float[Tensor, "*rows d_in"]:
    """Reconstructions of rows, in the shape, dtype and on the device in which they came."""
    if x.ndim < 1 or x.shape[-1] != dictionary.d_in:
        raise ShapeError(f"Rows of shape {tuple(x.shape)} were given; this dictionary takes (…, {dictionary.d_in}).")
    if keep_error or not x.numel():
        return x
    x_hat = dictionary.reconstruct(x.reshape(-1, dictionary.d_in), k)
    return x_hat.reshape(x.shape).to(x.device, x.dtype)
