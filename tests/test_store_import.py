from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from nb_sae.errors import (
    FormatError,
    InputNotFoundError,
    NonFiniteError,
    ShapeError,
)
from nb_sae.store import ActivationStore


@pytest.mark.parametrize(
    "kind", ["npy", "npy-fortran", "npy-big", "safetensors", "parquet-columns", "parquet-list", "parquet-array"]
)
def test_rows_come_through_files(tmp_path, kind):
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    path = tmp_path / ("x." + kind.split("-")[0])
    if kind == "npy":
        np.save(path, x)
    elif kind == "npy-fortran":
        np.save(path, np.asfortranarray(x))
    elif kind == "npy-big":
        np.save(path, x.astype(">f4"))
    elif kind == "safetensors":
        save_file({"acts": torch.from_numpy(x), "bias": torch.zeros(6)}, path)
    elif kind == "parquet-columns":
        pl.DataFrame(x).write_parquet(path)
    elif kind == "parquet-list":
        pl.DataFrame({"v": x.tolist()}).write_parquet(path)
    else:
        pl.DataFrame({"v": x}).write_parquet(path)
    store = ActivationStore.from_file(path)
    np.testing.assert_allclose(store[:].numpy(), x, atol=1e-6)
    assert store.rows["input_id"].to_list() == list(range(50))
    assert len(list(store.batches(10, seed=0))) == 5


def test_parquet_may_say_whose_rows_they_are(tmp_path):
    frame = pl.DataFrame({"input_id": [0, 0, 1], "token": [1, 3, 0], "key": ["a", "a", "b"], "v0": [1.0, 2.0, 3.0]})
    frame.write_parquet(tmp_path / "x.parquet")
    store = ActivationStore.from_file(tmp_path / "x.parquet")
    assert store.rows.rows() == [(0, 1), (0, 3), (1, 0)]
    assert store.inputs["key"].to_list() == ["a", "b"]
    assert [len(rows) for _, rows in store.chunks(1)] == [2, 1]


def test_the_first_row_that_is_not_finite_is_named(tmp_path):
    x = torch.ones(100, 3, dtype=torch.float16)
    x[70, 1] = float("nan")
    x[90, 1] = float("inf")
    with pytest.raises(NonFiniteError, match="Row 70 of x holds nan"):
        ActivationStore.from_tensor(x)
    np.save(tmp_path / "x.npy", x.numpy())
    with pytest.raises(NonFiniteError, match="Row 70 "):
        ActivationStore.from_file(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(3), "expected .rows, d_in."),
        (torch.ones(2, 3, 4), "expected .rows, d_in."),
        (torch.ones(0, 3), "holds no rows"),
        ([[1.0]], "is a list"),
        (np.array([["a"]]), "expected real numbers"),
        (torch.ones(2, 2, dtype=torch.complex64), "expected real numbers"),
    ],
)
def test_what_is_no_table_of_rows_is_refused(x, message):
    with pytest.raises(ShapeError, match=message):
        ActivationStore.from_tensor(x)


def test_identity_of_another_length_or_order_is_refused():
    x = torch.ones(3, 2)
    with pytest.raises(ShapeError, match="2 lines for 3 rows"):
        ActivationStore.from_tensor(x, rows=pl.DataFrame({"input_id": [0, 1], "token": [0, 0]}))
    with pytest.raises(ShapeError, match="must ascend"):
        ActivationStore.from_tensor(x, rows=pl.DataFrame({"input_id": [0, 2, 1], "token": [0, 0, 0]}))
    with pytest.raises(ShapeError, match="2 entries for 3 inputs"):
        ActivationStore.from_tensor(x, keys=["a", "b"])
    with pytest.raises(ShapeError, match="whole numbers"):
        ActivationStore.from_tensor(x, rows=pl.DataFrame({"input_id": [-1, 0, 1], "token": [0, 0, 0]}))


def test_files_that_are_something_else_are_refused(tmp_path):
    with pytest.raises(InputNotFoundError, match="does not exist"):
        ActivationStore.from_file(tmp_path / "none.npy")
    for name in ("x.npy", "x.safetensors", "x.parquet", "x.csv"):
        (tmp_path / name).write_bytes(b"not what it says it is, and long enough")
        with pytest.raises(FormatError):
            ActivationStore.from_file(tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object))
    with pytest.raises(FormatError, match="array of numbers"):
        ActivationStore.from_file(tmp_path / "objects.npy")
    save_file({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, tmp_path / "two.safetensors")
    with pytest.raises(FormatError, match=r"tensor=.*a, b"):
        ActivationStore.from_file(tmp_path / "two.safetensors")
    assert len(ActivationStore.from_file(tmp_path / "two.safetensors", tensor="b")) == 2
