"""One optimiser step of one SAE: everything that training changes, and nothing about where rows come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nb_sae.sae import losses, optim
from nb_sae.sae.config import BUDGETED, SAEConfig
from nb_sae.sae.dead import count_silence, dead_latent_loss, resample
from nb_sae.sae.model import SAE
from nb_sae.sae.nested import nested_loss
from nb_sae.sae.training import THRESHOLD_RATE, TrainConfig


@dataclass(frozen=True)
class StepResult:
    """Numbers of one batch, on the device: reading them waits for it."""

    loss: Float[Tensor, ""]
    errors: Float[Tensor, " level"]
    """Mean squared error of each level, sparsest first, in normalised units."""
    variance: Float[Tensor, ""]
    """Mean squared distance of the targets from their mean; errors / variance is the batch's FVU."""
    l0: Float[Tensor, ""]
    """Active latents per row; the largest budget where the number is set."""


class TrainingState:
    """Weights, optimiser and counters of one SAE in training.

    `backward` then `apply` are one step; between them several processes may average the gradients. Nothing in either
    waits for the device. A loss that is not finite marks the step in `failed_step` on the device and the weights stay
    as they were from then on, so that whoever reads the mark finds the last good state.

    Args:
        config: Resolved.
        train: Resolved.
        d_in: Width of a row.
        d_out: Width of a target, for a transcoder.
        device: Where everything lives.
        start_bias: `(d_out,)`, where `b_dec` starts, in normalised units; None is 0, the mean.
        epoch_steps: Steps of one pass over the source, for schedule="epoch".
    """

    def __init__(
        self,
        config: SAEConfig,
        train: TrainConfig,
        d_in: int,
        *,
        d_out: int | None = None,
        device: torch.device,
        start_bias: Float[Tensor, " d_out"] | None = None,
        epoch_steps: int | None = None,
    ) -> None:
        self.config, self.train, self.device = config, train, device
        self.epoch_steps = epoch_steps
        d_sae = config.d_sae or 0
        self.sae = SAE(
            d_in,
            d_sae,
            d_out=d_out,
            sparsity=config.sparsity,
            budgets=config.budgets,
            tied=config.tied,
            encoder_scale=config.encoder_scale,
            seed=train.seed,
            dtype=getattr(torch, train.dtype),
        ).to(device)
        if start_bias is not None:
            self.sae.b_dec.data.copy_(start_bias)
        self.compute_dtype = optim.compute_dtype(train, device, d_in * d_sae)
        self.optimizer = optim.make_optimizer(self.sae, train, device)
        self.average = optim.MovingAverage(self.sae, train.ema_decay) if train.ema_decay else None
        self.silent_rows = torch.zeros(len(config.budgets or (0,)), d_sae, device=device)
        self.failed_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._weights = config.normalised_weights

    def backward(self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"], step: int) -> StepResult:
        """Loss and gradients of one batch in normalised units; counts silence and follows the thresholds."""
        self.optimizer.zero_grad(set_to_none=True)
        x, target = x.to(self.sae.W_dec.dtype), target.to(self.sae.W_dec.dtype)
        row_weights = None
        if self.config.loss == "nmse":
            row_weights = 1 / target.square().mean(-1).clamp_min(1e-6)
        if self.config.sparsity in BUDGETED:
            loss, errors, l0 = self._budgeted(x, target, row_weights, step)
        else:
            loss, errors, l0 = self._penalised(x, target, row_weights, step)
        loss.backward()
        with torch.no_grad():
            variance = (target - target.mean(0)).square().mean()
            self._note_failure(loss.detach(), step)
        return StepResult(loss.detach(), errors, variance, l0)

    def apply(self, step: int) -> None:
        """The optimiser's step with what belongs to it; gradients are those of `backward`."""
        sae, train = self.sae, self.train
        if train.unit_decoder == "before":
            optim.unit_decoder(sae, encoder_follows=True)
        if train.project_gradient:
            optim.project_decoder_gradient(sae)
        if train.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(sae.parameters(), train.grad_clip)
        rate = train.rate_at(step, epoch_steps=self.epoch_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_scale"]
        # Adam's own switch for mixed precision: a step marked as failed is skipped on the device.
        self.optimizer.found_inf = (self.failed_step >= 0).float()  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()
        if train.unit_decoder == "after":
            optim.unit_decoder(sae)
        if self.average is not None:
            self.average.update(sae, step)

    def resample_dead(self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"], step: int) -> int:
        """Start dead latents again at rows of this batch; gives how many. Waits for the device."""
        sae = self.sae
        dead = self.dead
        with torch.no_grad():
            latents = self._plain_latents(sae.pre_activations(x))
            residual = target - (latents @ sae.W_dec + sae.b_dec)
        started = resample(sae, self.optimizer, dead, x, residual, seed=self.train.seed * 1_000_003 + step)
        self.silent_rows.masked_fill_(dead, 0)
        return started

    @property
    def dead(self) -> Tensor:
        """`(d_sae,)` bool, on the device: silent within the largest budget for `dead_after_rows`."""
        return self.silent_rows[-1] >= self.train.dead_after_rows

    def _budgeted(
        self, x: Tensor, target: Tensor, row_weights: Tensor | None, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        sae, config = self.sae, self.config
        budgets = config.budgets or (1,)
        pre = sae.pre_activations(x, self.compute_dtype)
        nested = nested_loss(
            target,
            pre,
            sae.W_dec,
            sae.b_dec,
            budgets=budgets,
            widths=config.widths,
            level_weights=self._weights,
            row_weights=row_weights,
            selection="row" if config.sparsity == "top_k" else "batch",
        )
        if config.sparsity == "batch_top_k":
            rate = max(THRESHOLD_RATE, 1 / (step + 1))
            seen = nested.thresholds.to(sae.threshold.dtype)
            sae.threshold.lerp_(torch.where(seen.isfinite(), seen, sae.threshold), rate)
        loss = nested.loss + self._auxiliary(nested.residual, pre)
        count_silence(self.silent_rows, nested.fired, x.shape[0])
        return loss, nested.errors, loss.new_tensor(float(budgets[-1]))

    def _penalised(
        self, x: Tensor, target: Tensor, row_weights: Tensor | None, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        sae, config = self.sae, self.config
        pre = sae.pre_activations(x, self.compute_dtype)
        share = self.train.sparsity_at(step)
        gate_loss: Tensor | float = 0.0
        if config.sparsity == "jump_relu":
            threshold = sae.log_threshold.exp()
            pre = pre.to(threshold.dtype)
            latents = losses.jump_relu(pre, threshold, config.bandwidth)
            penalty, _ = losses.l0_penalty(pre, threshold, config.bandwidth, config.target_l0 or 1.0)
            penalty = config.l0_weight * penalty
        elif config.sparsity == "gated":
            gate = pre.relu()
            latents = _gated(pre, sae)
            frozen = gate @ sae.W_dec.detach().to(gate.dtype) + sae.b_dec.detach().to(gate.dtype)
            penalty = config.l1_weight * losses.l1_penalty(gate, sae.W_dec)
            # The gate learns to reconstruct by itself, else nothing but the penalty would move it (section 3.2).
            gate_loss = (target - frozen).square().mean()
        else:
            latents = pre.relu()
            penalty = config.l1_weight * losses.l1_penalty(latents, sae.W_dec)
        result = losses.dense_loss(
            target,
            latents,
            sae.W_dec,
            sae.b_dec,
            widths=config.widths,
            level_weights=self._weights,
            row_weights=row_weights,
        )
        active = latents.detach() > 0
        loss = result.loss + gate_loss + share * penalty
        count_silence(self.silent_rows, active.any(0)[None], x.shape[0])
        return loss, result.errors, active.sum(-1).float().mean()

    def _auxiliary(self, residual: Tensor, pre: Tensor) -> Tensor | float:
        dead = self.dead
        # On a CPU asking costs nothing; on a GPU it would wait for the device, so the loss is 0 there instead.
        if not self.train.aux_weight or (self.device.type == "cpu" and not bool(dead.any())):
            return 0.0
        d_sae, d_out = self.sae.W_dec.shape
        k_aux = min(max(1, d_out // 2), d_sae)
        return self.train.aux_weight * dead_latent_loss(residual, pre, self.sae.W_dec, dead, k_aux)

    def _plain_latents(self, pre: Tensor) -> Tensor:
        sae = self.sae
        if self.config.sparsity == "jump_relu":
            return pre * (pre > sae.log_threshold.exp())
        if self.config.sparsity == "gated":
            return _gated(pre, sae)
        return pre.relu()

    def _note_failure(self, loss: Tensor, step: int) -> None:
        finite = loss.isfinite()
        for bias in (self.sae.b_enc, self.sae.b_dec):  # an overflow on the way back shows in the biases' sums
            if bias.grad is not None:
                finite = finite & bias.grad.sum().isfinite()
        failed = torch.where(finite, -1, step)
        self.failed_step.copy_(torch.where(self.failed_step >= 0, self.failed_step, failed))


def _gated(pre: Tensor, sae: SAE) -> Tensor:
    magnitude = (pre - sae.b_enc.to(pre.dtype)) * sae.r_mag.exp().to(pre.dtype) + sae.b_mag.to(pre.dtype)
    return F.relu(magnitude) * (pre > 0)
