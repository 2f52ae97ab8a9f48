"""How the processes of one training run agree: who reads which rows, who holds which latents, what is summed.

One process is `Alone` and none of this costs it anything. Several are `Ranks`, laid out as row shares × latent shares:
a batch is split over the former, the dictionary over the latter. A step asks the same questions of either class, so
there is one code for a laptop and for many machines. Nothing here knows what a step computes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nb_sae.errors import ConfigError
from nb_sae.sae.group import AGREE_EVERY, Alone, Group

__all__ = ["LATENT_DIM", "Alone", "Group", "Ranks", "join", "launch"]

LATENT_DIM = {"W_dec": 0, "W_enc": 1, "b_enc": 0, "silent_rows": 1}
"""The axis along which each tensor of training is split; what is not named is whole everywhere."""


class Ranks:
    """Several processes of torch.distributed. See `Group`.

    Args:
        latent_shares: Into how many parts the dictionary is split; the others split the rows. 1: data parallel.
            The number of processes: every process sees every row.

    Raises:
        ConfigError: `latent_shares` does not divide the number of processes.
    """

    def __init__(self, latent_shares: int = 1) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if latent_shares < 1 or self.world % latent_shares:
            raise ConfigError(
                f"latent_shares={latent_shares} does not divide the {self.world} processes. "
                "Start a multiple of it, or choose a divisor."
            )
        self.latent_shares, self.row_shares = latent_shares, self.world // latent_shares
        self.latent_share = self.rank % latent_shares
        # Every process takes part in making every group, also of those that it is not in.
        by_rows = [list(range(first, self.world, latent_shares)) for first in range(latent_shares)]
        by_latents = [list(range(first, first + latent_shares)) for first in range(0, self.world, latent_shares)]
        self._whole: set[int] = set()
        self._row_group = _group_of(self.rank, by_rows)
        self.latent_group = _group_of(self.rank, by_latents)

    @property
    def is_main(self) -> bool:
        """See `Group`."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """See `Group`."""
        return self.rank, self.world

    def batch(self, rows: Tensor) -> Tensor:
        """See `Group`."""
        return _all_gather(rows, self.latent_group, self.latent_shares) if self.latent_shares > 1 else rows

    def mean(self, value: Tensor) -> Tensor:
        """See `Group`."""
        total = value.detach().clone()
        dist.all_reduce(total)
        total /= self.world
        return value + (total - value.detach()) if value.requires_grad else total

    def any(self, mask: Tensor) -> Tensor:
        """See `Group`."""
        if self.row_shares == 1 and mask.ndim:
            return mask
        seen = mask.to(torch.uint8)
        dist.all_reduce(seen, op=dist.ReduceOp.MAX, group=self._row_group if mask.ndim else None)
        return seen.bool()

    def smallest(self, value: Tensor) -> Tensor:
        """See `Group`."""
        if self.row_shares == 1:
            return value
        low = value.clone()
        dist.all_reduce(low, op=dist.ReduceOp.MIN, group=self._row_group)
        return low

    def gather_rows(self, rows: Tensor) -> Tensor:
        """See `Group`."""
        return _all_gather(rows, self._row_group, self.row_shares) if self.row_shares > 1 else rows

    def latents(self, d_sae: int) -> slice:
        """See `Group`.

        Raises:
            ConfigError: the dictionary cannot be split evenly.
        """
        if d_sae % self.latent_shares:
            raise ConfigError(
                f"d_sae={d_sae} cannot be split evenly over latent_shares={self.latent_shares}. "
                f"Choose d_sae={d_sae + -d_sae % self.latent_shares}, or another number of shares."
            )
        size = d_sae // self.latent_shares
        return slice(self.latent_share * size, (self.latent_share + 1) * size)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """See `Group`."""
        if self.row_shares > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=self.latent_share, group=self._row_group)

    def reduce_gradients(self, parameters: Iterable[Tensor]) -> None:
        """See `Group`."""
        held = [one for one in parameters if one.grad is not None]
        if self.row_shares > 1:
            gradients = [one.grad for one in held if one.grad is not None]
            waiting = [dist.all_reduce(gradient, group=self._row_group, async_op=True) for gradient in gradients]
            for work, gradient in zip(waiting, gradients, strict=True):
                if work is not None:
                    work.wait()
                gradient /= self.row_shares
        for one in held:
            if self.latent_shares > 1 and one.grad is not None and id(one) in self._whole:
                dist.all_reduce(one.grad, group=self.latent_group)

    def clip_gradients(self, parameters: Iterable[Tensor], largest: float) -> None:
        """See `Group`."""
        held = [one for one in parameters if one.grad is not None]
        squares = {id(one): one.grad.square().sum() for one in held if one.grad is not None}
        total = sum((square for one, square in squares.items() if one in self._whole), torch.zeros(()))
        parts = [square for one, square in squares.items() if one not in self._whole]
        total = total + (self.sum_over_latents(torch.stack(parts).sum()) if parts else 0)
        torch.nn.utils.clip_grads_with_norm_(held, largest, total.sqrt())

    def split(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """See `Group`.

        Raises:
            ConfigError: a parameter cannot be split.
        """
        if self.latent_shares == 1:
            return
        unknown = set(parameters) - {*LATENT_DIM, "b_dec", "log_level_scale"}
        if unknown:
            raise ConfigError(
                f"latent_shares={self.latent_shares}: a dictionary with {', '.join(sorted(unknown))} cannot be split. "
                "Use SAEConfig.msae or .topk."
            )
        for name, parameter in parameters.items():
            if name in LATENT_DIM:
                mine = self.latents(parameter.shape[LATENT_DIM[name]])
                part = parameter.data.narrow(LATENT_DIM[name], mine.start, mine.stop - mine.start)
                parameter.data = part.clone()
            else:
                self._whole.add(id(parameter))

    def sum_over_latents(self, value: Tensor) -> Tensor:
        """See `Group`."""
        if self.latent_shares == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total, group=self.latent_group)
        return total

    def gather_latents(self, part: Tensor, dim: int) -> Tensor:
        """See `Group`."""
        if self.latent_shares == 1:
            return part
        moved = part.detach().movedim(dim, 0).contiguous()
        return _all_gather(moved, self.latent_group, self.latent_shares).movedim(0, dim).contiguous()

    def agree_to_stop(self, wanted: bool, step: int, *, now: bool = False) -> bool:
        """See `Group`."""
        if not now and step % AGREE_EVERY:
            return False
        flag = torch.tensor([int(wanted)], dtype=torch.uint8, device=_device_of_collectives())
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def wait(self) -> None:
        """See `Group`."""
        dist.barrier()


def join(latent_shares: int = 1) -> Group:
    """The group of this process: those that `torchrun` or `launch` started, or `Alone`.

    Starts torch.distributed if nobody has: nccl where there is a GPU (this process then uses the one numbered
    LOCAL_RANK), gloo otherwise.

    Args:
        latent_shares: Into how many parts the dictionary is split; the other processes split the rows.

    Raises:
        ConfigError: `latent_shares` does not divide the number of processes, or is above 1 for one process.
    """
    if not dist.is_available():
        return _alone(latent_shares)
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
            return _alone(latent_shares)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
            dist.init_process_group("cpu:gloo,cuda:nccl")
        else:
            dist.init_process_group("gloo")
    return Ranks(latent_shares) if dist.get_world_size() > 1 else _alone(latent_shares)


def launch(function: Callable[..., Any], arguments: Sequence[Any] = (), *, processes: int) -> None:
    """Run `function(*arguments)` in several processes of this machine, from a notebook; `join` in it finds the others.

    The processes are started anew. Forked ones, as accelerate's `notebook_launcher` makes, hang in what the notebook
    has used before (threads of polars, a GPU). So the function has to be importable, such as
    `nb_sae.train_file.train_from_file`. Nothing comes back: what it makes has to be saved to a file.

    Raises:
        ConfigError: fewer than one process, or a function that was defined in the notebook.
        torch.distributed.elastic.multiprocessing.errors.ChildFailedError: a process failed; tells which and why.
    """
    if processes < 1:
        raise ConfigError(f"processes={processes} is below 1. Give the number of GPUs, or of CPU processes.")
    if function.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise ConfigError(
            f"{function.__qualname__} was defined in the notebook, where new processes do not find it. Write it into a "
            "file beside the notebook and import it, or launch nb_sae.train_file.train_from_file."
        )
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    start = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, start_method=start,
    )  # fmt: skip
    with _signals_restored():
        elastic_launch(config, _without_result)(function, *arguments)


@contextmanager
def _signals_restored() -> Iterator[None]:
    """torch's launcher takes over the stop button to pass it on to the processes, and does not give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _without_result(function: Callable[..., Any], *arguments: Any) -> None:
    """What a function gives is sent to the notebook otherwise, and a session cannot be."""
    function(*arguments)


def _alone(latent_shares: int) -> Alone:
    if latent_shares != 1:
        raise ConfigError(
            f"latent_shares={latent_shares} needs as many processes, this is one alone. "
            f"Start it with torchrun --nproc-per-node {latent_shares}."
        )
    return Alone()


def _group_of(rank: int, members: Sequence[Sequence[int]]) -> Any:
    mine = None
    for one in members:
        group = dist.new_group(list(one))
        if rank in one:
            mine = group
    return mine


def _all_gather(part: Tensor, group: Any, count: int) -> Tensor:
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(count)]
    dist.all_gather(parts, part.detach().contiguous(), group=group)
    return torch.cat(parts)


def _device_of_collectives() -> torch.device:
    return torch.device("cpu" if dist.get_backend() == "gloo" else "cuda") if not _has_gloo() else torch.device("cpu")


def _has_gloo() -> bool:
    return "gloo" in str(dist.get_backend_config())
