from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from store_fakes import GRID, SMALL, WIDTH, FakeInputs, FakeModel, colours, hashes, prepare_image

from nb_sae.errors import (
    ConfigError,
    HookError,
    InputError,
    NonFiniteError,
    NotEnoughMemoryError,
    PathExistsError,
    ShapeError,
    StoreError,
)
from nb_sae.store import ActivationStore, collect, decoding


def oracle(model: FakeModel, inputs: FakeInputs) -> torch.Tensor:
    """Every token of every input, one input at a time."""
    with torch.no_grad():
        return torch.cat(
            [model.capture_rows(prepare_image(raw).tensor, ["tokens"], "image")["tokens"][0] for raw in inputs]
        )


# ── what is stored ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_collect_stores_what_the_model_gives_input_by_input(tmp_path, dtype, tolerance):
    model, inputs = FakeModel(), FakeInputs(colours(21))
    store = ActivationStore.collect(model, inputs, site="tokens", path=tmp_path / "s", dtype=dtype, **SMALL)
    torch.testing.assert_close(store[:], oracle(model, inputs), atol=tolerance, rtol=tolerance)
    assert store.rows["input_id"].to_list() == [number for number in range(21) for _ in range(5)]
    assert store.rows["token"].to_list() == [0, 1, 2, 3, 4] * 21
    assert store.inputs["key"].to_list() == list(inputs.keys)
    assert store.inputs["status"].unique().to_list() == ["ok"]
    assert store.site.grid == GRID
    assert (store.model, store.revision, store.d_in) == ("fake", "r1", WIDTH)


@pytest.mark.parametrize(("tokens", "kept"), [("all", [0, 1, 2, 3, 4]), ("cls", [0]), ("patches", [1, 2, 3, 4])])
def test_tokens_choose_rows_and_keep_their_numbers(tmp_path, tokens, kept):
    model, inputs = FakeModel(), FakeInputs(colours(9))
    store = ActivationStore.collect(
        model, inputs, site="tokens", path=tmp_path / "s", tokens=tokens, dtype="float32", **SMALL
    )  # fmt: skip
    expected = oracle(model, inputs).view(9, 5, WIDTH)[:, kept].reshape(-1, WIDTH)
    torch.testing.assert_close(store[:], expected)
    assert store.rows["token"].to_list() == kept * 9


def test_several_sites_come_from_one_forward_pass(tmp_path):
    model, inputs = FakeModel(), FakeInputs(colours(10))
    stores = ActivationStore.collect(model, inputs, site=["tokens", "pooled"], path=tmp_path / "s", **SMALL)
    assert list(stores) == ["tokens", "pooled"]
    assert [size for size, _ in model.calls] == [4, 4, 2]
    assert {sites for _, sites in model.calls} == {("tokens", "pooled")}
    assert len(stores["tokens"]) == 50
    assert len(stores["pooled"]) == 10
    assert stores["pooled"].rows["token"].to_list() == [0] * 10
    torch.testing.assert_close(stores["pooled"][:], stores["tokens"][:].view(10, 5, -1).mean(1), atol=1e-3, rtol=1e-3)
    assert ActivationStore.open(tmp_path / "s" / "tokens").site.name == "tokens"


def test_text_leaves_out_padding_and_special_tokens_and_numbers_by_context(tmp_path):
    texts = FakeInputs(["abcdefg", "", "xy"], "text", keys=["long", "empty", "short"])
    model = FakeModel(positions=5)
    store = ActivationStore.collect(model, texts, site="tokens", path=tmp_path / "s", dtype="float32", **SMALL)
    assert store.rows["input_id"].to_list() == [0] * 7 + [2, 2]
    assert store.rows["token"].to_list() == [1, 2, 3, 4, 6, 7, 8, 1, 2]
    assert store.skipped["key"].to_list() == ["empty"]
    assert "every token is padding or special" in store.skipped["reason"][0]
    with_bos = ActivationStore.collect(
        FakeModel(positions=5), texts, site="tokens", path=tmp_path / "t", special_tokens=True, **SMALL
    )
    assert with_bos.rows["token"].to_list() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 1, 2]
    letter = torch.tensor([ord("e"), 1.0, ord("e") / 2])
    torch.testing.assert_close(store[4], model.module(letter).detach(), atol=1e-3, rtol=1e-5)


def test_statistics_in_the_manifest_are_those_of_the_rows(tmp_path):
    store = ActivationStore.collect(FakeModel(), FakeInputs(colours(30)), site="tokens", path=tmp_path / "s", **SMALL)
    rows = store[:].double().numpy()
    found = store.statistics()
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.mean_square_distance, ((rows - rows.mean(0)) ** 2).sum(1).mean(), rtol=1e-12)
    assert found.rows == len(store) == 150


def test_worker_processes_give_the_same_bytes_as_none(tmp_path):
    inputs = FakeInputs([*colours(50), None, *colours(9)])
    for workers in (0, 2):
        ActivationStore.collect(
            FakeModel(), inputs, site="tokens", path=tmp_path / str(workers), **{**SMALL, "workers": workers}
        )
    assert hashes(tmp_path / "0") == hashes(tmp_path / "2")


# ── what is already there ───────────────────────────────────────────────────────────────────────────────────────


def test_the_same_request_opens_what_is_there(tmp_path, capsys):
    inputs = FakeInputs(colours(12))
    ActivationStore.collect(FakeModel(), inputs, site="tokens", path=tmp_path / "s", **SMALL)
    model = FakeModel()
    store = ActivationStore.collect(
        model, inputs, site="tokens", path=tmp_path / "s", **{**SMALL, "progress": True}
    )  # fmt: skip
    assert not model.calls
    assert len(store) == 60
    assert "already holds this store" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": FakeModel(name="other")}, "model .*'fake' there, 'other' asked for"),
        ({"model": FakeModel(revision="r2")}, "revision"),
        ({"site": "pooled"}, "site .*'tokens' there, 'pooled' asked for"),
        ({"tokens": "cls"}, "tokens"),
        ({"dtype": "float32"}, "dtype"),
        ({"inputs": FakeInputs(colours(13))}, "inputs .12 there, 13"),
        ({"inputs": FakeInputs(colours(12), keys=[str(n) for n in range(12)])}, "other keys"),
        ({"inputs": FakeInputs(colours(24)[12:], keys=FakeInputs(colours(12)).keys)}, "same keys, other contents"),
    ],
)
def test_another_request_is_refused_and_the_difference_named(tmp_path, changed, named):
    request = {"model": FakeModel(), "inputs": FakeInputs(colours(12)), "site": "tokens", "tokens": "all"}

    def run(given: dict, **more: object) -> ActivationStore:
        given = dict(given)
        return ActivationStore.collect(
            given.pop("model"), given.pop("inputs"), path=tmp_path / "s", **SMALL, **given, **more
        )

    run(request)
    before = hashes(tmp_path / "s")
    with pytest.raises(StoreError, match=named):
        run({**request, **changed})
    assert hashes(tmp_path / "s") == before
    run({**request, **changed}, overwrite=True)
    assert hashes(tmp_path / "s") != before


def test_a_folder_that_is_no_store_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(PathExistsError, match="no activation store"):
            ActivationStore.collect(
                FakeModel(), FakeInputs(colours(4)), site="tokens", path=tmp_path, overwrite=overwrite, **SMALL
            )
    with pytest.raises(PathExistsError, match="not a folder"):
        ActivationStore.collect(
            FakeModel(), FakeInputs(colours(4)), site="tokens", path=tmp_path / "thesis.txt", **SMALL
        )  # fmt: skip
    assert hashes(tmp_path).keys() == {"thesis.txt"}


def test_overwrite_leaves_other_files_in_the_folder(tmp_path):
    inputs = FakeInputs(colours(4))
    ActivationStore.collect(FakeModel(), inputs, site="tokens", path=tmp_path / "s", **SMALL)
    (tmp_path / "s" / "notes.txt").write_text("mine")
    ActivationStore.collect(
        FakeModel(), inputs, site="pooled", path=tmp_path / "s", overwrite=True, **SMALL
    )  # fmt: skip
    assert (tmp_path / "s" / "notes.txt").read_text() == "mine"
    assert ActivationStore.open(tmp_path / "s").site.name == "pooled"


# ── bad input ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_unreadable_inputs_are_skipped_counted_and_listed(tmp_path, capsys):
    model, inputs = FakeModel(), FakeInputs([*colours(5), None, *colours(3)])
    store = ActivationStore.collect(model, inputs, site="tokens", path=tmp_path / "s", dtype="float32", **SMALL)
    assert store.skipped.rows() == [(5, "0005.png", "skipped", "it is not an image")]
    assert store.rows["input_id"].unique().to_list() == [0, 1, 2, 3, 4, 6, 7, 8]
    assert "1 of 9 inputs were skipped" in capsys.readouterr().out
    again = ActivationStore.open(tmp_path / "s")
    assert again.inputs.equals(store.inputs)


def test_a_failing_preprocessor_names_its_error(tmp_path):
    class Broken(FakeModel):
        def preprocessor(self, modality, *, context_tokens=None):
            def prepare(raw):
                if raw.getpixel((0, 0))[0] == 2:
                    raise ZeroDivisionError("no size")
                return prepare_image(raw)

            return prepare

    store = ActivationStore.collect(Broken(), FakeInputs(colours(6)), site="tokens", path=tmp_path / "s", **SMALL)
    assert store.skipped["reason"].to_list() == ["ZeroDivisionError: no size"]


def test_only_unreadable_inputs_are_an_error_that_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"None of the 3 inputs .*it is not an image"):
        ActivationStore.collect(FakeModel(), FakeInputs([None] * 3), site="tokens", path=tmp_path / "s", **SMALL)
    assert hashes(tmp_path) == {}
    with pytest.raises(InputError, match="holds no inputs"):
        ActivationStore.collect(FakeModel(), FakeInputs([]), site="tokens", path=tmp_path / "s", **SMALL)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_activations_that_are_not_finite_are_refused_by_input_token_and_site(tmp_path, value, dtype):
    model = FakeModel()

    def alter(batch, out):
        if len(model.calls) == 3:
            out[1, 2, 3] = value
        return out

    model.alter = alter
    with pytest.raises(NonFiniteError, match=r"input 9 .'0009.png'., token 2, site 'tokens'"):
        ActivationStore.collect(
            model, FakeInputs(colours(20)), site="tokens", path=tmp_path / "s", dtype=dtype, **SMALL
        )  # fmt: skip


def test_an_overflow_of_half_precision_proposes_bfloat16(tmp_path):
    model, inputs = FakeModel(), FakeInputs(colours(6))
    model.alter = lambda batch, out: torch.where(batch.mean((1, 2)) > 0.05, 1e5, 1.0)[:, None, None].expand_as(out)
    with pytest.raises(NonFiniteError, match=r"input 5 .*token 0.*float16 ends at 65504.*dtype='bfloat16'"):
        ActivationStore.collect(model, inputs, site="tokens", path=tmp_path / "s", **SMALL)
    store = ActivationStore.collect(model, inputs, site="tokens", path=tmp_path / "b", dtype="bfloat16", **SMALL)
    assert float(store[:].max()) == pytest.approx(1e5, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": "clss"}, "not one of 'all', 'cls', 'patches'"),
        ({"dtype": "int8"}, "not one of 'float16'"),
        ({"batch_inputs": 0}, "batch_inputs=0 is below 1"),
        ({"workers": -1}, "workers=-1"),
        ({"site": []}, "at least one site"),
        ({"site": ["tokens", "tokens"]}, "each once"),
        ({"site": "pooled", "tokens": "cls"}, "has one row per input"),
    ],
)
def test_settings_without_meaning_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        ActivationStore.collect(
            FakeModel(), FakeInputs(colours(4)), path=tmp_path / "s", **{"site": "tokens", **SMALL, **settings}
        )
    assert not (tmp_path / "s").exists()


def test_cls_is_refused_where_there_is_none(tmp_path):
    with pytest.raises(ConfigError, match="no CLS"):
        ActivationStore.collect(
            FakeModel(), FakeInputs(["ab"], "text"), site="tokens", tokens="cls", path=tmp_path / "s", **SMALL
        )


def test_an_unknown_site_offers_the_closest(tmp_path):
    with pytest.raises(HookError, match="Closest: tokens"):
        ActivationStore.collect(FakeModel(), FakeInputs(colours(4)), site="token", path=tmp_path / "s", **SMALL)


def test_output_that_is_not_rows_is_refused_with_its_shape(tmp_path):
    model = FakeModel()
    model.alter = lambda batch, out: out[..., :-1]
    with pytest.raises(ShapeError, match=r"gave \(4, 5, 7\), expected \(4, 5, 8\)"):
        ActivationStore.collect(model, FakeInputs(colours(4)), site="tokens", path=tmp_path / "s", **SMALL)


def test_a_gpu_that_runs_out_of_memory_is_told_a_smaller_batch(tmp_path):
    model = FakeModel()

    def out_of_memory(number: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    model.on_call = out_of_memory
    with pytest.raises(NotEnoughMemoryError, match=r"Tried to allocate 2.00 GiB.*batch_inputs=2"):
        ActivationStore.collect(model, FakeInputs(colours(8)), site="tokens", path=tmp_path / "s", **SMALL)


def test_the_budget_is_printed_and_a_small_disk_refused(tmp_path, monkeypatch, capsys):
    inputs = FakeInputs(colours(10))
    settings = {**SMALL, "progress": True}
    ActivationStore.collect(FakeModel(), inputs, site="tokens", path=tmp_path / "s", **settings)
    assert "10 images × 5 rows × 8 × 2 bytes = 800 bytes" in capsys.readouterr().out
    sites = ["tokens", "pooled", "echo"]
    ActivationStore.collect(FakeModel(), inputs, site=sites, path=tmp_path / "three", **settings)
    alike, other = [line for line in capsys.readouterr().out.splitlines() if "10 images × " in line]
    assert "2 sites, tokens … echo, of fake" in alike
    assert "800 bytes each, 1.6 kB in all," in alike
    assert other.startswith("pooled of fake")
    monkeypatch.setattr(collect, "free_bytes", lambda path: 1000)
    with pytest.raises(StoreError, match=r"needs 1.2 kB .* 1.0 kB are free"):
        ActivationStore.collect(FakeModel(), inputs, site="tokens", path=tmp_path / "t", **settings)
    assert not (tmp_path / "t").exists()


def test_a_worker_that_dies_is_named_and_what_was_finished_stays(tmp_path):
    class Deadly(FakeInputs):
        def __getitem__(self, input_id: int):
            if input_id == 21 and os.getpid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(input_id)

    parent = os.getpid()
    with pytest.raises(StoreError, match=r"worker process .* died .*workers=0"):
        ActivationStore.collect(
            FakeModel(), Deadly(colours(40)), site="tokens", path=tmp_path / "s", **{**SMALL, "workers": 1}
        )
    model = FakeModel()
    ActivationStore.collect(model, FakeInputs(colours(40)), site="tokens", path=tmp_path / "s", **SMALL)
    assert len(model.calls) <= 10


def test_hostile_keys_are_kept_as_text(tmp_path):
    keys = ["<img src=x onerror=alert(1)>.png", "broken\udce9.png", "\u202egnp.exe"]
    store = ActivationStore.collect(
        FakeModel(), FakeInputs([*colours(2), None], keys=keys), site="tokens", path=tmp_path / "s", **SMALL
    )
    assert store.inputs["key"].to_list() == [keys[0], "broken\ufffd.png", keys[2]]
    assert isinstance(store.inputs, pl.DataFrame)


def test_site_folders_never_collide_or_leave_the_path(tmp_path):
    folders = collect.site_folders(tmp_path, ["a/b", "a_b", "A_B", "..", "blocks.3.hook_resid_post"])
    assert len({str(folder).casefold() for folder in folders}) == 5
    assert all(folder.parent == tmp_path and folder.name not in (".", "..") for folder in folders)
    assert folders[-1].name == "blocks.3.hook_resid_post"


def test_default_workers_follow_the_job_and_the_shared_memory(monkeypatch):
    monkeypatch.setattr(decoding.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert decoding.default_workers("image", 10_000, batch_bytes=0) == 4
    assert decoding.default_workers("image", 100, batch_bytes=0) == 0
    assert decoding.default_workers("text", 10_000, batch_bytes=0) == 0
    monkeypatch.setattr(decoding, "_SHARED_MEMORY", Path("/"))
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda path: SimpleNamespace(free=64_000_000))
    assert decoding.default_workers("image", 10_000, batch_bytes=5_000_000) == 2
    assert decoding.default_workers("image", 10_000, batch_bytes=50_000_000) == 0
