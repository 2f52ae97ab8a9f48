from __future__ import annotations

import io

import numpy as np
import planted
import polars as pl
import pytest
import torch
from PIL import Image, ImageColor

import nb_sae as ns
from nb_sae.analysis import schema
from nb_sae.analysis.examples import FINE_BINS, ActivationGrid, BestOfGroups, IntervalSampler, priority
from nb_sae.analysis.pictures import pictures_frame
from nb_sae.errors import FormatError, InputError, InputNotFoundError, PathExistsError, StoreError
from nb_sae.sae import metrics

TOKENS = 16


@pytest.fixture(scope="module")
def scanned() -> tuple[ns.Analysis, ns.Dictionary, torch.Tensor, ns.ActivationStore]:
    directions = planted.atoms(64, 16)
    rows, _ = planted.sparse_rows(directions, 400 * TOKENS, active=3)
    dictionary = ns.Dictionary.from_weights(
        directions.T.contiguous(), torch.full((64,), -0.2), directions, torch.zeros(16), budgets=(1, 2, 4)
    )
    ids = pl.DataFrame({"input_id": np.repeat(np.arange(400), TOKENS), "token": np.tile(np.arange(TOKENS), 400)})
    store = ns.ActivationStore.from_tensor(rows, rows=ids, site="planted")
    return ns.analyze(dictionary, store, top=5, per_interval=3, progress=False), dictionary, rows, store


def test_every_table_has_its_declared_columns(scanned):
    analysis, *_ = scanned
    assert analysis.latents.schema == schema.LATENTS
    assert analysis.examples.schema == schema.EXAMPLES
    assert analysis.quality.schema == schema.QUALITY
    assert analysis.inputs.schema == schema.INPUTS


def test_latents_equal_a_dense_count(scanned):
    analysis, dictionary, rows, _ = scanned
    latents = dictionary.encode(rows).numpy()
    active = latents > 0
    frame = analysis.latents
    np.testing.assert_array_equal(frame["active_rows"], active.sum(0))
    np.testing.assert_allclose(frame["density"], active.mean(0))
    np.testing.assert_allclose(frame["max"], latents.max(0), rtol=1e-6)
    mean = np.divide(latents.sum(0), active.sum(0), where=active.any(0), out=np.zeros(64))
    np.testing.assert_allclose(frame["mean"], mean, rtol=1e-5)
    assert [sum(counts) for counts in frame["histogram"]] == active.sum(0).tolist()


def test_level_is_the_weighted_median_of_the_first_budget_that_selects(scanned):
    analysis, dictionary, rows, _ = scanned
    weights = np.zeros((64, 3))
    before = np.zeros((len(rows), 64), bool)
    for level, k in enumerate((1, 2, 4)):
        latents = dictionary.encode(rows, k=k).numpy()
        first = (latents > 0) & ~before
        weights[:, level] = (latents * first).sum(0)
        before |= latents > 0
    cumulative = weights.cumsum(1)
    expected = (cumulative >= cumulative[:, -1:] / 2).argmax(1)
    used = cumulative[:, -1] > 0
    np.testing.assert_array_equal(analysis.latents["level"].to_numpy()[used], expected[used])


def test_top_examples_are_exactly_the_strongest_inputs(scanned):
    analysis, dictionary, rows, _ = scanned
    per_input = dictionary.encode(rows).numpy().reshape(400, TOKENS, 64)
    for latent in range(64):
        found = analysis.examples.filter((pl.col("latent") == latent) & (pl.col("kind") == "top"))
        strongest = np.sort(per_input[:, :, latent].max(1))[::-1]
        expected = strongest[strongest > 0][:5]
        np.testing.assert_allclose(found["act"], expected, rtol=1e-6)
        assert found["input_id"].n_unique() == found.height
        for line in found.iter_rows(named=True):
            assert per_input[line["input_id"], line["token"], latent] == pytest.approx(line["act"])


def test_the_map_is_the_activation_at_every_token_of_the_input(scanned):
    analysis, dictionary, rows, _ = scanned
    per_input = dictionary.encode(rows).numpy().reshape(400, TOKENS, 64)
    for line in analysis.examples.sample(60, seed=0).iter_rows(named=True):
        np.testing.assert_allclose(line["map"], per_input[line["input_id"], :, line["latent"]], atol=1e-6)
        assert line["map_tokens"] == list(range(TOKENS))
        assert line["map_start"] == 0


def test_interval_examples_lie_in_their_interval(scanned):
    analysis, *_ = scanned
    joined = analysis.examples.filter(pl.col("kind") == "interval").join(
        analysis.latents.select("latent", "max"), on="latent"
    )
    share = joined["act"].cast(pl.Float64) / joined["max"]
    interval = joined["interval"].to_numpy()
    assert (share.to_numpy() >= interval / 10 - 1e-6).all()
    assert (share.to_numpy() <= (interval + 1) / 10 + 1e-6).all()
    assert joined.group_by("latent", "interval").len()["len"].max() <= 3


def test_interval_sample_is_uniform_and_does_not_depend_on_chunks():
    """Each of 200 equally strong rows is drawn about equally often over seeds; a biased sampler fails."""
    drawn = np.zeros(200)
    values = np.linspace(0.5, 0.999, 200).astype(np.float32)
    order = np.random.default_rng(0).permutation(200)
    for seed in range(300):
        picked = [_sample(values[o], o, seed) for o in (np.arange(200), order)]
        assert picked[0] == picked[1], "the order of the rows must not matter"
        drawn[list(picked[0])] += 1
    in_interval = np.minimum((values / values.max() * 10).astype(int), 9)
    for interval in np.unique(in_interval):
        counts = drawn[in_interval == interval]
        expected = counts.mean()
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < 2 * len(counts), (interval, counts)


def _sample(values: np.ndarray, rows: np.ndarray, seed: int) -> set[int]:
    grid, sampler = ActivationGrid(1), IntervalSampler(1, 3, seed=seed)
    maximum = np.zeros(1, np.float32)
    for start in range(0, len(values), 50):
        part = slice(start, start + 50)
        maximum = np.maximum(maximum, values[part].max())
        shift = grid.grow(maximum)
        latent = np.zeros(len(values[part]), np.int64)
        bins = grid.bins(latent, values[part])
        grid.add(latent, bins)
        sampler.regrid(shift)
        sampler.add(latent, bins, values[part], rows[part].astype(np.int64))
    return set(sampler.samples(grid, maximum)["row"].tolist())


def test_priorities_look_uniform_and_differ_between_seeds():
    rows = np.arange(10_000)
    one, other = (priority(seed, rows, np.zeros_like(rows)) for seed in (0, 1))
    counts = np.histogram(one, bins=20, range=(0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 50
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.05


def test_grid_keeps_counts_while_it_grows():
    grid = ActivationGrid(2)
    values = np.array([0.01, 0.5, 3.0, 200.0], np.float32)
    for index in range(4):
        grid.grow(np.array([values[: index + 1].max(), 0], np.float32))
        grid.add(np.zeros(1, np.int64), grid.bins(np.zeros(1, np.int64), values[index : index + 1]))
    counts, edge = grid.histogram(0)
    assert sum(counts) == 4
    assert edge >= 200
    assert len(counts) > FINE_BINS // 2
    assert grid.histogram(1) == ([], 0.0)


def test_best_of_groups_equals_a_sort():
    generator = np.random.default_rng(0)
    best = BestOfGroups(7, 3)
    group, score = generator.integers(0, 7, 5_000), generator.random(5_000)
    for start in range(0, 5_000, 321):
        part = slice(start, start + 321)
        best.add(group[part], score[part], score[part].astype(np.float32), np.arange(5_000)[part])
        best.settle()
    found_group, found_score, _, _ = best.entries()
    for which in range(7):
        np.testing.assert_array_equal(found_score[found_group == which], np.sort(score[group == which])[:3])


def test_quality_equals_the_definitions_at_every_budget(scanned):
    analysis, dictionary, rows, _ = scanned
    for line in analysis.quality.iter_rows(named=True):
        latents = dictionary.encode(rows, k=line["k"])
        x_hat = dictionary.decode(latents)
        assert line["fvu"] == pytest.approx(metrics.fvu(rows, x_hat), rel=1e-5)
        assert line["cosine"] == pytest.approx(metrics.cosine(rows, x_hat), rel=1e-5)
        assert line["l0"] == pytest.approx(metrics.l0(latents))
        assert line["unused"] == pytest.approx(metrics.dead_fraction((latents > 0).sum(0)))


def test_a_dictionary_that_never_fires_gives_empty_examples_not_an_error():
    directions = planted.atoms(8, 4)
    silent = ns.Dictionary.from_weights(
        directions.T.contiguous(), torch.full((8,), -1e6), directions, torch.zeros(4), budgets=(1, 2)
    )
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    analysis = ns.analyze(silent, ns.ActivationStore.from_tensor(rows), progress=False)
    assert analysis.latents["dead"].all()
    assert analysis.examples.height == 0
    assert analysis.quality["l0"].to_list() == [0, 0]


def test_results_do_not_depend_on_the_size_of_a_chunk(scanned, monkeypatch):
    analysis, dictionary, _, store = scanned
    import nb_sae.analysis.scan as scan

    monkeypatch.setattr(scan, "BLOCK_BYTES", 0)
    small = scan.analyze(dictionary, store, top=5, per_interval=3, progress=False)
    columns = ["latent", "kind", "interval", "rank", "input_id", "token"]
    assert small.examples.select(columns).equals(analysis.examples.select(columns))
    assert small.latents.select("latent", "active_rows", "level").equals(
        analysis.latents.select("latent", "active_rows", "level")
    )


def test_analysis_comes_back_equal_through_files(scanned, tmp_path):
    analysis, *_ = scanned
    analysis.save(tmp_path / "a")
    loaded = ns.Analysis.load(tmp_path / "a")
    for name in ("latents", "examples", "quality", "inputs"):
        assert getattr(loaded, name).equals(getattr(analysis, name)), name
    assert loaded.pictures is None
    assert (loaded.site, loaded.rows, loaded.budgets) == (analysis.site, analysis.rows, analysis.budgets)
    with pytest.raises(PathExistsError, match="overwrite=True"):
        analysis.save(tmp_path / "a")
    analysis.save(tmp_path / "a", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_loading_an_analysis_names_what_is_wrong(scanned, tmp_path):
    analysis, *_ = scanned
    with pytest.raises(InputNotFoundError, match=r"analysis\.json"):
        ns.Analysis.load(tmp_path)
    folder = analysis.save(tmp_path / "a")
    (folder / "latents.parquet").write_bytes(b"PAR1")
    with pytest.raises(FormatError, match=r"latents\.parquet cannot be read"):
        ns.Analysis.load(folder)


def test_a_save_that_fails_leaves_the_earlier_one_and_nothing_else(scanned, tmp_path, monkeypatch):
    analysis, *_ = scanned
    analysis.save(tmp_path / "a")

    def full(*_args, **_kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("nb_sae.analysis.bundle.write_json", full)
    with pytest.raises(OSError, match="no space left"):
        analysis.save(tmp_path / "a", overwrite=True)
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    assert ns.Analysis.load(tmp_path / "a").latents.equals(analysis.latents)
    (tmp_path / "a" / "analysis.json").write_text("[]")
    with pytest.raises(FormatError, match="holds a list; expected an object"):
        ns.Analysis.load(tmp_path / "a")


def test_inputs_that_were_not_collected_are_refused(scanned):
    _, dictionary, _, store = scanned
    with pytest.raises(InputError, match="the same order"):
        ns.analyze(dictionary, store, inputs=ns.texts(["a", "b"]), progress=False)


def test_rows_of_another_width_are_refused(scanned):
    _, dictionary, rows, _ = scanned
    with pytest.raises(StoreError, match="width 8"):
        ns.analyze(dictionary, ns.ActivationStore.from_tensor(rows[:, :8]), progress=False)


def test_pca_explains_planted_low_rank_rows_exactly_and_noise_by_its_share():
    generator = torch.Generator().manual_seed(0)
    low_rank = torch.randn(500, 3, generator=generator) @ torch.randn(3, 12, generator=generator) + 5
    source = ns.ActivationStore.from_tensor(low_rank)
    frame = ns.pca_quality(source, source, [1, 2, 3])
    assert frame["fvu"][2] < 1e-6
    assert frame["fvu"][0] > frame["fvu"][1] > 1e-3
    noise = ns.ActivationStore.from_tensor(torch.randn(20_000, 10, generator=generator))
    assert ns.pca_quality(noise, noise, [5])["fvu"][0] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("fit", "size", "left", "corner"),
    [("crop", (20, 20), "red", "red"), ("squash", (20, 20), "green", "green"), ("pad", (60, 60), "green", "black")],
)
def test_thumbnails_have_the_shape_in_which_the_model_saw_the_picture(fit, size, left, corner):
    """60 × 20 pixels: green, red, green thirds; the central square is red."""
    image = Image.new("RGB", (60, 20), "green")
    image.paste("red", (20, 0, 40, 20))
    site = ns.types.Site("blocks.0", 8, positions=16, grid=(4, 4), fit=fit)
    frame = pictures_frame(ns.images([image]), [0], 200, site)
    seen = Image.open(io.BytesIO(frame["webp"][0])).convert("RGB")
    assert seen.size == size
    middle = seen.height // 2
    for at, colour in (((2, middle), left), ((2, 2), corner), ((seen.width // 2, middle), "red")):
        difference = np.abs(np.subtract(seen.getpixel(at), ImageColor.getrgb(colour)))
        assert difference.max() < 60, (at, colour, seen.getpixel(at))


def test_a_tower_that_squashes_says_so_in_its_sites():
    clip = ns.load_clip("demo")
    site = "visual.transformer.resblocks.1"
    assert clip.site(site, "image").fit == "crop"
    clip.module.visual.preprocess_cfg = {**clip.module.visual.preprocess_cfg, "resize_mode": "squash"}
    assert clip.site(site, "image").fit == "squash"
    assert clip.site("image_embed", "image").fit == "crop"
