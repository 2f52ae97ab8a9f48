"""The bias report on latents planted directly: what is there is found, what is not there is not."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from bias_world import DEAD, LATENTS, BiasWorld, bias_world

import nb_sae as ns
from nb_sae.concepts import schema
from nb_sae.concepts.bias import BiasReport, bias_report
from nb_sae.concepts.bias.report import TABLES

NAMES = {f"c{latent}": latent for latent in range(LATENTS)}


@pytest.fixture(scope="module")
def world() -> BiasWorld:
    return bias_world()


@pytest.fixture(scope="module")
def report(world: BiasWorld) -> BiasReport:
    queries = {"common": world.dictionary.b_dec, "c0": world.dictionary.W_dec[0]}
    return bias_report(
        world.dictionary, world.store, world.attributes, "Male", NAMES, given=["Young"], queries=queries, images=4
    )


def line(frame: pl.DataFrame, **where: object) -> dict[str, object]:
    found = frame.filter(
        *(pl.col(name).is_null() if value is None else pl.col(name) == value for name, value in where.items())
    )
    assert found.height == 1, found
    return found.row(0, named=True)


def same(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Apart from q-values, which count the tables that a report has."""
    return one.drop("q_value").equals(other.drop("q_value"))


def test_every_table_has_the_columns_of_its_schema(report):
    assert {name: getattr(report, name).schema for name in TABLES} == TABLES


def test_association_finds_what_depends_on_the_target_and_no_more(report):
    found = report.association.filter(pl.col("q_value") <= 0.05)
    assert set(found["concept"]) == {"c0", "c1", "c2"}
    signs = {row["concept"]: np.sign(row["effect"]) for row in found.iter_rows(named=True)}
    assert signs == {"c0": 1, "c1": -1, "c2": -1}


def test_a_concept_that_rides_on_another_attribute_loses_its_effect_inside_its_strata(report):
    inside = report.conditional
    assert line(inside, concept="c0")["q_value"] < 0.001
    for concept in ("c1", "c2"):
        alone, within = line(report.association, concept=concept), line(inside, concept=concept)
        assert within["given"] == "Young"
        assert alone["effect"] < within["ci_low"]
        assert within["q_value"] > 0.05


def test_without_any_effect_the_report_flags_nothing_in_most_seeds():
    flagged = 0
    for seed in range(5):
        world = bias_world(600, effect=0, seed=seed)
        report = bias_report(world.dictionary, world.store, world.attributes, "Male", NAMES, given=["Young"], grid=2)
        tables = (report.association, report.conditional, report.reliance)
        flagged += any(frame.filter(pl.col("q_value") <= 0.05).height for frame in tables)
    assert flagged <= 1


def test_reliance_finds_what_the_probe_uses_beyond_its_controls(report):
    used = line(report.reliance, concept="c0")
    assert used["effect"] > used["control_high"]
    assert used["p_value"] < 0.001
    assert used["ci_low"] < used["effect"] < used["ci_high"]
    # Young helps to guess Male, so the probe leans on both of its concepts, the other way.
    assert line(report.reliance, concept="c1")["effect"] < used["control_low"]
    idle = report.reliance.filter(~pl.col("concept").is_in(["c0", "c1", "c2", f"c{DEAD}"]))
    assert idle.filter(pl.col("q_value") <= 0.05).height <= 1


def test_reliance_of_a_known_classifier_is_what_it_computes(world):
    direction = world.dictionary.W_dec[3]

    def chance(x):
        return ((x @ direction) * 0.1 + 0.4).clamp(0, 1)

    found = bias_report(
        world.dictionary, world.store, world.attributes, "Male", NAMES, classifier=chance, grid=3, controls=5, rows=100
    )
    used = line(found.reliance, concept="c3")
    # Setting it is a step along its own direction, and the others are orthogonal to it.
    assert used["effect"] == pytest.approx(0.1 * (used["high"] - used["low"]), abs=1e-5)
    assert used["reconstruction"] == pytest.approx(0, abs=1e-5)
    others = found.reliance.filter(pl.col("concept") != "c3")["effect"].drop_nulls()
    assert others.abs().max() < 1e-5
    curve = found.curves.filter(pl.col("concept") == "c3")
    np.testing.assert_allclose(curve["mean"], 0.1 * (curve["value"] - curve["value"][0]), atol=1e-5)


def test_what_reconstruction_does_is_shown_and_is_not_in_the_effect():
    world = bias_world(400, noise=1.0)  # what the dictionary does not hold is most of a row
    error = torch.linalg.svd(world.x - world.dictionary.reconstruct(world.x), full_matrices=False).Vh[0]

    def chance(x):
        return (x @ error).sigmoid()  # reads only what the dictionary leaves out

    found = bias_report(
        world.dictionary, world.store, world.attributes, "Male", [0, 1], classifier=chance, controls=0, rows=200
    )
    x = world.x
    expected = chance(world.dictionary.reconstruct(x)) - chance(x)
    assert expected.abs().mean() > 0.1
    assert found.reliance["effect"].abs().max() < 1e-5
    assert found.reliance["reconstruction"][0] == pytest.approx(float(expected.mean()), abs=0.08)


def test_setting_a_concept_to_what_it_is_changes_no_probability(world, report):
    curves = report.image_curves.filter(pl.col("concept") == "c5", pl.col("value") == 0)
    silent = [row for row in curves["row"] if world.z[row, 5] == 0]
    assert silent
    again = report.image_curves.filter(pl.col("concept") == "c6", pl.col("value") == 0)
    both = [row for row in silent if world.z[row, 6] == 0]
    chance = {row["row"]: row["probability"] for row in curves.iter_rows(named=True)}
    other = {row["row"]: row["probability"] for row in again.iter_rows(named=True)}
    assert both
    np.testing.assert_allclose([chance[row] for row in both], [other[row] for row in both], atol=1e-9)


def test_controls_are_live_near_in_density_and_no_concept_of_the_report(world):
    found = bias_report(world.dictionary, world.store, world.attributes, "Male", {"c0": 0}, controls=6)
    matched = found.controls.drop_nulls("control")
    assert matched.height == 6
    assert not set(matched["control"]) & {0, DEAD}
    near = matched["density"].to_numpy() - (world.z[:, 0] > 0).mean()
    every = np.sort(np.abs((world.z[:, 1:DEAD] > 0).mean(0) - (world.z[:, 0] > 0).mean()))
    assert np.abs(near).max() <= every[12]


def test_errors_show_the_group_that_the_classifier_fails(world):
    male, young = world.attributes["Male"].to_numpy(), world.attributes["Young"].to_numpy()
    says = {tuple(row.tolist()): 0.9 if m and not y else 0.1 for row, m, y in zip(world.x, male, young, strict=True)}

    def chance(x):  # right on old faces, and of young ones always "no"; edited rows are nobody's
        return torch.tensor([says.get(tuple(row.tolist()), 0.5) for row in x])

    found = bias_report(
        world.dictionary, world.store, world.attributes, "Male", [DEAD], classifier=chance, given=["Young"], controls=0
    )
    old, young_line = (
        line(found.errors, group="not Young", concept=None),
        line(found.errors, group="Young", concept=None),
    )
    assert (old["accuracy"], old["tpr"], old["fpr"]) == (1, 1, 0)
    assert (young_line["tpr"], young_line["fpr"]) == (0, 0)
    assert old["calibration"] == pytest.approx(0.1 - 0.2 * old["base_rate"])
    gap = line(found.gaps, group="Young", measure="tpr", concept=None)
    assert gap["gap"] == -1
    assert gap["q_value"] < 1e-6
    crossed = line(found.errors, group="Male × Young", concept=None)
    assert (crossed["accuracy"], crossed["n"]) == (0, young_line["n_positive"])


def test_levels_of_a_concept_add_up_to_the_group(report):
    for group in ("all", "Male", "not Male"):
        whole = line(report.errors, group=group, concept=None)
        on, off = (line(report.errors, group=group, concept="c1", level=level) for level in ("on", "off"))
        assert on["n"] + off["n"] == whole["n"]
        right = on["accuracy"] * on["n"] + off["accuracy"] * off["n"]
        assert right == pytest.approx(whole["accuracy"] * whole["n"])


def test_retrieval_by_a_biased_concept_is_skewed_until_it_is_removed(report):
    skewed = report.retrieval.filter(pl.col("query") == "c0", pl.col("k") == 20)
    before, after = line(skewed, removed=None), skewed.filter(pl.col("removed").is_not_null()).row(0, named=True)
    assert before["max_skew"] > before["chance_skew"]
    assert before["p_value"] < 0.01
    assert "c0" in after["removed"]
    assert after["max_skew"] < before["max_skew"]
    male = report.groups["group"].to_list().index("Male")
    assert before["shares"][male] > 0.7
    assert sum(before["shares"]) == pytest.approx(1)


def test_max_skew_of_k_random_rows_stays_within_its_chance_band(world):
    random = np.random.default_rng(0)
    queries = {str(n): torch.tensor(random.normal(size=world.store.d_in)) for n in range(60)}
    fair = world.attributes.with_columns(Male=pl.Series(random.random(len(world.x)) < 0.5))
    found = bias_report(
        world.dictionary, world.store, fair, "Male", [DEAD], classifier=None, queries=queries, ks=[50]
    ).retrieval
    above = (found["max_skew"] > found["chance_skew"]).mean()
    assert above <= 0.12


def test_mitigation_closes_the_gap_and_says_what_it_costs(report):
    found = report.mitigate(["c1", "c2"], group="Young", resamples=300)
    before = line(found, how="none", measure="positive rate")
    after = line(found, how="ablate", measure="positive rate")
    assert abs(after["gap"]) < abs(before["gap"])
    assert after["gap_change_high"] < 0
    assert after["gap_change"] == pytest.approx(abs(after["gap"]) - abs(before["gap"]))
    assert after["accuracy_change"] == pytest.approx(after["accuracy"] - before["accuracy"])
    assert after["accuracy_change_low"] <= after["accuracy_change"] <= after["accuracy_change_high"]
    assert found.schema == schema.MITIGATION


def test_taking_out_what_the_classifier_does_not_use_changes_nothing(world):
    direction = world.dictionary.W_dec[0]
    found = bias_report(
        world.dictionary, world.store, world.attributes, "Male", NAMES, given=["Young"],
        classifier=lambda x: (x @ direction - 0.5).sigmoid(), grid=2, controls=0, rows=50,
    ).mitigate("c9", "neutralise", resamples=50)  # fmt: skip
    changes = found.select("accuracy_change", "gap_change").drop_nulls()
    assert changes.height == 4
    assert changes.to_numpy().max() == 0


def test_neutralised_rows_hold_the_mean_of_the_group_means(world):
    from nb_sae.concepts.bias.labels import read_label
    from nb_sae.concepts.bias.mitigation import neutral_values
    from nb_sae.concepts.bias.retrieval import without
    from nb_sae.concepts.bias.rows import Concept, read_rows

    data = read_rows(world.dictionary, world.store, [Concept("c0", 0), Concept("c1", 1)])
    label, train = read_label(world.attributes, "Male"), np.arange(700)
    to = neutral_values(data, data.concepts, label, train)
    male = world.attributes["Male"].to_numpy()[:700]
    expected = (world.z[:700][male].mean(0) + world.z[:700][~male].mean(0))[:2] / 2
    np.testing.assert_allclose(to, expected, rtol=1e-3)
    edited = without(data, np.arange(5), data.concepts, to)
    again = world.dictionary.encode(edited)
    np.testing.assert_allclose(again[:, :2], np.tile(to, (5, 1)), rtol=1e-3)
    assert torch.allclose(again[:, 2:], world.dictionary.encode(world.x[:5])[:, 2:], atol=1e-4)


def test_retraining_on_edited_rows_is_another_line_of_evidence(report):
    found = report.mitigate("c0", retrain=True, resamples=20)
    assert found["how"].unique().sort().to_list() == ["ablate, retrained", "none"]


def test_classes_are_compared_one_against_the_rest(world):
    race = world.attributes["race"].to_numpy()
    x = world.x.clone()
    x += torch.tensor((race == "Black") * 1.2)[:, None] * world.dictionary.W_dec[4]
    store = ns.ActivationStore.from_tensor(x)
    found = bias_report(world.dictionary, store, world.attributes, "race", NAMES, grid=2)
    flagged = found.association.filter(pl.col("q_value") <= 0.05)
    assert set(flagged["group"]) == {"race=Black", "race=East", "race=White"}
    assert set(flagged["concept"]) == {"c4"}
    assert line(found.association, concept="c4", group="race=Black")["effect"] > 0.8
    assert line(found.reliance, concept="c4", output="race=Black")["effect"] > 0.5
    assert found.class_errors["output"].unique().sort().to_list() == ["race=Black", "race=East", "race=White"]
    assert line(found.class_errors, output="race=Black", group="all", concept=None)["tpr"] > 0.8
    whole = line(found.errors, group="all", concept=None)
    assert whole["tpr"] is None
    assert whole["accuracy"] > 0.4


def test_a_quantity_is_correlated_and_then_cut_at_its_median(world):
    found = bias_report(world.dictionary, world.store, world.attributes, "age", NAMES, given=["Male"], grid=2)
    flagged = found.association.filter(pl.col("q_value") <= 0.05)
    assert set(flagged["concept"]) >= {"c1", "c2"}
    assert line(found.association, concept="c1")["group"] == "age"
    assert line(found.association, concept="c1")["effect"] < 0
    assert found.reliance["output"][0].startswith("age > ")
    assert line(found.reliance, concept="c1")["effect"] < 0
    # c0 goes with Male, Male with Young, Young with age: inside Male nothing is left of it.
    assert line(found.conditional, concept="c0")["q_value"] > 0.05


@pytest.mark.parametrize(
    "as_given", [lambda v: v.cast(pl.Int64), lambda v: v.cast(pl.Int64) * 2 - 1, lambda v: v.cast(pl.Float64)]
)
def test_labels_mean_the_same_however_they_are_written(world, report, as_given):
    other = world.attributes.with_columns(as_given(pl.col("Male")), as_given(pl.col("Young")))
    found = bias_report(world.dictionary, world.store, other, "Male", NAMES, given=["Young"], classifier=None)
    assert same(found.association, report.association)
    assert same(found.conditional, report.conditional)


def test_missing_labels_are_dropped_from_their_test_alone_and_counted(world):
    male = [None if number < 100 else value for number, value in enumerate(world.attributes["Male"])]
    young = [None if number >= 1400 else value for number, value in enumerate(world.attributes["Young"])]
    holes = world.attributes.with_columns(Male=pl.Series(male), Young=pl.Series(young))
    found = bias_report(world.dictionary, world.store, holes, "Male", NAMES, given=["Young"], classifier=None)
    assert found.about["missing"] == {"Male": 100, "Young": 100}
    one, both = line(found.association, concept="c0"), line(found.conditional, concept="c0")
    assert (one["missing"], both["missing"]) == (100, 200)
    assert one["n"] + one["n_rest"] == 1400
    assert both["n"] + both["n_rest"] == 1300


def test_labels_are_joined_by_key_whatever_their_order(world, report):
    shuffled = world.attributes.sample(fraction=1, shuffle=True, seed=1)
    found = bias_report(world.dictionary, world.store, shuffled, "Male", NAMES, given=["Young"], classifier=None)
    assert same(found.association, report.association)
    by_number = world.attributes.select(pl.col("key").cast(pl.UInt32).alias("input_id"), pl.exclude("key"))
    found = bias_report(world.dictionary, world.store, by_number, "Male", NAMES, given=["Young"], classifier=None)
    assert same(found.association, report.association)


def test_small_groups_are_masked_everywhere(world):
    rare = np.zeros(len(world.x), bool)
    rare[:12] = True
    labels = world.attributes.with_columns(Rare=rare)
    found = bias_report(world.dictionary, world.store, labels, "Male", NAMES, given=["Rare"], grid=2)
    errors = found.errors.filter(pl.col("group").str.contains("Rare") & ~pl.col("group").str.contains("not Rare"))
    assert errors["masked"].all()
    assert errors["accuracy"].null_count() == errors.height
    gaps = found.gaps.filter(pl.col("group") == "Rare")
    assert gaps["masked"].all()
    assert gaps["p_value"].null_count() == gaps.height
    alone = bias_report(world.dictionary, world.store, labels, "Rare", NAMES, classifier=None)
    assert alone.association["masked"].all()
    assert alone.association["effect"].null_count() == LATENTS
    assert not alone.examples.filter(pl.col("group") == "Rare").height
    assert line(alone.groups, group="Rare")["masked"]


def test_a_concept_that_never_fires_has_no_numbers_and_is_named(report):
    dead = line(report.association, concept=f"c{DEAD}")
    assert (dead["effect"], dead["p_value"], dead["q_value"], dead["density"]) == (None, None, None, 0)
    assert line(report.reliance, concept=f"c{DEAD}")["effect"] is None
    assert report.about["never_active"] == [f"c{DEAD}"]


def test_probe_is_judged_on_rows_it_has_not_seen(world):
    part = np.where(np.arange(len(world.x)) < 300, "test", np.where(np.arange(len(world.x)) < 500, "valid", "train"))
    labels = world.attributes.with_columns(partition=part)
    found = bias_report(world.dictionary, world.store, labels, "Male", [0], test="partition", grid=2)
    assert (found.about["n_train"], found.about["n_test"]) == (1000, 300)
    assert found.image_curves["row"].max() < 300
    assert found.about["accuracy_train"] >= found.about["accuracy_test"] > found.about["accuracy_majority"]


def test_a_probe_of_labels_that_mean_nothing_is_no_better_than_chance_on_held_out_rows(world):
    random = np.random.default_rng(5)
    labels = world.attributes.with_columns(Coin=pl.Series(random.random(len(world.x)) < 0.5))
    found = bias_report(world.dictionary, world.store, labels, "Coin", [0], grid=2, controls=0)
    assert abs(found.about["auc_test"] - 0.5) < 0.1


def test_the_same_seed_gives_the_same_report(world, report):
    queries = {"common": world.dictionary.b_dec, "c0": world.dictionary.W_dec[0]}
    again = bias_report(
        world.dictionary, world.store, world.attributes, "Male", NAMES, given=["Young"], queries=queries, images=4
    )
    assert all(getattr(again, name).equals(getattr(report, name)) for name in TABLES)
    assert again.mitigate("c0", resamples=20).equals(report.mitigate("c0", resamples=20))


def test_concepts_come_from_names_lists_or_the_data_alone(world):
    def concepts(given):
        found = bias_report(world.dictionary, world.store, world.attributes, "Male", given, classifier=None)
        return dict(found.association.select("concept", "latent").iter_rows())

    class Names:
        frame = pl.DataFrame({"latent": [3, 5, 6], "accepted": [True, True, False]})

        def __init__(self):
            self.labels = {7: "mine"}

        def name_of(self, latent):
            return self.labels.get(latent, "twin")

    assert concepts(Names()) == {"twin #3": 3, "twin #5": 5, "mine": 7}
    assert concepts([4, 2]) == {"latent 4": 4, "latent 2": 2}
    assert set(concepts(None).values()) == set(range(DEAD))


@pytest.mark.parametrize("row_norm", [None, "constant_norm"])
def test_curves_are_those_of_rows_that_the_dictionary_edits(world, row_norm):
    own = world.dictionary
    dictionary = ns.Dictionary.from_weights(
        own.W_enc, own.b_enc, own.W_dec, own.b_dec, threshold=own.threshold, row_norm=row_norm
    )
    direction = own.W_dec[2] + own.W_dec[6]

    def chance(x):
        return (x @ direction * 0.3).sigmoid()

    found = bias_report(
        dictionary, world.store, world.attributes, "Male", [6], classifier=chance, grid=3, controls=0, images=5
    )
    kept = found.image_curves.sort("row", "value")
    for row in kept["row"].unique():
        lines = kept.filter(pl.col("row") == row)
        x = world.x[row : row + 1]
        expected = [float(chance(dictionary.edit_rows(x, set={6: value}))) for value in lines["value"]]
        np.testing.assert_allclose(lines["probability"], expected, atol=1e-5)


def test_several_conditions_are_taken_one_by_one_and_together(world):
    found = bias_report(
        world.dictionary, world.store, world.attributes, "Male", [0, 1], given=["Young", "age"], classifier=None
    )
    assert found.conditional["given"].unique().sort().to_list() == ["Young", "Young × age", "age"]
    assert (found.conditional.filter(pl.col("concept") == "latent 0")["q_value"] < 0.01).all()
    assert found.groups["group"].to_list()[:2] == ["not Male", "Male"]
