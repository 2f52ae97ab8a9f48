"""Trainings with planted curves, as a training monitor follows them, without training anything."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
from PIL import Image
from widget_fakes import thumb

from nb_sae.widgets.monitor import TrainMonitor

KS = (4, 16, 64)
PROBE = 64


class FakePictures:
    """A drawn picture for every number."""

    modality, name = "image", "drawn"
    keys = tuple(f"{number:03}.png" for number in range(PROBE))

    def __len__(self) -> int:
        return PROBE

    def __getitem__(self, number: int) -> Image.Image:
        return Image.open(io.BytesIO(thumb(number)))


class FakeProbe:
    """A look at rows that are better reconstructed with every budget, and whose latents are drawn with a seed."""

    def __init__(self, seed: int) -> None:
        self.rows = np.arange(PROBE)
        self.shown = np.arange(0, PROBE, 8)
        self.input_ids, self.tokens = list(range(PROBE)), [0] * PROBE
        self._seed = seed

    def look(self, session: Any) -> SimpleNamespace:
        """As `nb_sae.sae.probe.Probe`."""
        rng = np.random.default_rng(self._seed)
        x = np.sin(np.arange(64) / (4 + np.arange(8)[:, None])) + 0.2 * rng.standard_normal((8, 64))
        shares = np.array([0.4, 0.8, 0.97])
        noise = rng.standard_normal((8, 3, 64)) * (1 - shares)[:, None]
        return SimpleNamespace(
            step=session.step, ks=KS, fvu=1 - shares, explained=shares - 0.05 * rng.random((8, 3)),
            x=x.astype(np.float32), x_hat=(x[:, None] * shares[:, None] + noise).astype(np.float32),
            values=np.sort(rng.random((PROBE, 4)).astype(np.float32))[:, ::-1],
            indices=np.stack([rng.permutation(40)[:4] for _ in range(PROBE)]),
        )  # fmt: skip


class FakeSession:
    """A session that stands at `step` of `steps`."""

    def __init__(self, number: int = 0, *, step: int = 300, steps: int = 400, state: str = "running") -> None:
        self.step, self.seconds, self.stopped_early = step, step / 50, False
        self.train = SimpleNamespace(batch_rows=1024, steps=steps, dead_after_rows=50_000)
        self.control = SimpleNamespace(state=state, stopping=False)
        self.save_to = None
        self.title = f"MSAE 4…64, {1024 * (1 + number):,} latents"
        self.held_bytes = 312_000_000 + number
        self._number = number

    @property
    def finished(self) -> bool:
        """Whether the plan is done."""
        return self.step >= self.train.steps

    @property
    def log(self) -> pl.DataFrame:
        """FVU falls as a power of the step, with a little noise."""
        rng = np.random.default_rng(self._number)
        steps = np.arange(1, self.step + 1)
        fvu = {
            f"fvu_k{k}": np.minimum(1, (1.4 + 0.2 * self._number) * steps**-0.3 * (1 - 0.25 * place))
            * np.exp(0.03 * rng.standard_normal(self.step))
            for place, k in enumerate(KS)
        }
        return pl.DataFrame({
            "step": steps, "rows": steps * 1024, "seconds": steps / 50, "loss": 1.2 * fvu["fvu_k4"],
            "learning_rate": 6e-3 * np.minimum(1, (self.train.steps - steps) / 80), "dead": 0.1 / np.sqrt(steps),
            "l0": np.full(self.step, 64.0), **fvu,
        })  # fmt: skip

    def probe(self) -> FakeProbe:
        """As `Session.probe`."""
        return FakeProbe(self._number)

    def settings(self) -> dict[str, Any]:
        """As `Session.settings`."""
        return {"aux_weight": 0.03125, "learning_rate": 0.006, "rows": 409_600}


class FakeMonitor(TrainMonitor):
    """A monitor that keeps what it follows."""

    held: list[FakeSession]


def fake_monitor(runs: int = 2, *, state: str = "running", pictures: bool = True, step: int = 300) -> FakeMonitor:
    """A monitor of sessions that were followed up to now; the first in `state`, others done."""
    monitor = FakeMonitor(inputs=FakePictures() if pictures else None, title="Training")
    monitor.held = [FakeSession(0, state=state, step=step)]
    monitor.held += [FakeSession(number, step=400, state="idle") for number in range(1, runs)]
    for session in monitor.held:
        watch = monitor.watch(session)
        watch.passed()
    monitor._bring()
    return monitor
