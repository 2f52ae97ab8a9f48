"""Drawn faces: what they hold is what the table says, and what the captions say is what they hold."""

from __future__ import annotations

import itertools
import math
import pickle
import re
import time

import numpy as np
import pytest

import nb_sae as ns
from nb_sae.data import faces as faces_module
from nb_sae.data.captions import ADJECTIVES, ANTONYMS, NOUNS, REMAINDER_PHRASES, caption
from nb_sae.data.celeba import LabeledImages, celeba
from nb_sae.data.drawing import draw_face
from nb_sae.data.face_table import NEEDS_HAIR, resolve_table, sample_attributes
from nb_sae.data.faces import (
    ATTRIBUTES,
    BALANCED,
    DRAWN,
    GROUPS,
    P_MALE,
    PROMPTS,
    SYNONYMS,
    demo_faces,
    face_table,
)
from nb_sae.errors import ConfigError, PathExistsError

ASKED_FOR = {
    "Eyeglasses",
    "Smiling",
    "Wearing_Hat",
    "Blond_Hair",
    "Black_Hair",
    "Brown_Hair",
    "Gray_Hair",
    "Bald",
    "Bangs",
    "Mustache",
    "Goatee",
    "No_Beard",
    "Bushy_Eyebrows",
    "Wearing_Lipstick",
    "Wearing_Earrings",
    "Wearing_Necklace",
    "Wearing_Necktie",
    "Rosy_Cheeks",
    "Mouth_Slightly_Open",
    "Narrow_Eyes",
    "Big_Nose",
    "Pale_Skin",
    "Young",
}
OWN_TABLE = {
    "Eyeglasses": (0.0, 1.0),
    "Bald": (0.0, 0.25),
    "Bangs": (0.9, 0.75),
    "No_Beard": (0.4, 0.1),
    "Goatee": (0.3, 0.6),
}
SAMPLES = 5000


@pytest.fixture(scope="module", params=["biased", "balanced", "own"])
def sampled(request):
    table = resolve_table(OWN_TABLE if request.param == "own" else request.param)
    held = [sample_attributes(np.random.default_rng((5, i)), table) for i in range(SAMPLES)]
    return table, held


def test_frequencies_given_male_are_those_of_the_table_within_binomial_bounds(sampled):
    table, held = sampled
    stated = {row["attribute"]: row for row in face_table(table).iter_rows(named=True)}
    assert set(stated) == set(DRAWN)
    males = sum("Male" in has for has in held)
    assert abs(males - P_MALE * SAMPLES) < 4.5 * math.sqrt(SAMPLES / 4)
    for name, male in itertools.product(DRAWN, (False, True)):
        part = [name in has for has in held if ("Male" in has) == male]
        p = stated[name]["p_if_male" if male else "p_if_not_male"]
        assert abs(sum(part) - p * len(part)) <= 4.5 * math.sqrt(len(part) * p * (1 - p)), (name, male)


def test_attributes_exclude_each_other_as_stated(sampled):
    _, held = sampled
    for has in held:
        for names in GROUPS.values():
            assert len(has.intersection(names)) <= 1
        assert not ("Bald" in has and has.intersection(NEEDS_HAIR))


def test_given_male_attributes_of_different_groups_are_independent(sampled):
    _, held = sampled
    group = {name: key for key, names in GROUPS.items() for name in names} | {"Bangs": "texture"}
    worst = 0.0
    for male in (False, True):
        part = np.array([[name in has for name in DRAWN] for has in held if ("Male" in has) == male], float)
        with np.errstate(invalid="ignore", divide="ignore"):
            r = np.nan_to_num(np.corrcoef(part.T))
        for (i, one), (j, other) in itertools.combinations(enumerate(DRAWN), 2):
            linked = {group.get(one), group.get(other)}
            if group.get(one, one) != group.get(other, other) and linked != {"hair", "texture"}:
                worst = max(worst, abs(r[i, j]) * math.sqrt(len(part)))
    assert worst < 4.7  # about 800 pairs; 4.7 standard errors by chance once in 500 such tests


def test_attributes_are_celebas_and_male_is_the_only_one_not_drawn():
    assert set(DRAWN) >= ASKED_FOR
    assert set(ATTRIBUTES) == {*DRAWN, "Male"}
    assert len(DRAWN) >= 24
    assert all(low == high for low, high in BALANCED.values())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("biassed", r"Closest: biased"),
        (3, "table is a int"),
        ({"Glasses": (0.1, 0.2)}, r"no drawn attribute 'Glasses'. Closest: Eyeglasses"),
        ({"Male": (0.1, 0.2)}, r"the table is P\(attribute \| Male\)"),
        ({"Bald": 0.3}, r"table\['Bald'\] is 0.3; give \(p_if_not_male, p_if_male\)"),
        ({"Bald": (0.1, 0.2, 0.3)}, "two numbers"),
        ({"Smiling": (0.1, 1.2)}, r"must lie in \[0, 1\]"),
        ({"Smiling": (float("nan"), 0.2)}, r"must lie in \[0, 1\]"),
        ({"Blond_Hair": (0.2, 0.8)}, r"if Male: .*= 1\.47 is more than 1, but they exclude each other"),
        ({"Bald": (0.25, 0.1), "Bangs": (0.8, 0.1)}, r"Bangs = 0\.8 .* P\(Bald\) is 0\.25"),
    ],
)
def test_table_that_cannot_hold_is_refused(table, message):
    with pytest.raises(ConfigError, match=message):
        demo_faces(3, table=table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "n=0 is too small"), ((2.5,), "whole number"), ((2, -1), "seed=-1"), ((10**6,), "999999")],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        demo_faces(*arguments)
    with pytest.raises(ConfigError, match="size=32 is too small; give at least 64"):
        demo_faces(2, size=32)


def test_face_depends_on_seed_and_number_alone():
    np.random.seed(3)  # the global state is what must stay untouched
    before = np.random.get_state()[1].copy()
    few, many, other = demo_faces(5, seed=4), demo_faces(12, seed=4), demo_faces(5, seed=5)
    assert np.array_equal(np.random.get_state()[1], before)
    assert few.attributes.equals(many[:5].attributes)
    assert few.captions == many.captions[:5]
    assert few.partition.equals(many.partition[:5])
    assert all(np.array_equal(few[i], many[i]) for i in (4, 0, 4))
    assert not few.attributes.equals(other.attributes)
    assert not np.array_equal(few[0], other[0])
    assert np.array_equal(pickle.loads(pickle.dumps(few))[3], many[3])


def test_demo_faces_returns_what_celeba_returns():
    drawn = ns.demo_faces(40)
    assert isinstance(drawn, LabeledImages)
    assert drawn.attributes.columns == ["input_id", "key", *ATTRIBUTES]
    assert list(drawn.keys[:2]) == ["000001.jpg", "000002.jpg"]
    assert set(drawn.partition) <= {"train", "valid", "test"}
    assert len(drawn.captions) == 40
    assert drawn[39].size == (64, 64)
    assert drawn[[7, 3]].captions == [drawn.captions[7], drawn.captions[3]]


def test_male_is_not_drawn_and_everything_else_is():
    has = {"Smiling", "No_Beard", "Brown_Hair", "Young"}
    plain = np.asarray(draw_face(has, np.random.default_rng(1)), int)
    assert np.array_equal(plain, draw_face({*has, "Male"}, np.random.default_rng(1)))
    for name in DRAWN:
        group = next((names for names in GROUPS.values() if name in names), ())
        toggled = has ^ {name} if name in has else has - set(group) | {name}
        change = np.abs(plain - np.asarray(draw_face(toggled, np.random.default_rng(1)), int)).mean()
        assert change > 0.25, name


@pytest.mark.parametrize("size", [64, 100, 224])
def test_faces_have_the_asked_size_and_look_alike_at_all_of_them(size):
    faces = demo_faces(6, seed=1, size=size)
    small = demo_faces(6, seed=1)
    for number in range(6):
        assert faces[number].size == (size, size)
        shrunk = np.asarray(faces[number].resize((64, 64), 4), int)
        assert np.abs(shrunk - np.asarray(small[number], int)).mean() < 8


def test_drawing_takes_a_few_milliseconds():
    faces = demo_faces(120, seed=9)
    faces[0]
    started = time.process_time()
    for number in range(120):
        faces[number]
    assert (time.process_time() - started) / 120 < 0.008  # 2 ms on an idle core; the bound is 4


def said_in(text: str) -> list[str]:
    """The phrases of a caption, by the grammar."""
    head, _, tail = text.partition(" with ")
    noun = next(noun for noun in sorted(NOUNS, key=len, reverse=True) if head.endswith(noun))
    words = re.sub(r"^an? ", "", head).removesuffix(noun).split()
    assert set(words) <= ADJECTIVES, text
    return words + ([phrase for part in tail.split(", ") for phrase in part.split(" and ")] if tail else [])


def test_captions_say_only_what_is_true():
    balanced = resolve_table("balanced")
    seen = set()
    for i in range(600):
        has = sample_attributes(np.random.default_rng((1, i)), balanced)
        true = {phrase for name in DRAWN if name in has for phrase in SYNONYMS[name]}
        true |= {phrase for name, phrases in ANTONYMS.items() if name not in has for phrase in phrases}
        true |= {p for g, phrases in REMAINDER_PHRASES.items() if not has & set(GROUPS[g]) for p in phrases}
        phrases = said_in(caption(has, np.random.default_rng((2, i))))
        assert len(phrases) >= 2
        assert set(phrases) <= true
        seen.update(phrases)
    assert {phrase for phrases in SYNONYMS.values() for phrase in phrases} <= seen


def test_words_are_public_unambiguous_and_silent_about_male():
    assert set(SYNONYMS) == set(PROMPTS) == set(DRAWN)
    every = [p for words in (SYNONYMS, ANTONYMS, REMAINDER_PHRASES) for phrases in words.values() for p in phrases]
    assert len(set(every)) == len(every)
    spoken = set(" ".join([*every, *NOUNS]).split())
    assert not spoken & {"man", "woman", "male", "female", "boy", "girl", "he", "she", "his", "her", "lady"}
    for name, (positive, negative) in PROMPTS.items():
        assert positive != negative
        assert any(phrase in positive for phrase in SYNONYMS[name])


def test_written_layout_is_read_back_as_it_was_drawn(tmp_path):
    target = tmp_path / "made" / "faces"
    written, drawn = demo_faces(25, seed=2, path=target), demo_faces(25, seed=2)
    again = celeba(target)
    for faces in (written, again):
        assert faces.attributes.equals(drawn.attributes)
        assert faces.partition.equals(drawn.partition)
        assert faces.captions == drawn.captions
    assert np.abs(np.asarray(again[11], int) - np.asarray(drawn[11], int)).mean() < 5
    lines = (target / "list_attr_celeba.txt").read_text().splitlines()
    assert lines[0] == "25"
    assert lines[1].split() == list(ATTRIBUTES)
    assert set(" ".join(lines[2:]).split()) - set(drawn.keys) == {"1", "-1"}
    assert sorted(p.name for p in (target / "img_align_celeba").iterdir()) == list(drawn.keys)
    assert [p.name for p in target.parent.iterdir()] == ["faces"]


def test_layout_is_read_again_for_the_same_faces_and_kept_from_others(tmp_path):
    target = tmp_path / "faces"
    demo_faces(4, path=target)
    stamp = (target / "img_align_celeba" / "000001.jpg").stat().st_mtime_ns
    assert demo_faces(4, path=str(target)).attributes.height == 4
    assert (target / "img_align_celeba" / "000001.jpg").stat().st_mtime_ns == stamp
    for other in ({"seed": 1}, {"table": "balanced"}, {"size": 65}):
        with pytest.raises(PathExistsError, match="does not hold these 4 faces"):
            demo_faces(4, **{"seed": 0, "path": target, **other})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(PathExistsError, match="exists"):
        demo_faces(4, path=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep"


def test_interrupted_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    drawn = faces_module.FaceReader.read

    def interrupted(self, number):
        if number == 3:
            raise KeyboardInterrupt
        return drawn(self, number)

    monkeypatch.setattr(faces_module.FaceReader, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo_faces(6, path=tmp_path / "faces")
    assert list(tmp_path.iterdir()) == []
