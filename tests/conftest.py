"""What every test starts from."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

    import nb_sae as ns


def pytest_configure() -> None:
    """Let an interrupt interrupt.

    A job that a shell put into the background ignores SIGINT, and so does all that it starts; tests of the stop button
    would then wait for what they meant to stop.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def orthogonal() -> tuple[ns.Dictionary, torch.Tensor, torch.Tensor]:
    """A dictionary of 32 orthonormal atoms, rows of 4 of them each, and what is truly active."""
    import planted
    import torch
    from metric_fakes import dictionary_of, gaussian

    directions = torch.linalg.qr(gaussian(32, 32)).Q
    rows, coefficients = planted.sparse_rows(directions.float(), 3_000)
    return dictionary_of(directions, budgets=(1, 2, 4)), rows, coefficients
