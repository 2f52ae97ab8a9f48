"""What the other processes of a test of several ranks do, and how they are started.

They are forked from a server that has imported torch but never used polars, whose threads do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import planted
import torch
import torch.distributed as dist
from store_fakes import SMALL, FakeInputs, FakeModel, colours

from nb_sae import cli
from nb_sae.errors import ConfigError, NonFiniteError
from nb_sae.sae import distributed, sharded
from nb_sae.sae.config import SAEConfig
from nb_sae.sae.distributed import Ranks
from nb_sae.sae.session import Session
from nb_sae.sae.training import TrainConfig
from nb_sae.store import ActivationStore

ITEMS = [*colours(30), None, *colours(10)]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "PIL.Image", "nb_sae.store", "nb_sae.sae.session"])


def start(function: Callable[..., Any], *arguments: Any, **settings: Any) -> BaseProcess:
    """Run a function of an importable module in a process of its own."""
    process = _context.Process(target=function, args=arguments, kwargs=settings)
    process.start()
    return process


def collect(
    path: Path, rank: int, world: int, *, seconds: float = 0.0, items: list[Any] | None = None
) -> ActivationStore:
    """Collect as one of several ranks."""
    inputs = FakeInputs(ITEMS if items is None else items, seconds=seconds)
    return ActivationStore.collect(FakeModel(), inputs, site="tokens", path=path, rank=rank, world=world, **SMALL)


def command_line(words: list[str], said: Path) -> None:
    """The command `nb-sae`, its messages in a file, its code as that of the process."""
    with said.open("w") as messages:
        sys.stdout = sys.stderr = messages
        code = cli.main(words)
    os._exit(code)


def in_group(work: str, rank: int, world: int, folder: Path, **settings: Any) -> None:
    """Join a gloo group of CPU processes and run one of the functions below; it saves what it found in the folder."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        found = globals()[work](rank, world, **settings)
        torch.save(found, folder / f"{work}-{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def together(work: str, folder: Path, *, world: int = 2, **settings: Any) -> list[Any]:
    """Run a function of this module in several processes; what each of them found."""
    processes = [start(in_group, work, rank, world, folder, **settings) for rank in range(world)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, f"a rank of {work} failed"
    return [torch.load(folder / f"{work}-{rank}.pt") for rank in range(world)]


def launched(folder: str) -> Any:
    """Find the other processes, add up with them, leave a note, and give what cannot be sent."""
    group = distributed.join()
    total = group.mean(torch.tensor(float(group.rank)))
    Path(folder, f"{group.rank}.txt").write_text(f"{group.world} {total.item()}")
    group.wait()
    return lambda: group


def nested_problem(widths: bool) -> dict[str, Any]:
    """A small nested loss in float64, where some rows have fewer positive latents than the largest budget."""
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(40, 24, generator=generator, dtype=torch.float64)
    pre[:5] -= 1.5
    return {
        "target": torch.randn(40, 10, generator=generator, dtype=torch.float64),
        "pre": pre,
        "W_dec": torch.randn(24, 10, generator=generator, dtype=torch.float64),
        "b_dec": torch.randn(10, generator=generator, dtype=torch.float64),
        "row_weights": torch.rand(40, generator=generator, dtype=torch.float64),
        "budgets": (2, 5, 12),
        "widths": (6, 15, 24) if widths else None,
        "level_weights": (torch.arange(1, 10 if widths else 4) / 10).tolist(),
    }


def split_loss(rank: int, world: int, *, widths: bool) -> dict[str, torch.Tensor]:
    """The sharded nested loss and its gradients, of this rank's latents."""
    group = Ranks(latent_shares=world)
    problem = nested_problem(widths)
    mine = group.latents(24)
    pre = problem.pop("pre")[:, mine].clone().requires_grad_()
    W_dec = problem.pop("W_dec")[mine].clone().requires_grad_()
    b_dec = problem.pop("b_dec").requires_grad_()
    found = sharded.nested_loss(problem.pop("target"), pre, W_dec, b_dec, group=group, **problem)
    (3 * found.loss).backward()
    dead = torch.arange(24) % 5 == 1
    aux = sharded.dead_latent_loss(found.residual, pre, W_dec, dead[mine], 3, group=group)
    aux_pre, aux_W = torch.autograd.grad(aux, [pre, W_dec])
    none = sharded.dead_latent_loss(found.residual, pre, W_dec, torch.zeros_like(dead[mine]), 3, group=group)
    return {
        "loss": found.loss.detach(), "errors": found.errors, "residual": found.residual, "fired": found.fired,
        "thresholds": found.thresholds, "pre": pre.grad, "W_dec": W_dec.grad, "b_dec": b_dec.grad,
        "aux": aux.detach(), "aux_pre": aux_pre, "aux_W": aux_W, "none": none,
    }  # fmt: skip


def collectives(rank: int, world: int) -> dict[str, Any]:
    """What the methods of a group of rows × latents give."""
    group = Ranks(latent_shares=2)
    parameter = torch.nn.Parameter(torch.full((4, 6), float(rank)))
    weights = {"W_dec": torch.nn.Parameter(torch.arange(24.0).view(8, 3)), "b_dec": torch.nn.Parameter(torch.zeros(3))}
    group.split(weights)
    value = torch.tensor([1.0 * rank], requires_grad=True)
    average = group.mean(value)
    average.square().sum().backward()
    parameter.grad = torch.full((4, 6), float(rank))
    group.reduce_gradients([parameter])
    weights["W_dec"].grad, weights["b_dec"].grad = torch.full((4, 3), 1.0 + rank % 2), torch.full((3,), 2.0)
    group.clip_gradients(weights.values(), 1.0)
    stops = [group.agree_to_stop(rank == 1 and step >= 3, step) for step in range(1, 40)]
    return {
        "share": group.share, "shares": (group.row_shares, group.latent_shares, group.latent_share),
        "batch": group.batch(torch.tensor([[rank]])), "mean": (average.detach(), value.grad),
        "any": group.any(torch.tensor([rank == 3, rank == 1, False])), "scalar": group.any(torch.tensor(rank == 2)),
        "smallest": group.smallest(torch.tensor([float(rank)])), "rows": group.gather_rows(torch.tensor([rank])),
        "gradient": parameter.grad, "part": weights["W_dec"].detach().clone(),
        "whole": group.gather_latents(weights["W_dec"], 0), "clipped": (weights["W_dec"].grad, weights["b_dec"].grad),
        "stops": stops,
    }  # fmt: skip


def planted_source() -> ActivationStore:
    """Rows in float64 from more atoms than the dictionary finds at once, so that some latents die."""
    directions = planted.atoms(64, 16)
    rows, _ = planted.sparse_rows(directions, 1600, active=3)
    return ActivationStore.from_tensor(rows.double() + 0.3, site="planted")


CONFIGS: dict[str, Callable[[], SAEConfig]] = {
    "msae": lambda: SAEConfig.msae(d_sae=240, budgets=(1, 2, 4), level_weights=(3, 2, 1), residual=False),
    "residual": lambda: SAEConfig.msae(d_sae=240, budgets=(1, 2, 4), residual=True),
    "widths": lambda: SAEConfig.msae(d_sae=96, budgets=(2, 8), widths=(24, 96), loss="nmse"),
    "tied": lambda: SAEConfig.k_sparse(4, d_sae=96),
    "jump_relu": lambda: SAEConfig.jump_relu(4.0, d_sae=96),
    "gated": lambda: SAEConfig.gated(d_sae=96),
    "relu": lambda: SAEConfig.relu(d_sae=96),
    "batch_topk": lambda: SAEConfig.batch_topk(4, d_sae=96),
    "batch_widths": lambda: SAEConfig.batch_topk((1, 4, 60), d_sae=96, widths=(24, 96), scale_levels=True),
}
TRAIN = TrainConfig(
    rows=50 * 64, batch_rows=64, dtype="float64", dead_after_rows=320, aux_weight=0.5, grad_clip=0.5, ema_decay=0.9,
    project_gradient=True, log_every=10, seed=3,
)  # fmt: skip


def train(
    rank: int, world: int, *, kind: str, latent_shares: int = 1, saved: Path | None = None, resume: bool = False,
    die_at: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train 50 steps in a group, or alone; the weights, and the log without its clock."""
    group = distributed.join(latent_shares)
    source = planted_source()
    if resume and saved is not None:
        session = Session.load(saved, source, group=group)
    else:
        saving = {} if saved is None else {"save_to": saved, "save_every_rows": 640}
        session = Session(source, CONFIGS[kind](), TRAIN, group=group, progress=False, **saving)
    if die_at is not None:
        session.run(steps=die_at - session.step, progress=False)
        if rank == world - 1:
            os.kill(os.getpid(), signal.SIGKILL)
    session.run(progress=False)
    dictionary = session.dictionary
    weights = {name: tensor.clone() for name, tensor in dictionary._tensors().items()}
    own = {name: parameter.detach().clone() for name, parameter in session.sae.named_parameters()}
    return {"weights": weights, "own": own, "log": session.log.drop("seconds").to_dicts(), "step": session.step}


def refusals(rank: int, world: int) -> dict[str, str]:
    """What a split dictionary, and batches that do not divide, are answered."""
    source, split, rows = planted_source(), Ranks(latent_shares=2), Ranks()
    plan = replace(TRAIN, batch_rows=63)
    attempts = {
        "jump_relu": lambda: Session(source, CONFIGS["jump_relu"](), TRAIN, group=split, progress=False),
        "batch_topk": lambda: Session(source, CONFIGS["batch_topk"](), TRAIN, group=split, progress=False),
        "odd": lambda: Session(source, SAEConfig.topk(3, d_sae=97), TRAIN, group=split, progress=False),
        "batch": lambda: Session(source, CONFIGS["msae"](), plan, group=rows, progress=False).run(progress=False),
        "rounds": lambda: Session(source, CONFIGS["residual"](), TRAIN, group=split, progress=False),
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except ConfigError as error:
            said[name] = str(error)
    # The default is rounds where there are rows enough; nobody asked for them by name.
    default = SAEConfig.msae(d_sae=96, budgets=(1, 2, 4))
    assert Session(source, default, TRAIN, progress=False).config.residual
    printed = StringIO()
    with redirect_stdout(printed):
        shared = Session(source, default, TRAIN, group=split)
    assert not shared.config.residual
    return {**said, "default": printed.getvalue(), "weights": str(shared.config.level_weights)}


def diverge(rank: int, world: int, *, latent_shares: int = 1) -> dict[str, Any]:
    """Train 20 steps, then at an absurd rate until the loss is no number, then at a sound one from where it was."""
    session = Session(planted_source(), CONFIGS["msae"](), TRAIN, group=distributed.join(latent_shares), progress=False)
    session.run(steps=20, progress=False).change(learning_rate=1e200)
    try:
        session.run(progress=False)
    except NonFiniteError as error:
        said = str(error)
    session.change(learning_rate=1e-3)
    stood = session.step
    session.run(progress=False)
    weights = {name: tensor.clone() for name, tensor in session.dictionary._tensors().items()}
    return {"said": said, "stood": stood, "weights": weights, "log": session.log.drop("seconds").to_dicts()}
