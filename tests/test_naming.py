"""Names of latents: planted truth, the null, hubs, the check by data, and what is refused."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from concept_world import DemoWorld, demo_world  # noqa: F401 (a fixture)
from torch import Tensor
from torch.nn import functional as F

import nb_sae as ns
from nb_sae.concepts import schema
from nb_sae.concepts.counts import count_concepts
from nb_sae.concepts.data_names import as_boolean
from nb_sae.concepts.lookup import find_latent
from nb_sae.concepts.names import ConceptNames, meaning_of, plain
from nb_sae.concepts.naming import PAPER, name_concepts
from nb_sae.concepts.nearest import nearest_words
from nb_sae.concepts.nulls import hub_share, null_directions, order_for
from nb_sae.concepts.words import embed_words
from nb_sae.data.faces import DRAWN
from nb_sae.data.vocabulary import vocabulary
from nb_sae.errors import ConfigError, FormatError, InputError, NonFiniteError, PathExistsError, ShapeError, WidgetError

WIDTH = 64


class FakeClip:
    """A text tower with one random direction per text, on top of what all texts share."""

    name, revision, logit_scale = "fake", "1", 100.0

    def __init__(self, d: int = WIDTH, *, shared: float = 0.0, seed: int = 0) -> None:
        self.d, self.shared, self.seed = d, shared, seed
        self.special: dict[str, Tensor] = {}

    def encode_text(self, texts: list[str], normalize: bool = False) -> Tensor:
        common = torch.full((self.d,), self.d**-0.5)
        rows = torch.stack([self.special.get(text, self._own(text) + self.shared * common) for text in texts])
        return F.normalize(rows, dim=-1) if normalize else rows

    def _own(self, text: str) -> Tensor:
        seed = self.seed + sum(ord(letter) * 31**place for place, letter in enumerate(text)) % 2**31
        return F.normalize(torch.randn(self.d, generator=torch.Generator().manual_seed(seed)), dim=-1)


def of_directions(directions: Tensor, **about) -> ns.Dictionary:
    n, d = directions.shape
    return ns.Dictionary.from_weights(directions.T.contiguous(), torch.zeros(n), directions, torch.zeros(d), **about)


def words_of(count: int) -> list[str]:
    return [f"word{i}" for i in range(count)]


def gaussian(n: int, d: int = WIDTH, *, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


# ── planted truth ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("gap", ["raw", "text_mean"])
@pytest.mark.parametrize("shared", [0.0, 2.0])
def test_planted_directions_are_named_right(gap, shared):
    """300 words; a latent is its word's embedding and noise of the same length, in units of its own."""
    clip, listed = FakeClip(128, shared=shared), words_of(300)
    truth = clip.encode_text(listed, normalize=True)
    noise = F.normalize(gaussian(300, 128, seed=1), dim=-1) * (1.0 if not shared else 0.4)
    lengths = torch.rand(300, 1, generator=torch.Generator().manual_seed(2)) * 9 + 0.1
    names = name_concepts(of_directions((truth + noise) * lengths, unit_rows=False), clip, listed, gap=gap)
    right = names.frame["name"] == pl.Series(listed)
    assert right.mean() >= 0.95
    if not shared:  # with it, raw directions all point the same way, and the null with them
        assert (right & names.frame["accepted"]).mean() >= 0.95


def test_planted_demo_phrases_are_named_right(demo_world: DemoWorld):  # noqa: F811
    embedded = embed_words(demo_world.clip, "demo")
    truth = embedded.unit("text_mean")
    noise = F.normalize(gaussian(len(truth), truth.shape[1]), dim=-1) * 0.5
    names = name_concepts(of_directions(truth + noise), demo_world.clip, embedded)
    listed = embedded.vocabulary
    meaning = {word: listed.meanings.get(word, word) for word in listed.words}  # synonyms are one direction: grey, gray
    right = [meaning[name] == meaning[word] for name, word in zip(names.frame["name"], listed.words, strict=True)]
    assert np.mean(right) >= 0.95


def test_true_directions_of_the_attributes_are_all_named_and_accepted(demo_world: DemoWorld):  # noqa: F811
    """What each drawn attribute adds to an embedding, by least squares on labels: the best a latent could be."""
    x = demo_world.store[:]
    labels = demo_world.faces.attributes.select(DRAWN).to_torch(dtype=pl.Float32)
    centred = torch.cat([labels, torch.ones(len(x), 1)], dim=1)
    truth = torch.linalg.lstsq(centred, x).solution[: len(DRAWN)]
    names = name_concepts(of_directions(truth), demo_world.clip, "demo")
    means = [names.about["meanings"].get(name) for name in names.frame["name"]]
    assert means == list(DRAWN)
    assert names.frame["accepted"].mean() >= 0.9


def test_most_drawn_attributes_have_a_latent_of_their_name_that_separates_them(demo_world: DemoWorld):  # noqa: F811
    """Known truth of the issue: ≥ 80 % by a phrase that the caption grammar lists, with AUC ≥ 0.9 on the labels."""
    world = demo_world
    names = name_concepts(world.dictionary, world.clip, "demo")
    frame = names.check(world.dictionary, world.store, world.faces.attributes, permutations=19).frame
    good = frame.filter(pl.col("accepted") & pl.col("agrees") & (pl.col("data_auc") >= 0.9))
    found = {names.about["meanings"][name] for name in good["name"]}
    assert len(found & set(DRAWN)) >= 0.8 * len(DRAWN), sorted(set(DRAWN) - found)
    assert (good["data_p"] <= 0.05).all()
    assert frame.filter("accepted")["agrees"].mean() > 3 * frame.filter(~pl.col("accepted"))["agrees"].mean()


# ── the null ──────────────────────────────────────────────────────────────────────────────────────────────────────


def shaped(kind: str, n: int, seed: int) -> Tensor:
    """Meaningless directions: isotropic, in few dimensions, around a common one, or of positive numbers."""
    rows = gaussian(n, seed=seed)
    if kind == "few dimensions":
        return rows * torch.logspace(0, -2, WIDTH)
    if kind == "a common one":
        return rows * torch.logspace(0, -1, WIDTH) + 0.6 * torch.ones(WIDTH)
    return rows.abs() if kind == "positive" else rows


@pytest.mark.parametrize("kind", ["isotropic", "few dimensions", "a common one", "positive"])
@pytest.mark.parametrize("gap", ["raw", "text_mean"])
def test_random_dictionaries_get_no_more_names_than_the_stated_rate(kind, gap):
    """10 dictionaries of 300: the pooled share stays below the rate plus three binomial standard deviations."""
    clip = FakeClip(shared=1.0)
    embedded = embed_words(clip, words_of(400))
    rate, accepted, total = 0.1, 0, 0
    for seed in range(10):
        names = name_concepts(
            of_directions(shaped(kind, 300, seed)), clip, embedded, gap=gap, false_name_rate=rate, seed=seed
        )
        accepted, total = accepted + int(names.frame["accepted"].sum()), total + 300
    assert accepted / total <= rate + 3 * math.sqrt(rate * (1 - rate) / total)
    assert accepted > 0.3 * rate * total, "a null that nothing passes is no calibration"


def test_an_isotropic_null_would_name_directions_that_only_share_their_dimensions():
    """Why the null follows the dictionary: words and latents in the same 6 of 64 dimensions, otherwise unrelated."""
    axes = torch.linalg.qr(gaussian(WIDTH, seed=3))[0][:6]
    clip, listed = FakeClip(), words_of(100)
    clip.special = {word: gaussian(1, 6, seed=100 + i)[0] @ axes for i, word in enumerate(listed)}
    inside = of_directions(gaussian(300, 6, seed=7) @ axes)
    embedded = embed_words(clip, listed)
    names = name_concepts(inside, clip, embedded)
    assert names.frame["accepted"].mean() <= 0.1
    isotropic = nearest_words(F.normalize(gaussian(4096), dim=-1), embedded.unit("text_mean"), None, 1)[0]
    beyond = names.frame["cosine"] > float(isotropic.flatten().double().quantile(0.95))
    assert beyond.mean() > 0.9


def test_null_directions_have_the_mean_and_covariance_of_the_dictionary():
    rows = F.normalize(shaped("a common one", 5000, 0), dim=-1)
    drawn = null_directions(rows, 20_000, seed=0)
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(20_000))
    assert F.cosine_similarity(drawn.mean(0), rows.mean(0), dim=0) > 0.99
    wanted, given = torch.cov(rows.T), torch.cov(drawn.T)
    assert F.cosine_similarity(wanted.flatten(), given.flatten(), dim=0) > 0.97
    assert torch.equal(drawn, null_directions(rows, 20_000, seed=0))


def test_p_is_uniform_for_directions_of_the_null():
    clip = FakeClip()
    names = name_concepts(of_directions(gaussian(2000)), clip, words_of(50))
    p = names.frame["p"].sort().to_numpy()
    distance = np.abs(p - (np.arange(2000) + 0.5) / 2000).max()
    assert distance < 1.63 * math.sqrt(1 / 2000 + 1 / 4096) + 1e-3  # Kolmogorov–Smirnov, 1 %


def test_the_threshold_holds_with_confidence():
    """P(Binomial(N, rate) ≥ r) ≥ 0.95 and r is the largest: against the sum of the probabilities."""
    for draws, rate in ((100, 0.05), (4096, 0.05), (4096, 0.01), (20_000, 0.001)):
        rank = order_for(draws, rate)
        logs = [
            math.lgamma(draws + 1) - math.lgamma(i + 1) - math.lgamma(draws - i + 1) + i * math.log(rate)
            + (draws - i) * math.log1p(-rate)
            for i in range(rank + 1)
        ]  # fmt: skip
        below = np.exp(logs)
        assert 1 - below[:rank].sum() >= 0.95 > 1 - below.sum()
    with pytest.raises(ConfigError, match="cannot vouch"):
        order_for(20, 0.05)


# ── matching ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", [2, 5, 63, 320, 1000, 1283])
@pytest.mark.parametrize("block", [None, 7])
def test_nearest_words_equal_a_full_sort(words, block):
    directions, embedded = F.normalize(gaussian(20), dim=-1), F.normalize(gaussian(words, seed=1), dim=-1)
    penalty = gaussian(1, words, seed=2)[0] * 0.1
    k = min(5, words)
    for taken in (None, penalty):
        values, numbers = nearest_words(directions, embedded, taken, k, block=block)
        cosines = directions @ embedded.T
        expected = (cosines if taken is None else cosines - taken).sort(descending=True).indices[:, :k]
        assert torch.equal(numbers, expected)
        torch.testing.assert_close(values, cosines.gather(1, expected))


def test_the_frame_states_cosine_margin_ratio_and_runner_ups():
    clip, listed = FakeClip(), words_of(30)
    directions = gaussian(8)
    names = name_concepts(of_directions(directions), clip, listed, gap="raw", latents=[5, 2])
    assert names.frame.schema == schema.NAMES
    assert names.hubs.schema == schema.HUBS
    assert names.null.schema == schema.NULL
    assert names.frame["latent"].to_list() == [5, 2]
    cosines = F.normalize(directions, dim=-1) @ clip.encode_text(listed, normalize=True).T
    for line in names.frame.iter_rows(named=True):
        best = cosines[line["latent"]].sort(descending=True)
        assert line["name"] == listed[int(best.indices[0])]
        assert line["runner_ups"] == [listed[i] for i in best.indices[1:5].tolist()]
        assert line["cosine"] == pytest.approx(float(best.values[0]), abs=1e-6)
        assert line["margin"] == pytest.approx(float(best.values[0] - best.values[1]), abs=1e-6)
        assert line["ratio"] == pytest.approx(float(best.values[0] / best.values[1]), abs=1e-5)


def test_directions_are_out_of_the_training_scale_and_without_the_mean():
    """The same rows in other units and elsewhere give the same names: a direction is decode(e_j) − decode(0)."""
    clip, listed = FakeClip(), words_of(30)
    plainly = of_directions(gaussian(20))
    moved = ns.Dictionary.from_weights(
        plainly.W_enc, plainly.b_enc, plainly.W_dec * 37.0, torch.full((WIDTH,), 50.0), unit_rows=False
    )
    first, second = (name_concepts(d, clip, listed).frame for d in (plainly, moved))
    assert first["name"].equals(second["name"])
    np.testing.assert_allclose(first["cosine"], second["cosine"], atol=1e-6)


def test_text_mean_takes_off_what_all_texts_share():
    clip, listed = FakeClip(shared=5.0), words_of(100)
    truth = clip.encode_text(listed, normalize=True)
    own = truth - truth.mean(0)
    raw, centred = (name_concepts(of_directions(own), clip, listed, gap=gap) for gap in ("raw", "text_mean"))
    assert centred.frame["cosine"].min() > 0.999
    assert raw.frame["cosine"].max() < 0.5
    assert raw.about["gap"] == "raw"


# ── fixed numbers, hubs, PMI ──────────────────────────────────────────────────────────────────────────────────────


def test_paper_accepts_by_fixed_cosine_and_ratio():
    clip, listed = FakeClip(), words_of(40)
    truth = clip.encode_text(listed, normalize=True)
    dictionary = of_directions(torch.cat([truth[:10], truth[:10] + truth[10:20]]))
    frame = name_concepts(dictionary, clip, listed, gap="raw", accept="paper").frame
    second = pl.col("runner_up_cosines").list.first()
    least = (pl.col("cosine") >= PAPER[0]) & ((second <= 0) | (pl.col("cosine") >= PAPER[1] * second))
    assert frame["accepted"].equals(frame.select(least.alias("accepted"))["accepted"])
    assert frame["accepted"][:10].all()
    assert not frame["accepted"][10:].any(), "half of two words is neither"
    own = name_concepts(dictionary, clip, listed, gap="raw", accept=(0.6, 1.0)).frame
    assert own["accepted"].all()


def hub_world(d: int = 1024, words: int = 200, units: int = 100) -> tuple[FakeClip, list[str], Tensor]:
    """200 texts at right angles, one of them a hub with cosine 0.1 to every unit, and units at 0.092 from their own.

    As in CLIP, where any text is about equally far from any picture, all that counts is in the last 0.01.
    """
    listed = [*words_of(words - 1), "hub"]
    axes = torch.eye(d)
    clip = FakeClip(d)
    clip.special = {word: axes[i] for i, word in enumerate(listed[:-1])} | {"hub": axes[-1]}
    rest = gaussian(units, d, seed=9)
    rest[:, :words] = rest[:, -1] = 0
    rest = F.normalize(rest, dim=-1) * math.sqrt(1 - 0.1**2 - 0.092**2)
    return clip, listed, 0.092 * axes[:units] + 0.1 * axes[-1] + rest


def test_pmi_takes_a_planted_hub_back():
    """MILAN's planted hub: at λ = 0 the hub names everything, from 0.2 on the right text in ≥ 95 % of 100 units."""
    clip, listed, directions = hub_world()
    dictionary, truth = of_directions(directions), pl.Series(listed[:100])
    without = name_concepts(dictionary, clip, listed, gap="raw").frame
    assert (without["name"] == "hub").mean() >= 0.95
    for pmi in (0.2, 0.5):
        corrected = name_concepts(dictionary, clip, listed, gap="raw", pmi=pmi).frame
        assert (corrected["name"] == truth).mean() >= 0.95
        np.testing.assert_allclose(corrected["cosine"], 0.092, atol=1e-4)


def test_hubs_are_reported_and_never_accepted_for_being_near_to_everything():
    clip, listed, directions = hub_world()
    names = name_concepts(of_directions(directions), clip, listed, gap="raw")
    top = names.hubs.row(0, named=True)
    assert (top["word"], top["hub"]) == ("hub", True)
    assert top["null_share"] > 0.5
    assert top["latent_share"] >= 0.95
    assert top["mean_cosine"] == pytest.approx(0.1, abs=0.01)
    assert names.hubs["null_share"].sum() == pytest.approx(1.0)
    assert not names.frame.filter(pl.col("name") == "hub")["accepted"].any()
    plainly = name_concepts(of_directions(gaussian(300)), FakeClip(), words_of(200), gap="raw")
    assert not plainly.hubs["hub"].any()


@pytest.mark.parametrize(("words", "least"), [(2, 0.75), (100, 0.1), (20_000, 0.01)])
def test_what_counts_as_a_hub(words, least):
    assert hub_share(words) == pytest.approx(least)


# ── degenerate ────────────────────────────────────────────────────────────────────────────────────────────────────


def analysis_of(dictionary: ns.Dictionary, rows: Tensor) -> ns.Analysis:
    return ns.analyze(dictionary, ns.ActivationStore.from_tensor(rows), progress=False)


def test_dead_latents_and_latents_without_direction_get_no_accepted_name():
    clip, listed = FakeClip(), words_of(40)
    truth = clip.encode_text(listed, normalize=True)
    directions = torch.cat([truth, torch.zeros(1, WIDTH)])
    bias = torch.zeros(41)
    bias[:10] = -100.0  # these never fire
    dictionary = ns.Dictionary.from_weights(directions.T.contiguous(), bias, directions, torch.zeros(WIDTH))
    analysis = analysis_of(dictionary, gaussian(200, seed=4))
    frame = name_concepts(dictionary, clip, listed, analysis=analysis).frame
    assert not frame["accepted"][:10].any()
    assert frame["accepted"][10:40].all()
    assert frame["name"][:10].to_list() == listed[:10], "what it would be called is still told"
    assert frame["p"][:10].null_count() == frame["mean"][:10].null_count() == 10
    assert frame["density"][:10].to_list() == [0.0] * 10
    last = frame.row(40, named=True)
    assert (last["name"], last["cosine"], last["runner_ups"], last["accepted"]) == (None, None, None, False)
    np.testing.assert_allclose(frame["density"][:40], analysis.latents["density"][:40])
    assert name_concepts(dictionary, clip, listed).frame["accepted"][:40].all(), "without an analysis nothing is dead"


def test_few_latents_and_all_dead_ones_do_not_break_the_null():
    clip, listed = FakeClip(), words_of(20)
    for n in (1, 2, 3):
        assert name_concepts(of_directions(gaussian(n)), clip, listed).frame.height == n
    nothing = of_directions(torch.zeros(4, WIDTH), unit_rows=False)
    assert not name_concepts(nothing, clip, listed).frame["accepted"].any()


def test_two_words_are_enough_and_one_is_refused():
    names = name_concepts(of_directions(gaussian(9)), FakeClip(), ["cat", "dog"])
    assert set(names.frame["name"]) <= {"cat", "dog"}
    assert names.frame["runner_ups"].list.len().to_list() == [1] * 9
    with pytest.raises(ConfigError, match="has 1 word"):
        name_concepts(of_directions(gaussian(9)), FakeClip(), ["cat", "Cat ", ""])


def test_dropped_words_are_counted():
    about = name_concepts(of_directions(gaussian(9)), FakeClip(), ["cat", "dog", "dog", "", " "]).about
    assert (about["words"], about["duplicates"], about["blank"]) == (2, 1, 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gap": "image_mean"}, ConfigError, "'raw' or 'text_mean'"),
        ({"accept": "p<0.05"}, ConfigError, "Use 'null', 'paper'"),
        ({"accept": (2.0, 1.0)}, ConfigError, "cosine lies in"),
        ({"false_name_rate": 0.0}, ConfigError, "outside"),
        ({"pmi": -1.0}, ConfigError, "pmi=-1.0"),
        ({"latents": [9]}, ConfigError, "0 … 8"),
        ({"latents": []}, ConfigError, "at least one latent"),
        ({"block": 0}, ConfigError, "block=0"),
    ],
)
def test_settings_out_of_range_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        name_concepts(of_directions(gaussian(9)), FakeClip(), words_of(5), **options)


@pytest.mark.parametrize(
    ("dictionary", "error", "message"),
    [
        (of_directions(gaussian(9, 32)), ShapeError, "32 wide .* the embedded words 64"),
        (of_directions(gaussian(9), site="blocks.3"), ConfigError, "train on site 'image_embed'"),
        (of_directions(gaussian(9), model="other"), ConfigError, "is of model 'other'"),
    ],
)
def test_directions_that_are_not_in_the_space_of_the_words_are_refused(dictionary, error, message):
    with pytest.raises(error, match=message):
        name_concepts(dictionary, FakeClip(), words_of(5))


def test_an_analysis_of_another_dictionary_and_a_broken_model_are_refused():
    dictionary = of_directions(gaussian(9))
    with pytest.raises(ShapeError, match="Analyze this"):
        name_concepts(
            dictionary, FakeClip(), words_of(5), analysis=analysis_of(of_directions(gaussian(8)), gaussian(9))
        )
    with pytest.raises(ConfigError, match="encode_text"):
        name_concepts(dictionary, None, words_of(5))
    clip = FakeClip()
    clip.special = {"word1": torch.full((WIDTH,), math.nan)}
    with pytest.raises(NonFiniteError, match="'word1'"):
        name_concepts(dictionary, clip, words_of(5))


def test_embedded_words_need_no_model_and_know_whose_they_are():
    embedded = embed_words(FakeClip(), vocabulary(words_of(20), templates=["a {}", "the {}"]))
    dictionary = of_directions(gaussian(9))
    assert name_concepts(dictionary, None, embedded).frame.equals(name_concepts(dictionary, FakeClip(), embedded).frame)
    both = FakeClip().encode_text(["a word0", "the word0"], normalize=True).mean(0)
    torch.testing.assert_close(embedded.vectors[0], F.normalize(both, dim=0))
    other = FakeClip()
    other.revision = "2"
    with pytest.raises(ConfigError, match="Embed them again"):
        name_concepts(dictionary, other, embedded)


# ── finding, labels, files ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def named() -> ConceptNames:
    """Latents 0 and 1 are both "cat", 2 is "dog", 3 "a red car"; 4 is nothing."""
    frame = pl.DataFrame(
        {
            "latent": [0, 1, 2, 3, 4],
            "name": ["cat", "cat", "dog", "a red car", "house"],
            "cosine": [0.7, 0.8, 0.9, 0.6, 0.1],
            "accepted": [True, True, True, True, False],
        }
    )
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in schema.NAMES.items() if name not in frame.columns]
    about = {"words": 5, "vocabulary": "given", "meanings": {}}
    return ConceptNames(
        frame=frame.with_columns(missing).select(schema.NAMES.names()).cast(dict(schema.NAMES)),
        hubs=pl.DataFrame(schema=schema.HUBS), null=pl.DataFrame(schema=schema.NULL), about=about,
    )  # fmt: skip


def test_find_gives_the_latent_of_an_accepted_name(named):
    assert named.find("Dog ") == 2
    assert named.find("a  red car") == 3
    assert named.find("cat", best=True) == 1
    assert [named.name_of(i) for i in range(5)] == ["cat", "cat", "dog", "a red car", "latent 4"]


def test_find_lists_candidates_of_an_ambiguous_name_and_near_names_of_an_unknown_one(named):
    with pytest.raises(InputError, match=r"2 latents: 1 \(cosine 0.80\), 0 \(cosine 0.70\).*best=True"):
        named.find("cat")
    with pytest.raises(InputError, match="Closest: dog"):
        named.find("dogs")
    with pytest.raises(InputError, match=r"no better than chance: 4 \(cosine 0.10\)"):
        named.find("house")


def test_a_label_of_the_user_stands_before_every_name(named):
    notes = pl.DataFrame({"latent": [2, 4, 3], "label": ["cat", "my house", None]})
    labelled = named.with_labels(notes)
    assert labelled.find("cat") == 2
    assert labelled.find("MY HOUSE") == labelled.find("my house") == 4
    assert labelled.name_of(2) == "cat"
    assert labelled.name_of(3) == "a red car"
    with pytest.raises(InputError):
        labelled.find("dog")  # the user calls it something else
    twice = named.with_labels(pl.DataFrame({"latent": [2, 4], "label": ["pet", "pet"]}))
    with pytest.raises(InputError, match="label of latents 2, 4"):
        twice.find("pet")


def test_names_come_back_from_files(named, tmp_path):
    labelled = named.with_labels(pl.DataFrame({"latent": [4], "label": ["my house"]}))
    labelled.save(tmp_path / "names")
    again = ConceptNames.load(tmp_path / "names")
    assert again.frame.equals(labelled.frame)
    assert (again.about, dict(again.labels)) == (labelled.about, {4: "my house"})
    with pytest.raises(PathExistsError):
        named.save(tmp_path / "names")
    named.save(tmp_path / "names", overwrite=True)
    assert not ConceptNames.load(tmp_path / "names").labels
    assert [path.name for path in tmp_path.iterdir()] == ["names"]
    named.hubs.rename({"word": "w"}).write_parquet(tmp_path / "names" / "hubs.parquet")
    with pytest.raises(FormatError, match=r"hubs\.parquet"):
        ConceptNames.load(tmp_path / "names")


def test_real_names_come_back_from_files(tmp_path):
    names = name_concepts(of_directions(gaussian(9)), FakeClip(), words_of(12), accept=(0.1, 1.0))
    names.save(tmp_path / "n")
    again = ConceptNames.load(tmp_path / "n")
    assert again.frame.equals(names.frame)
    assert again.about == names.about


def test_find_latent_takes_numbers_and_names(named):
    assert find_latent(3, None, 5) == 3
    assert find_latent(np.int64(3), None, 5) == 3
    assert find_latent("dog", named, 5) == 2
    for wrong, message in ((5, "0 … 4"), (-1, "0 … 4"), (1.5, "number or its name"), (True, "number or its name")):
        with pytest.raises(ConfigError, match=message):
            find_latent(wrong, named, 5)
    with pytest.raises(ConfigError, match="no names were given"):
        find_latent("dog", None, 5)


# ── the second opinion ────────────────────────────────────────────────────────────────────────────────────────────


def labelled_world(rows: int = 400) -> SimpleNamespace:
    """Latent j is active where attribute j holds (latent 2: where it does not), 5 is noise, 6 is silent."""
    random = np.random.default_rng(0)
    labels = random.random((rows, 4)) < (0.5, 0.3, 0.4, 0.1)
    latents = np.zeros((rows, 7), np.float32)
    latents[:, :4] = labels * (0.5 + random.random((rows, 4)))
    latents[:, 2] = ~labels[:, 2] * (0.5 + random.random(rows))
    latents[:, 4] = (labels[:, 0] ^ (random.random(rows) < 0.25)) * np.round(1 + random.random(rows), 1)
    latents[:, 5] = np.maximum(random.standard_normal(rows), 0)
    dictionary = of_directions(torch.eye(7))
    attributes = pl.DataFrame({name: labels[:, i] for i, name in enumerate("ABCD")})
    keys = pl.Series("key", [str(i) for i in range(rows)])
    return SimpleNamespace(
        dictionary=dictionary, store=ns.ActivationStore.from_tensor(torch.from_numpy(latents)), latents=latents,
        labels=labels, attributes=attributes.select(keys, pl.all()), names=names_of(7),
    )  # fmt: skip


def names_of(latents: int) -> ConceptNames:
    frame = pl.DataFrame({"latent": range(latents), "name": (["a", "B", "no c", "spade", "A", None, "A"])[:latents]})
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in schema.NAMES.items() if name not in frame.columns]
    return ConceptNames(
        frame=frame.with_columns(missing).select(schema.NAMES.names()).cast(dict(schema.NAMES)),
        hubs=pl.DataFrame(schema=schema.HUBS), null=pl.DataFrame(schema=schema.NULL),
        about={"words": 5, "vocabulary": "given", "meanings": {"no c": "not C"}},
    )  # fmt: skip


def plain_auc(activation: np.ndarray, label: np.ndarray) -> float:
    above = activation[label][:, None] - activation[~label][None]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def test_data_names_are_the_attribute_that_a_latent_separates():
    world = labelled_world()
    frame = world.names.check(world.dictionary, world.store, world.attributes, permutations=99).frame
    assert frame.schema == schema.NAMES
    assert frame["data_name"].to_list()[:5] == ["A", "B", "not C", "D", "A"]
    assert frame["data_auc"].to_list()[:4] == pytest.approx([1.0] * 4)
    assert frame["data_auc"][4] == pytest.approx(plain_auc(world.latents[:, 4], world.labels[:, 0]))
    assert frame["data_p"].to_list()[:5] == [0.01] * 5
    assert frame["data_p"][5] > 0.05
    silent = frame.row(6, named=True)
    assert (silent["data_name"], silent["data_auc"], silent["data_p"], silent["agrees"]) == (None,) * 4
    # "a" is written like A, "no c" is known to mean "not C"; "spade" means no attribute.
    assert frame["agrees"].to_list()[:6] == [True, True, True, None, True, None]
    told = world.names.check(
        world.dictionary, world.store, world.attributes, permutations=9, synonyms={"D": ["spade"], "B": ["a"]}
    )
    assert told.frame["agrees"].to_list()[:4] == [False, True, True, True]


def test_data_p_is_uniform_or_more_careful_where_labels_mean_nothing():
    """600 latents against 6 random attributes: p ≤ 0.05 in about 5 % of them although the best of 6 was taken."""
    random = np.random.default_rng(1)
    rows = torch.from_numpy(np.maximum(random.standard_normal((300, 600)), 0).astype(np.float32))
    labels = pl.DataFrame({f"x{i}": random.random(300) < p for i, p in enumerate((0.5, 0.5, 0.3, 0.3, 0.1, 0.1))})
    frame = pl.DataFrame({"latent": range(600)})
    names = names_of(7)
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in schema.NAMES.items() if name != "latent"]
    names = ConceptNames(
        frame=frame.with_columns(missing).select(schema.NAMES.names()).cast(dict(schema.NAMES)), hubs=names.hubs,
        null=names.null, about=names.about,
    )  # fmt: skip
    dictionary = of_directions(torch.eye(600))
    p = names.check(dictionary, ns.ActivationStore.from_tensor(rows), labels, permutations=199).frame["data_p"]
    # The largest |z| decides p, the largest |AUC − 0.5| the attribute: at most as many small p as the level says.
    assert (p <= 0.05).mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
    assert (p <= 0.5).mean() > 0.2


@pytest.mark.parametrize("kind", ["0/1", "-1/1", "float with NaN"])
def test_missing_labels_are_dropped_from_their_own_test_and_counted(kind):
    world = labelled_world()
    known = np.random.default_rng(3).random(400) < 0.6
    full = world.labels[:, 0]
    column = {
        "0/1": pl.Series([int(v) if k else None for v, k in zip(full, known, strict=True)]),
        "-1/1": pl.Series([(1 if v else -1) if k else None for v, k in zip(full, known, strict=True)]),
        "float with NaN": pl.Series([float(v) if k else math.nan for v, k in zip(full, known, strict=True)]),
    }[kind]
    names = world.names.check(
        world.dictionary, world.store, world.attributes.with_columns(column.alias("A")), permutations=9
    )
    assert names.about["check"]["missing"] == {"A": int((~known).sum())}
    assert names.frame["data_auc"][0] == 1.0
    assert names.frame["data_auc"][4] == pytest.approx(plain_auc(world.latents[known, 4], full[known]))
    assert names.frame["data_auc"][1] == 1.0


def test_attributes_join_by_key_in_any_order():
    world = labelled_world()
    shuffled = world.attributes.sample(fraction=1.0, shuffle=True, seed=0)
    first, second = (
        world.names.check(world.dictionary, world.store, frame, permutations=9).frame
        for frame in (world.attributes, shuffled)
    )
    assert first.equals(second)


def test_what_cannot_be_tested_is_skipped_with_its_reason_or_refused():
    world = labelled_world()
    odd = world.attributes.with_columns(
        E=pl.lit("text"), F=pl.lit(True), G=pl.Series(range(400)), H=pl.Series([True] * 4 + [False] * 396)
    )
    about = world.names.check(world.dictionary, world.store, odd, permutations=9).about["check"]
    assert sorted(about["attributes"]) == ["A", "B", "C", "D"]
    assert set(about["skipped"]) == {"E", "F", "G", "H"}
    check = lambda frame: world.names.check(world.dictionary, world.store, frame)  # noqa: E731
    with pytest.raises(InputError, match="No attribute can be tested"):
        check(odd.select("key", "E", "F"))
    with pytest.raises(InputError, match="No key of the attributes"):
        check(world.attributes.with_columns(key="x" + pl.col("key")))
    with pytest.raises(InputError, match="more than once"):
        check(pl.concat([world.attributes, world.attributes]))
    with pytest.raises(InputError, match="no 'key'"):
        check(world.attributes.drop("key")[:100])
    with pytest.raises(ConfigError, match="permutations=0"):
        world.names.check(world.dictionary, world.store, world.attributes, permutations=0)


def test_labels_of_other_than_two_values_are_no_attribute():
    assert as_boolean(pl.Series([-1, 0, 1])) is None
    assert as_boolean(pl.Series([0.5, 1.0])) is None
    assert as_boolean(pl.Series([1.0, math.nan, 0.0])).to_list() == [True, None, False]


def test_several_rows_of_an_input_count_as_their_largest():
    rows = torch.tensor([[0.0, 1.0], [2.0, 0.0]]).repeat(20, 1)
    rows[::4] = torch.tensor([0.1, 1.0])
    ids = pl.DataFrame({"input_id": np.repeat(np.arange(20), 2), "token": np.tile([0, 1], 20)})
    store = ns.ActivationStore.from_tensor(torch.cat([rows[:20], rows[20:] * torch.tensor([0.5, 1.0])]), rows=ids)
    attributes = pl.DataFrame({"A": [True] * 10 + [False] * 10})
    frame = names_of(2).check(of_directions(torch.eye(2)), store, attributes, permutations=9).frame
    assert frame["data_auc"].to_list() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("word", "attribute"), [("a hat", "Wearing_Hat"), ("Eyeglasses", "Eyeglasses"), ("the", None), (None, None)]
)
def test_words_written_like_an_attribute_mean_it(word, attribute):
    known = {plain(name): name for name in ("Wearing_Hat", "Eyeglasses")}
    assert meaning_of(word, {}, known) == attribute


# ── counting ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_counts_stand_beside_what_chance_gives():
    clip, listed = FakeClip(), words_of(60)
    truth = clip.encode_text(listed, normalize=True)
    frame = count_concepts(
        {"planted": of_directions(torch.cat([truth, gaussian(140)])), "random": of_directions(gaussian(200, seed=5))},
        clip,
        listed,
    )
    assert frame.schema == schema.COUNTS
    planted, random = frame.iter_rows(named=True)
    assert (planted["dictionary"], planted["latents"]) == ("planted", 200)
    assert 60 <= planted["concepts"] <= 60 + 20
    assert planted["words"] >= 60
    assert planted["expected_by_chance"] == pytest.approx(0.05 * 200, abs=2.5)
    assert random["concepts"] <= 20
    paper = count_concepts({"random": of_directions(gaussian(200))}, clip, listed, accept="paper").row(0, named=True)
    assert paper["expected_by_chance"] < 20


def test_counting_nothing_or_a_stray_analysis_is_refused():
    with pytest.raises(ConfigError, match="dictionaries by name"):
        count_concepts({}, FakeClip(), words_of(5))
    dictionary = of_directions(gaussian(9))
    with pytest.raises(ConfigError, match="Closest: mine"):
        count_concepts(
            {"mine": dictionary}, FakeClip(), words_of(5), analyses={"mines": analysis_of(dictionary, gaussian(9))}
        )


def test_the_figure_shows_the_names_beside_the_null():
    clip, listed = FakeClip(), words_of(30)
    truth = clip.encode_text(listed, normalize=True)
    names = name_concepts(of_directions(torch.cat([truth[:9], gaussian(20)])), clip, listed)
    figure = ns.plots.naming(names.frame, null=names.null)
    latents, accepted, null = figure.data
    assert list(latents.x) == names.frame["cosine"].sort(descending=True).to_list()
    assert latents.y[-1] == 1.0
    assert len(accepted.x) == names.frame["accepted"].sum()
    assert f"latent 0: {listed[0]}" in accepted.text
    assert list(null.x) == names.null["cosine"].to_list()
    with pytest.raises(WidgetError, match=r"names\.frame"):
        ns.plots.naming(names.hubs)
