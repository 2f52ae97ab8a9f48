"""From rows as the model makes them to slots of a buffer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from torch import Tensor


class Filler:
    """Copies the model's rows into the buffer, one slot of all lanes at a time.

    Args:
        chunks: Number of a block and its rows, from `block` on; closed at the end.
        buffer: `(slots, lanes, width)`.
        block: Where the pass, or the rest of it, begins.
        row: First row of that block that is wanted.
    """

    def __init__(self, chunks: Iterator[tuple[int, Tensor]], buffer: Tensor, block: int, row: int) -> None:
        self._buffer = buffer
        self._chunks = chunks
        self._block, self._row = block, row
        self._waiting: deque[tuple[int, int, Tensor]] = deque()
        """Number of a block, how many of its rows are used, and those that are not."""
        self._drop = row
        self._reading, self._read = block, 0

    def __enter__(self) -> Filler:
        return self

    def __exit__(self, *exception: object) -> None:
        self._chunks.close()  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def position(self) -> tuple[int, int]:
        """Block, and row of it, of the next row that is taken."""
        if self._waiting:
            block, used, _ = self._waiting[0]
            return block, used
        return self._block, self._row

    def take(self, slot: int) -> bool:
        """Put the next rows into a slot; False, and nothing taken for good, where the pass has too few left."""
        lanes = self._buffer.shape[1]
        while sum(len(rows) for _, _, rows in self._waiting) < lanes:
            if not self._pull():
                return False
        done = 0
        while done < lanes:
            block, used, rows = self._waiting.popleft()
            count = min(len(rows), lanes - done)
            self._buffer[slot, done : done + count].copy_(rows[:count], non_blocking=True)
            done += count
            self._block, self._row = block, used + count
            if count < len(rows):
                self._waiting.appendleft((block, used + count, rows[count:]))
        return True

    def _pull(self) -> bool:
        for block, rows in self._chunks:
            if block != self._reading:
                self._reading, self._read = block, 0
            before, self._read = self._read, self._read + len(rows)
            cut = min(self._drop, len(rows))  # rows before the place to resume at
            self._drop -= cut
            if len(rows) > cut:
                self._waiting.append((block, before + cut, rows[cut:]))
                return True
        return False
