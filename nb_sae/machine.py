"""What the machine offers: which device to use, how much memory is free, and numbers fetched without waiting."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nb_sae.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """The device that was asked for; None: a CUDA GPU, else Apple's MPS, else the CPU.

    Raises:
        ConfigError: it was asked for by name and this machine, or this build of torch, does not have it.
    """
    import torch

    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device={str(device)!r} is no device. Give 'cpu', 'cuda', 'cuda:1' or 'mps'.") from error
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}.get(chosen.type)
    if there is not None and not there():
        raise ConfigError(f"device={str(device)!r}: torch finds no such device here. Leave it out, or give 'cpu'.")
    return chosen


def memory_bytes() -> int:
    """Main memory of the machine in bytes; 8 GiB where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 8 * 1024**3


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where nothing says so.

    GPU: what the driver has free and what torch holds unused. CPU: what Linux calls available, within the limit of the
    container; elsewhere all of main memory.
    """
    import torch

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    if device.type != "cpu":
        return None
    free = memory_bytes()
    with suppress(OSError, ValueError, IndexError, StopIteration):
        line = next(line for line in _MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        free = min(free, int(line.split()[1]) * 1024)
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):  # "max" is no limit
            free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def reading_waits(device: torch.device) -> bool:
    """Whether looking at a number waits for the device: everywhere but in main memory."""
    return device.type != "cpu"


def readable_bytes(size: float) -> str:
    """A size for a reader."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


class Readback:
    """Tensors on their way to main memory. A GPU is not waited for until `wait`, which comes long after."""

    def __init__(self, *tensors: Tensor) -> None:
        import torch

        self._event: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._host = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in tensors]
            for host, one in zip(self._host, tensors, strict=True):
                host.copy_(one.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = [one.detach().cpu().clone() for one in tensors]

    def wait(self) -> list[Tensor]:
        """The tensors, once they are there."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._host
