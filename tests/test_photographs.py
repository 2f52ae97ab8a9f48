"""The first tutorial on photographs: the pictures and face crops that scikit-image carries inside its package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

import nb_sae as ns
from nb_sae.cli import main

skimage_data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 crops (100 faces of LFW, 100 that are none), five photographs, a broken file and one that is no image."""
    folder = tmp_path_factory.mktemp("photographs")
    carried = Path(skimage_data.__file__).parent
    for index, crop in enumerate(np.load(carried / "lfw_subset.npy")):
        kind = "face" if index < 100 else "other"
        Image.fromarray((255 * crop).astype(np.uint8)).save(folder / f"lfw-{kind}-{index:03d}.png")
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "camera.png", "rocket.jpg"):
        (folder / name).write_bytes((carried / name).read_bytes())
    (folder / "broken.jpg").write_bytes((carried / "rocket.jpg").read_bytes()[:2000])
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_store_of_photographs_lists_what_could_not_be_read(photographs, tmp_path):
    clip, photos = ns.load_clip("demo"), ns.images(photographs)
    store = ns.ActivationStore.collect(clip, photos, site="image_embed", path=tmp_path / "s", progress=False)
    assert len(photos) == 206
    assert len(store) == 205
    assert store.skipped["key"].to_list() == ["broken.jpg"]


def test_an_analysis_of_photographs_has_a_thumbnail_of_every_example(photographs, tmp_path):
    clip, photos = ns.load_clip("demo"), ns.images(photographs)
    site = "visual.transformer.resblocks.2"
    store = ns.ActivationStore.collect(clip, photos, site=site, path=tmp_path / "s", progress=False)
    dictionary = ns.train_sae(store, ns.SAEConfig.msae(expansion=2), ns.TrainConfig(rows=50_000), progress=False)
    analysis = ns.analyze(dictionary, store, photos, top=4, per_interval=1, progress=False)
    assert analysis.pictures is not None
    assert set(analysis.examples["input_id"]) == set(analysis.pictures["input_id"])
    assert analysis.quality["fvu"].is_sorted(descending=True)
    assert analysis.inputs.filter(pl.col("key") == "broken.jpg").height == 0


@pytest.mark.notebook
def test_the_tutorial_runs_on_photographs_from_the_shell(photographs, tmp_path, capsys):
    arguments = ["demo", "--images", str(photographs), "--inputs", "206", "--rows", "60000", "--out", str(tmp_path)]
    assert main(arguments) == 0
    report = tmp_path / "01_interpret_clip.html"
    assert str(report.name) in capsys.readouterr().out
    text = report.read_text(encoding="utf-8")
    assert text.count('class="nbsae-view"') == 4
    assert str(photographs) not in text
