"""What a metric says of each input while the rows of one site are changed; the model is run and left as it was.

Owns the forward pass with a change in it, with and without gradients. What to change is up to `output` and
`faithfulness`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nb_sae.attribution.batches import Tower, output_of
from nb_sae.attribution.output_metrics import Metric, one_number
from nb_sae.errors import ConfigError, NonFiniteError
from nb_sae.hooks import intervene
from nb_sae.models.contexts import Batch
from nb_sae.models.tokens import PADDING
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.kernels.gather import dot_rows, sum_rows
from nb_sae.types import Edit

Change = Callable[["Code"], Tensor]
"""The code of the rows of a batch → the rows the model goes on with, float32."""


@dataclass(frozen=True)
class Code:
    """The rows of a batch that count, and what the dictionary makes of them; constants for autograd."""

    x: Float[Tensor, "rows d_in"]
    """As the model gave them, float32."""
    context: Int[Tensor, " rows"]
    token: Int[Tensor, " rows"]
    values: Float[Tensor, "rows k"]
    indices: Int[Tensor, "rows k"]
    x_hat: Float[Tensor, "rows d_in"]
    scale: Tensor | float
    """What a step in latents is multiplied with in each row, `(rows, 1)`; 1 without `row_norm`."""
    W_dec: Float[Tensor, "d_sae d_in"]

    def written(self, values: Float[Tensor, "rows k"]) -> Float[Tensor, "rows d_in"]:
        """Σ value · direction in model units: what latents of these values add to the rows."""
        return sum_rows(self.indices, values, self.W_dec) * self.scale

    def along(self, gradient: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows k"]:
        """z_i D_i·gradient of every active latent."""
        return dot_rows(self.indices, gradient * self.scale, self.W_dec) * self.values


@dataclass(frozen=True)
class Readout:
    """A metric of a tower's output, as a function of the rows of its site."""

    tower: Tower
    dictionary: Dictionary
    metric: Metric
    label: str
    keep_error: bool

    def base(self, code: Code) -> Float[Tensor, "rows d_in"]:
        """The rows with all latents as they are: x bit for bit, or x̂ where the error is left out."""
        return code.x if self.keep_error else code.x_hat

    def values(self, batch: Batch, change: Change | None = None, *, gradients: bool = False) -> Float[Tensor, " input"]:
        """The metric of each input of a batch.

        Args:
            batch: Of the tower.
            change: The rows of the site that the model goes on with; None: `base`.
            gradients: Let autograd follow what `change` gives. No weight gets a gradient.
        """
        return self._run(batch, change or self.base, gradients=gradients)[0]

    def code(self, batch: Batch) -> tuple[Float[Tensor, " input"], Code]:
        """The metric with all latents as they are, and the code of the rows."""
        return self._run(batch, self.base, gradients=False)

    def gradient(
        self, batch: Batch, change: Change | None = None
    ) -> tuple[Float[Tensor, " input"], Code, Float[Tensor, "rows d_in"]]:
        """The metric of each input, and its gradient at the rows that `change` gives.

        0 where the metric does not depend on them.

        Raises:
            ConfigError: the metric gives what autograd does not follow.
            NonFiniteError: the gradient is NaN or infinite.
        """
        leaves: list[Tensor] = []

        def leaf(code: Code) -> Tensor:
            leaves.append((change or self.base)(code).detach().clone().requires_grad_())
            return leaves[0]

        values, code = self._run(batch, leaf, gradients=True)
        if not values.requires_grad:
            raise ConfigError(
                f"No gradient comes back from {self.label}: it gave a plain number (.item(), float(), detach(), "
                "argmax), or the model does not let gradients through. Give a tensor that autograd follows, or use "
                "method='ablation', which needs no gradient."
            )
        (gradient,) = torch.autograd.grad(values, leaves, torch.ones_like(values), allow_unused=True)
        gradient = torch.zeros_like(leaves[0]) if gradient is None else gradient
        if not bool(torch.isfinite(gradient).all()):
            raise NonFiniteError(
                f"The gradient of {self.label} at {self.tower.site!r} is NaN or infinite. Load the model with fp32, or "
                "change the metric where it has no slope."
            )
        return values.detach(), code, gradient

    def _run(self, batch: Batch, change: Change, *, gradients: bool) -> tuple[Tensor, Code]:
        seen: list[Code] = []

        def apply(x: Tensor) -> Tensor:
            mask = self.tower.counted(batch, x.shape).to(x.device)
            # Of a site without an axis for tokens every input has one row.
            grid = x[:, None] if x.ndim == 2 else x
            seen.append(self._encoded(grid[mask].detach(), mask))
            rows = change(seen[0]).to(x.device, x.dtype)
            return grid.index_put(mask.nonzero(as_tuple=True), rows).reshape(x.shape)

        model = self.tower.model
        with (
            # A caller inside inference_mode() asked for no gradients of its own; this one is ours.
            torch.inference_mode(False) if gradients else nullcontext(),
            torch.enable_grad() if gradients else torch.no_grad(),
            _frozen(model.module) if gradients else nullcontext(),
            intervene(model, Edit(self.tower.site, apply, f"The attribution at {self.tower.site!r}")),
        ):
            output = output_of(model, batch.given, self.tower.modality)
            numbers = []
            for number, given, own in zip(batch.inputs, batch.given, output, strict=True):
                # Of logits those of real positions, so that the last one is the last of the prompt.
                own = own if own.ndim == 1 else own[: len(given)][(given != PADDING).to(own.device)]
                numbers.append(one_number(self.metric(own), label=self.label, number=number).to(output.device))
            return torch.stack(numbers), seen[0]

    @torch.no_grad()
    def _encoded(self, x: Tensor, mask: Tensor) -> Code:
        dictionary = self.dictionary
        x = x.to(dictionary.device, torch.float32)
        values, indices = dictionary.encode(x, sparse=True)
        x_hat = dictionary.decode((values, indices)) if dictionary.row_norm is None else dictionary.reconstruct(x)
        context, token = (one.cpu() for one in mask.nonzero(as_tuple=True))
        scale = dictionary.row_scale(x)
        return Code(x, context, token, values, indices, x_hat, scale, dictionary.W_dec)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No weight asks for a gradient meanwhile, so that only what comes after the site is kept for the way back."""
    asking = [weight for weight in module.parameters() if weight.requires_grad]
    try:
        for weight in asking:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)
