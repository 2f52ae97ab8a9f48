"""One optimiser step of one SAE: everything that training changes, and nothing about where rows come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nb_sae.errors import ConfigError, FormatError
from nb_sae.machine import reading_waits
from nb_sae.sae import losses, optim, sharded, whole_batch
from nb_sae.sae.config import BUDGETED, SAEConfig
from nb_sae.sae.dead import count_silence, dead_latent_loss, resample
from nb_sae.sae.distributed import Alone, Group
from nb_sae.sae.model import SAE
from nb_sae.sae.nested import NestedLoss, nested_loss
from nb_sae.sae.residual import residual_loss
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


@dataclass(frozen=True)
class _Batch:
    """What one forward pass leaves, beside its gradients."""

    loss: Tensor
    errors: Tensor
    l0: Tensor
    fired: Tensor
    """`(budgets, d_sae)` bool."""
    thresholds: Tensor | None = None
    """`(budgets,)`, of "batch_top_k"."""


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
        axes: `(d_in, d_in)`, the directions that rows are turned to, from `scale.principal_axes`; for
            train.principal_axes. None leaves rows as they are.
        target_axes: `(d_out, d_out)`, the same for the targets of a transcoder.
        epoch_steps: Steps of one pass over the source, for schedule="epoch".
        group: The processes that train together; None: this one alone.
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
        axes: Float[Tensor, "d_in d_in"] | None = None,
        target_axes: Float[Tensor, "d_out d_out"] | None = None,
        epoch_steps: int | None = None,
        group: Group | None = None,
    ) -> None:
        optim.check_device(train, device)
        self.config, self.train, self.device = config, train, device
        self.epoch_steps = epoch_steps
        self.group: Group = group or Alone()
        if self.group.latent_shares > 1 and config.sparsity != "top_k":
            raise ConfigError(
                f"latent_shares={self.group.latent_shares}: a dictionary with sparsity={config.sparsity!r} cannot be "
                "split over processes. Use SAEConfig.msae or .topk, or latent_shares=1."
            )
        d_sae = config.d_sae or 0
        self.sae = SAE(
            d_in,
            d_sae,
            d_out=d_out,
            sparsity=config.sparsity,
            budgets=config.budgets,
            tied=config.tied,
            encoder_scale=config.encoder_scale,
            levels=len(config.levels) if config.learns_scale else 1,
            principal_axes=bool(train.principal_axes),
            seed=train.seed,
            dtype=getattr(torch, train.dtype),
        )
        self.group.split(dict(self.sae.named_parameters()))
        self.sae.to(device)
        for buffer, given in ((self.sae.axes, axes), (self.sae.target_axes, target_axes)):
            if buffer is not None and given is not None:
                buffer.copy_(given)
        if start_bias is not None:
            turned = self.sae.axes if d_out is None else self.sae.target_axes
            bias = start_bias.to(device, self.sae.b_dec.dtype)
            self.sae.b_dec.data.copy_(bias if turned is None else bias @ turned)
        self.compute_dtype = optim.compute_dtype(train, device, d_in * d_sae)
        self.optimizer = optim.make_optimizer(self.sae, train, device)
        self.average = optim.MovingAverage(self.sae, train.ema_decay) if train.ema_decay else None
        self.silent_rows = torch.zeros(len(config.budgets or (0,)), self.sae.d_sae, device=device)
        self.failed_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._weights = config.normalised_weights
        self._nested_loss = nested_loss
        if self.group.latent_shares > 1 and config.residual:
            raise ConfigError("residual=True does not work on a dictionary that is split. Use residual=False.")
        if self.group.latent_shares > 1:
            self._nested_loss = partial(sharded.nested_loss, group=self.group)
        elif self.group.row_shares > 1 and config.sparsity == "batch_top_k":
            self._nested_loss = partial(whole_batch.nested_loss, group=self.group)

    def backward(self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"], step: int) -> StepResult:
        """Loss and gradients of one batch in normalised units; counts silence and follows the thresholds.

        Several processes average their gradients here. A batch that fails changes nothing but the mark.
        """
        self.optimizer.zero_grad(set_to_none=True)
        x, target = self._turned(x, target)
        row_weights = None
        if self.config.loss == "nmse":
            row_weights = 1 / target.square().mean(-1).clamp_min(1e-6)
        if self.config.sparsity in BUDGETED:
            batch = self._budgeted(x, target, row_weights, step)
        else:
            batch = self._penalised(x, target, row_weights, step)
        batch.loss.backward()
        self.group.reduce_gradients(self.sae.parameters())
        with torch.no_grad():
            variance = (target - self.group.mean(target.mean(0))).square().mean()
            self._note_failure(batch.loss.detach(), step)
            self._count(batch, x.shape[0], step)
        return StepResult(batch.loss.detach(), batch.errors, variance, batch.l0)

    def apply(self, step: int) -> None:
        """The optimiser's step with what belongs to it; gradients are those of `backward`."""
        sae, train = self.sae, self.train
        failed = self.failed_step >= 0
        if train.unit_decoder == "before":
            optim.unit_decoder(sae, failed, encoder_follows=True)
        if train.project_gradient:
            optim.project_decoder_gradient(sae)
        if isinstance(train.grad_clip, float):
            self.group.clip_gradients(sae.parameters(), train.grad_clip)
        rate = train.rate_at(step, epoch_steps=self.epoch_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_scale"]
        if self.optimizer.defaults["fused"]:
            # Adam's own switch for mixed precision: a step marked as failed is skipped on the device.
            self.optimizer.found_inf = failed.float()  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer.step()
        elif not bool(failed):  # without the fused kernel the device is waited for
            self.optimizer.step()
        if train.unit_decoder == "after":
            optim.unit_decoder(sae, failed)
        if self.average is not None:
            self.average.update(sae, step, failed)

    def resample_dead(self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"], step: int) -> int:
        """Start dead latents again at rows of this batch; gives how many. Waits for the device."""
        if int(self.failed_step) >= 0:
            return 0
        if self.group.latent_shares > 1:
            raise ConfigError("resample_every does not work on a dictionary that is split. Leave it out; AuxK does.")
        sae = self.sae
        dead = self.dead
        x, target = self._turned(self.group.gather_rows(x), self.group.gather_rows(target))
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

    def change(self, config: SAEConfig, train: TrainConfig) -> None:
        """Go on with other settings; weights, moments and counters stay. Parameters must keep their shapes.

        A level that is new takes over silence, threshold and scale of the next larger one there was, or of the largest.
        """
        self.compute_dtype = optim.compute_dtype(train, self.device, self.sae.W_dec.numel())
        before, after = self.config.budgets or (0,), config.budgets or (0,)
        if before != after:
            rows = [_next_larger(before, one) for one in after]
            self.silent_rows = self.silent_rows[rows].clone()
            if config.sparsity == "batch_top_k":
                self.sae.threshold = self.sae.threshold[rows].clone()
        if self.sae.log_level_scale is not None and self.config.levels != config.levels:
            inner = self.config.widths or (0,)
            levels = [
                _next_larger(before, budget or 0) * len(inner) + _next_larger(inner, width or inner[-1])
                for budget, width in config.levels
            ]
            self._take_levels(self.sae.log_level_scale, levels)
        for group in self.optimizer.param_groups:
            group["betas"], group["eps"] = train.betas or group["betas"], train.eps
        if train.ema_decay is None:
            self.average = None
        elif self.average is None:
            self.average = optim.MovingAverage(self.sae, train.ema_decay)
        else:
            self.average.decay = train.ema_decay
        self.config, self.train, self._weights = config, train, config.normalised_weights

    def _take_levels(self, parameter: Tensor, levels: list[int]) -> None:
        """One number per level: those of the new levels are the ones of the old levels that are named."""
        parameter.grad = None
        parameter.data = parameter.data[levels].clone()
        moments = self.optimizer.state.get(parameter, {})
        for name in ("exp_avg", "exp_avg_sq"):
            if name in moments:
                moments[name] = moments[name][levels].clone()
        if self.average is not None and "log_level_scale" in self.average.tensors:
            self.average.tensors["log_level_scale"] = self.average.tensors["log_level_scale"][levels].clone()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that `load` needs to go on bit for bit, by name, on the device. Not copies.

        Of a dictionary that is split, it is put together; all processes have to ask.
        """
        return sharded.whole(self._tensors(), self.group)

    def tensors_to_save(self) -> dict[str, Tensor]:
        """The same for the main process alone; all processes have to ask."""
        return sharded.to_main(self._tensors(), self.group)

    def _tensors(self) -> dict[str, Tensor]:
        named = {name: value.detach() for name, value in self.sae.state_dict().items()}
        for name, parameter in self.sae.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            named |= {f"adam.{name}.{moment}": value for moment, value in moments.items()}
        if self.average is not None:
            named |= {f"average.{name}": value for name, value in self.average.tensors.items()}
        return named | {"silent_rows": self.silent_rows}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave.

        Raises:
            FormatError: a tensor is missing, left over, or of another shape.
        """
        left = sharded.own_part(tensors, self.group, self.config.d_sae or 0)
        for name, parameter in self.sae.named_parameters():
            moments = [one for one in left if one.startswith("adam.") and one.split(".")[1] == name]
            if moments:
                fused = self.optimizer.defaults["fused"]
                self.optimizer.state[parameter] = {
                    one.split(".")[2]: left.pop(one).to(
                        self.device if fused or not one.endswith(".step") else "cpu", copy=True
                    )
                    for one in moments
                }
        own = self._tensors()
        own = {name: value for name, value in own.items() if not name.startswith("adam.")}
        wrong = [name for name in own if name not in left or left[name].shape != own[name].shape]
        wrong += [name for name in left if name not in own]
        if wrong:
            raise FormatError(f"The saved state does not fit its own settings: {', '.join(sorted(wrong))}.")
        for name, value in own.items():
            value.copy_(left[name])

    def _turned(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and targets along the axes, in the dtype of the parameters."""
        sae, same = self.sae, target is x
        x, target = x.to(sae.W_dec.dtype), target.to(sae.W_dec.dtype)
        if sae.axes is not None:
            x = x @ sae.axes
            target = x if same else target @ (sae.axes if sae.target_axes is None else sae.target_axes)
        return x, target

    def _count(self, batch: _Batch, rows: int, step: int) -> None:
        """Silence and thresholds move with a batch that is good."""
        failed = self.failed_step >= 0
        seen_rows = torch.where(failed, 0, rows * self.group.row_shares)
        count_silence(self.silent_rows, self.group.any(batch.fired) & ~failed, seen_rows)
        if batch.thresholds is not None:
            held = self.sae.threshold
            seen = self.group.smallest(batch.thresholds).to(held.dtype)
            rate = max(THRESHOLD_RATE, 1 / (step + 1))
            held.lerp_(torch.where(failed | ~seen.isfinite(), held, seen), rate)

    def _budgeted(self, x: Tensor, target: Tensor, row_weights: Tensor | None, step: int) -> _Batch:
        sae, config = self.sae, self.config
        budgets = config.budgets or (1,)
        pre = sae.pre_activations(x, self.compute_dtype)
        if config.residual:
            several = step >= self.train.steps * self.train.looks_from
            nested = residual_loss(
                target, sae.encoder, sae.b_enc, sae.W_dec, sae.b_dec, pre=pre, row_weights=row_weights,
                budgets=budgets, level_weights=self._weights, looks=(config.looks or 1) if several else 1,
            )  # fmt: skip
            return self._batch_of(nested, pre, budgets)
        nested = self._nested_loss(
            target,
            pre,
            sae.W_dec,
            sae.b_dec,
            budgets=budgets,
            widths=config.widths,
            level_weights=self._weights,
            level_scale=sae.level_scale,
            row_weights=row_weights,
            selection="row" if config.sparsity == "top_k" else "batch",
        )
        return self._batch_of(nested, pre, budgets)

    def _batch_of(self, nested: NestedLoss, pre: Tensor, budgets: tuple[int, ...]) -> _Batch:
        loss = nested.loss + self._auxiliary(nested.residual, pre)
        l0 = torch.full((), float(budgets[-1]), device=self.device)
        thresholds = nested.thresholds if self.config.sparsity == "batch_top_k" else None
        return _Batch(loss, nested.errors, l0, nested.fired, thresholds)

    def _penalised(self, x: Tensor, target: Tensor, row_weights: Tensor | None, step: int) -> _Batch:
        sae, config = self.sae, self.config
        pre = sae.pre_activations(x, self.compute_dtype)
        share = self.train.sparsity_at(step)
        gate_loss: Tensor | float = 0.0
        if config.sparsity == "jump_relu":
            threshold = sae.log_threshold.exp()
            pre = pre.to(threshold.dtype)
            latents = losses.jump_relu(pre, threshold, config.bandwidth)
            wanted = config.target_l0 or 1.0
            penalty, _ = losses.l0_penalty(pre, threshold, config.bandwidth, wanted, self.group.mean)
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
        return _Batch(loss, result.errors, torch.count_nonzero(active, dim=-1).float().mean(), active.any(0)[None])

    def _auxiliary(self, residual: Tensor, pre: Tensor) -> Tensor | float:
        dead = self.dead
        if self.group.latent_shares > 1 and self.train.aux_weight:
            W_dec = self.sae.W_dec
            k_aux = min(max(1, W_dec.shape[1] // 2), self.config.d_sae or 1)
            aux = sharded.dead_latent_loss(residual, pre, W_dec, dead, k_aux, group=self.group)
            return self.train.aux_weight * aux
        # On a CPU asking costs nothing; on a GPU it would wait for the device, so the loss is 0 there instead.
        if not self.train.aux_weight or (not reading_waits(self.device) and not bool(dead.any())):
            return 0.0
        W_dec = self.sae.W_dec
        k_aux = min(max(1, W_dec.shape[1] // 2), self.config.d_sae or 1)
        power = self.group.mean(residual.detach().square().mean())
        return self.train.aux_weight * dead_latent_loss(residual, pre, W_dec, dead, k_aux, power=power)

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
        failed = torch.where(self.group.any(~finite), step, -1)
        self.failed_step.copy_(torch.where(self.failed_step >= 0, self.failed_step, failed))


def _next_larger(numbers: tuple[int, ...], wanted: int) -> int:
    """Place of the first number that is at least `wanted`, else of the last."""
    return next((place for place, one in enumerate(numbers) if one >= wanted), len(numbers) - 1)


def _gated(pre: Tensor, sae: SAE) -> Tensor:
    magnitude = (pre - sae.b_enc.to(pre.dtype)) * sae.r_mag.exp().to(pre.dtype) + sae.b_mag.to(pre.dtype)
    return F.relu(magnitude) * (pre > 0)
