"""Vocabularies: where the words come from, what is dropped, what is refused."""

from __future__ import annotations

import builtins

import pytest

import nb_sae as ns
from nb_sae.data.captions import ANTONYMS, SYNONYMS
from nb_sae.data.vocabulary import CELEBA, vocabulary
from nb_sae.errors import ConfigError, InputError, InputNotFoundError, MissingDependencyError


def test_demo_vocabulary_holds_every_phrase_and_what_it_means():
    words = vocabulary("demo")
    for name, phrases in SYNONYMS.items():
        assert {words.meanings[phrase] for phrase in phrases} == {name}
    for name, phrases in ANTONYMS.items():
        assert {words.meanings[phrase] for phrase in phrases} == {f"not {name}"}
    assert set(words.words) - set(words.meanings) == {"dyed hair", "colourful hair", "a full beard"}
    assert dict(zip(words.words, words.phrases, strict=True))["bald"] == "a bald face"
    assert dict(zip(words.words, words.phrases, strict=True))["glasses"] == "a face with glasses"


def test_celeba_vocabulary_has_the_forty_attributes():
    words = vocabulary("celeba")
    assert len(words) == len(CELEBA) == 40
    assert set(ns.demo_faces(2).attributes.columns[2:]) <= set(words.words)


def test_english_words_are_the_most_frequent_ones_and_only_letters():
    words = vocabulary("english-2k")
    assert len(words) == 2000
    assert all(word.isalpha() and len(word) > 1 for word in words.words)
    assert {"the", "house", "water"} <= set(words.words)
    assert set(vocabulary("english-1k").words) < set(words.words)


def test_english_without_its_package_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **others):
        if name == "wordfreq":
            raise ImportError(name)
        return real(name, *rest, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'nb-sae\[words\]'"):
        vocabulary("english-20k")


def test_duplicates_and_blank_lines_are_dropped_and_counted(tmp_path):
    file = tmp_path / "words.txt"
    file.write_bytes("\ufeffcat\n\n  dog \r\nCat\n\t\na  red   car\n".encode())
    words = vocabulary(file)
    assert words.words == ("cat", "dog", "a red car")
    assert (words.duplicates, words.blank) == (1, 2)
    assert "1 duplicates and 2 blank" in repr(words)


def test_templates_are_filled_word_after_word():
    words = vocabulary(["cat", "dog"], templates=["a {}", "the {}, {}"])
    assert words.texts() == ["a cat", "the cat, cat", "a dog", "the dog, dog"]
    assert vocabulary(words, templates="a {}").texts() == ["a cat", "a dog"]


def test_a_mapping_gives_each_word_its_phrase():
    words = vocabulary({"glasses": "a face with glasses"})
    assert (words.words, words.texts()) == (("glasses",), ["a face with glasses"])


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("demmo", InputNotFoundError, "Closest: demo"),
        (["cat", 3], InputError, "Entry 1 of the vocabulary is 3"),
        (["", "  "], InputError, "2 blank entries"),
        (3, InputError, "got a int"),
        ("english-900k", ConfigError, "outside 1k to"),
    ],
)
def test_what_is_no_vocabulary_is_refused(source, error, message):
    with pytest.raises(error, match=message):
        vocabulary(source)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "words.bin").write_bytes(b"\xff\xfe\x00caf\xe9")
    with pytest.raises(InputError, match="Save it as UTF-8"):
        vocabulary(tmp_path / "words.bin")


def test_a_template_without_a_place_for_the_word_is_refused():
    with pytest.raises(ConfigError, match=r"no \{\} for the word"):
        vocabulary(["cat"], templates=["a photo"])
