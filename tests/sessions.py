"""Small sessions that tests start, and what they compare."""

from __future__ import annotations

import planted
import torch

import nb_sae as ns

ROWS, WIDTH = 400, 8
TRAIN = ns.TrainConfig(rows=640, batch_rows=32, dead_after_rows=200)
CONFIG = ns.SAEConfig.msae(d_sae=32, budgets=(2, 4))
CONFIGS = {
    "top_k": CONFIG,
    "batch_top_k": ns.SAEConfig.batch_topk((2, 4), d_sae=32),
    "relu": ns.SAEConfig.relu(d_sae=32),
    "jump_relu": ns.SAEConfig.jump_relu(4, d_sae=32),
    "gated": ns.SAEConfig.gated(d_sae=32),
    "k_sparse": ns.SAEConfig.k_sparse(3, d_sae=32),
    "widths": ns.SAEConfig.msae(d_sae=32, budgets=(2, 4), widths=(8, 32)),
}


def rows(count: int = ROWS, seed: int = 1) -> torch.Tensor:
    return planted.sparse_rows(planted.atoms(32, WIDTH), count, active=2, seed=seed)[0]


class Rows(ns.ActivationStore):
    """Rows in memory whose batches a test can spoil."""

    def batches(self, batch_rows, *, seed, epoch=0, skip=0, device="cpu"):
        self.read = getattr(self, "read", 0)
        given = super().batches(batch_rows, seed=seed, epoch=epoch, skip=skip, device=device)
        for number, batch in enumerate(given, start=skip):
            self.read += 1
            yield self.spoil(epoch, number, batch)

    def spoil(self, epoch, number, batch):
        return batch


def start(source, config=CONFIG, train=TRAIN, **others) -> ns.Session:
    return ns.Session(source, config, train, device="cpu", progress=False, **others)


def state(session: ns.Session) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in session._state.tensors().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
