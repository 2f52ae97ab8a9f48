"""A model small enough to check by hand, and inputs for it; also run as a process that a test kills."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from nb_sae.errors import HookError, InputError, closest
from nb_sae.store import ActivationStore
from nb_sae.types import Modality, Prepared, Site

WIDTH = 8
GRID = (2, 2)
SMALL = {"batch_inputs": 4, "inputs_per_shard": 8, "workers": 0, "progress": False}
PAD, BOS = 0, 1


class FakeInputs:
    """Images of one colour, or texts of single letters."""

    def __init__(
        self,
        items: Sequence[Any],
        modality: Modality = "image",
        keys: Sequence[str] | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.items, self.modality, self.name, self.seconds = list(items), modality, "fake inputs", seconds
        self._keys = list(keys) if keys is not None else [f"{number:04d}.png" for number in range(len(self.items))]

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, input_id: int) -> Any:
        time.sleep(self.seconds)
        item = self.items[input_id]
        if item is None:
            raise InputError("it is not an image")
        if self.modality == "text":
            return item
        return Image.new("RGB", (2, 2), item)


def colours(count: int) -> list[tuple[int, int, int]]:
    return [(number % 256, (number * 7) % 256, (number // 256) % 256) for number in range(count)]


def prepare_image(raw: Image.Image) -> Prepared:
    pixels = torch.tensor(list(raw.tobytes()), dtype=torch.float32).view(1, 4, 3) / 255
    return Prepared(pixels)


class PrepareText:
    """One letter, one token, after a BOS; contexts of `positions` tokens."""

    def __init__(self, positions: int) -> None:
        self.positions = positions

    def __call__(self, raw: str) -> Prepared:
        body = self.positions - 1
        pieces = [raw[start : start + body] for start in range(0, len(raw), body)] or [""]
        ids = torch.full((len(pieces), self.positions), PAD)
        ids[:, 0] = BOS
        for row, piece in enumerate(pieces):
            ids[row, 1 : 1 + len(piece)] = torch.tensor([ord(letter) for letter in piece])
        keep = ids != PAD
        special = (ids == BOS) | ~keep
        return Prepared(ids, keep, special)


class FakeModel:
    """Sites "tokens" (CLS and 2 × 2 patches, or text) and "pooled"; records what it was run on."""

    def __init__(self, *, name: str = "fake", revision: str = "r1", positions: int = 5, scale: float = 1.0) -> None:
        self.name, self.revision = name, revision
        generator = torch.Generator().manual_seed(0)
        self.module = nn.Linear(3, WIDTH)
        with torch.no_grad():
            self.module.weight.copy_(torch.randn(WIDTH, 3, generator=generator) * scale)
            self.module.bias.zero_()
        self.positions = positions
        self.calls: list[tuple[int, tuple[str, ...]]] = []
        self.on_call: Callable[[int], None] = lambda number: None
        self.alter: Callable[[Tensor, Tensor], Tensor] = lambda batch, out: out

    @property
    def device(self) -> torch.device:
        return self.module.weight.device

    def hook_names(self) -> list[str]:
        return ["tokens", "pooled"]

    def site(self, name: str, modality: Modality) -> Site:
        if name == "pooled":
            return Site(name, WIDTH, pooled=True)
        if name in ("tokens", "echo") and modality == "image":
            return Site(name, WIDTH, prefix_tokens=1, positions=5, grid=GRID)
        if name == "tokens":
            return Site(name, WIDTH, positions=self.positions)
        raise HookError(f"{self.name} has no site {name!r}. {closest(name, self.hook_names())}")

    def preprocessor(self, modality: Modality, *, context_tokens: int | None = None) -> Callable[[Any], Prepared]:
        return prepare_image if modality == "image" else PrepareText(self.positions)

    def capture_rows(self, batch: Tensor, sites: Sequence[str], modality: Modality) -> dict[str, Tensor]:
        self.calls.append((len(batch), tuple(sites)))
        self.on_call(len(self.calls))
        batch = batch.to(self.device)
        if modality == "image":
            x = torch.cat([batch.mean(1, keepdim=True), batch], 1)
        else:
            x = torch.stack([batch.float(), torch.arange(batch.shape[1]).expand(batch.shape).float(), batch * 0.5], -1)
        out = self.alter(batch, self.module(x))
        return {site: out.mean(1) if site == "pooled" else out for site in sites}

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        return [chr(one) for one in ids]


def hashes(folder: Path) -> dict[str, str]:
    """Of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def main() -> None:
    """Collect slowly into the folder that is given, until somebody kills this process."""
    inputs = FakeInputs(colours(40), seconds=0.02)
    ActivationStore.collect(
        FakeModel(), inputs, site="tokens", path=Path(sys.argv[1]), batch_inputs=4, inputs_per_shard=8, workers=0,
        progress=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
