"""The two Triton kernels. Import only where Triton is there; `gpu` does."""

# Triton compiles these functions; to a type checker their arguments are anything.
# pyright: basic, reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl


@triton.jit
def bag_sum_kernel(indices, edges, values, table, out, columns, WIDE: tl.constexpr, HITS: tl.constexpr):
    """One bag and one block of columns: Σ values · rows, HITS rows at a time, summed in float32."""
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = column < columns
    start = tl.load(edges + bag)
    stop = tl.load(edges + bag + 1)
    total = tl.zeros((WIDE,), dtype=tl.float32)
    for first in range(start, stop, HITS):
        hit = first + tl.arange(0, HITS)
        valid = hit < stop
        row = tl.load(indices + hit, mask=valid, other=0).to(tl.int64)
        value = tl.load(values + hit, mask=valid, other=0.0).to(tl.float32)
        place = row[:, None] * columns + column[None, :]
        found = tl.load(table + place, mask=valid[:, None] & inside[None, :], other=0.0).to(tl.float32)
        total += tl.sum(value[:, None] * found, axis=0)
    tl.store(out + bag * columns + column, total, mask=inside)


@triton.jit
def bag_dot_kernel(left, right, left_table, right_table, out, hits, columns, WIDE: tl.constexpr, HITS: tl.constexpr):
    """HITS dot products of two named rows, WIDE columns at a time, summed in float32."""
    hit = tl.program_id(0).to(tl.int64) * HITS + tl.arange(0, HITS)
    valid = hit < hits
    one = tl.load(left + hit, mask=valid, other=0).to(tl.int64)
    two = tl.load(right + hit, mask=valid, other=0).to(tl.int64)
    total = tl.zeros((HITS,), dtype=tl.float32)
    for first in range(0, columns, WIDE):
        column = first + tl.arange(0, WIDE)
        mask = valid[:, None] & (column < columns)[None, :]
        a = tl.load(left_table + one[:, None] * columns + column[None, :], mask=mask, other=0.0).to(tl.float32)
        b = tl.load(right_table + two[:, None] * columns + column[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(a * b, axis=1)
    tl.store(out + hit, total, mask=valid)
