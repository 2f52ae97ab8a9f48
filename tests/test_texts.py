"""Texts from every source keep their words, numbers and keys, and say what is wrong with the rest."""

from __future__ import annotations

import json
import pickle
import textwrap

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nb_sae.data import docstrings
from nb_sae.data.texts import Texts, demo_texts, texts
from nb_sae.errors import ConfigError, InputError, InputNotFoundError
from nb_sae.types import Inputs

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>",
    "a\u202eb\u202c",
    "zero\x00byte",
    "\ufeffmark",
    "😀 é 中",
]


def test_texts_of_strings_are_inputs_with_numbers_as_keys():
    found = texts(["one", "two", "three"])
    assert isinstance(found, Inputs)
    assert (found.modality, len(found), list(found), found.keys) == (
        "text",
        3,
        ["one", "two", "three"],
        ("0", "1", "2"),
    )
    assert (found.context_tokens, found[-1]) == (128, "three")
    assert texts(["one"], context_tokens=64, name="mine").context_tokens == 64
    assert texts(word for word in ("a", "b"))[1] == "b"


def test_slices_and_lists_renumber_texts_and_keep_keys():
    found = texts(["zero", " ", "two", "three"], keys=["a", "b", "c", "d"], context_tokens=32, name="n")
    part = found[1:]
    assert isinstance(part, Texts)
    assert (part.keys, part[1], part.context_tokens, part.name) == (("b", "c", "d"), "two", 32, "n")
    assert set(part.problems) == {0}
    assert found[[3, 0]].keys == ("d", "a")
    assert list(found[np.array([2, 3])]) == ["two", "three"]
    assert found[np.array([True, False, False, True])].keys == ("a", "d")
    assert found[np.int64(2)] == "two"
    assert len(found[4:]) == 0
    with pytest.raises(IndexError, match=r"no text 4.*numbered from 0"):
        found[4]


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=8))
def test_any_text_that_a_file_can_hold_comes_back_unchanged(values):
    encodable = [value for value in values if not any("\ud800" <= char <= "\udfff" for char in value)]
    if encodable:
        assert list(texts(encodable)) == encodable
        assert list(pickle.loads(pickle.dumps(texts(encodable)))) == encodable


def test_texts_read_again_from_texts_are_the_same():
    first = texts(["a", " ", "b\ud800"], keys=["x", "x", "z"], context_tokens=7, name="n")
    again = texts(first)
    with pytest.raises(InputError, match="Texts has no named fields"):
        texts(first, keys="id")
    assert (again.keys, again.context_tokens, again.name, again.problems) == (first.keys, 7, "n", first.problems)
    assert again.replaced_characters == 1


# --- files and folders


def test_a_folder_gives_one_text_per_file_with_relative_keys(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.md").write_text("# Title\n\nbody", encoding="utf-8")
    (tmp_path / "deep" / "a.TXT").write_text("deep\r\ntext", encoding="utf-8", newline="")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    found = texts(tmp_path)
    assert (found.keys, list(found)) == (("b.md", "deep/a.TXT"), ["# Title\n\nbody", "deep\ntext"])
    assert str(tmp_path.parent) not in repr((found.keys, found.name))


def test_unusable_files_of_a_folder_keep_their_number_and_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\x00\x01binary")
    (tmp_path / "b.txt").write_text("good", encoding="utf-8")
    (tmp_path / "c.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "d.txt").write_bytes("caf\xe9 is latin-1".encode("latin-1"))
    found = texts(tmp_path)
    assert set(found.problems) == {0, 2}
    assert (found[1], found[3], found.replaced_characters) == ("good", "caf\ufffd is latin-1", 1)
    with pytest.raises(InputError, match=r"Text 0 .*'a.txt'.*zero bytes.*skip"):
        found[0]
    with pytest.raises(InputError, match="is blank"):
        found[2]


def test_a_text_file_gives_one_text_per_paragraph_with_its_line(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("\n\nfirst\nstill first\n\n \t\nsecond", encoding="utf-8")
    assert (list(texts(path)), texts(str(path)).keys) == (
        ["first\nstill first", "second"],
        ("notes.txt:3", "notes.txt:7"),
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_text_file_with_a_byte_order_mark_is_read_without_it(tmp_path, encoding):
    path = tmp_path / "notes.txt"
    path.write_text("mark é 中", encoding=encoding)
    assert list(texts(path)) == ["mark é 中"]


def test_json_lines_give_strings_or_a_field_and_own_keys(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": t, "id": i, "body": "x"}) for i, t in enumerate(HOSTILE)) + "\n\n")
    assert list(texts(path)) == HOSTILE
    assert texts(path).keys[1] == "rows.jsonl:2"
    assert texts(path, keys="id", field="body").keys == tuple(str(i) for i in range(len(HOSTILE)))
    path.write_text('"alone"\n"lone \\ud800 surrogate"\n')
    assert list(texts(path)) == ["alone", "lone \ufffd surrogate"]
    assert texts(path).replaced_characters == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"txt": "a"}', "Line 2 of 'rows.jsonl' has no field 'text'; its fields: 'txt'. Closest: txt"),
        ('{"text": null}', "Line 2 of 'rows.jsonl' holds missing"),
        ('{"text": "a"', "Line 2 of 'rows.jsonl' is not JSON"),
        ("17", "Line 2 of 'rows.jsonl' holds 17, of type int"),
        ("[" * 100_000, "Line 2 of 'rows.jsonl' is not JSON"),
    ],
)
def test_a_wrong_line_of_json_lines_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(InputError) as caught:
        texts(path)
    assert message in str(caught.value)


def test_missing_and_empty_sources_say_what_to_give(tmp_path):
    with pytest.raises(InputNotFoundError, match=r"no file or folder 'A sentence.'.*put the string in a list"):
        texts("A sentence.")
    with pytest.raises(FileNotFoundError):
        texts(tmp_path / "missing.txt")
    with pytest.raises(InputError, match=r"holds no .txt or .md file"):
        texts(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(InputError, match=r"'empty.txt' holds no text"):
        texts(tmp_path / "empty.txt")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(InputError, match=r"ends in '.pdf'.*\.jsonl"):
        texts(tmp_path / "a.pdf")
    with pytest.raises(InputError, match="holds no text"):
        texts([])
    with pytest.raises(InputError, match=r"no usable text.*blank"):
        texts(["", " "])


# --- tables


def test_columns_and_frames_of_polars_are_read():
    frame = pl.DataFrame({"n": [1, 2], "review": ["good", "bad"], "id": ["x", "y"]})
    assert list(texts(frame["review"])) == ["good", "bad"]
    assert texts(frame, field="review", keys="id").keys == ("x", "y")
    assert list(texts(frame.drop("id"))) == ["good", "bad"]
    assert list(texts(frame.with_columns(text=pl.lit("t")))) == ["t", "t"]
    with pytest.raises(InputError, match=r"Which column.*'review', 'id'"):
        texts(frame)
    with pytest.raises(InputError, match=r"no column 'reviews'. Closest: review"):
        texts(frame, field="reviews")
    with pytest.raises(InputError, match="'review', row 1 is missing"):
        texts(pl.DataFrame({"review": ["good", None]}))
    with pytest.raises(InputError, match="'n', row 0 is 1, of type int"):
        texts(frame, field="n")


def test_a_hugging_face_dataset_and_its_column_are_read():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"label": [0, 1], "text": ["good", "bad"], "name": ["a", "b"]})
    assert list(texts(data)) == ["good", "bad"]
    assert texts(data, keys="name").keys == ("a", "b")
    assert list(texts(data["name"])) == ["a", "b"]
    with pytest.raises(InputError, match=r"splits \('train'\).*dataset\['train'\]"):
        texts(datasets.DatasetDict({"train": data}))


def test_a_pandas_frame_is_read_by_column_and_not_by_its_names():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"review": ["good", "bad"], "n": [1, 2]})
    assert list(texts(frame)) == list(texts(frame["review"])) == ["good", "bad"]


# --- what strings and keys may be


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", ["nested"]])
def test_something_that_is_no_string_is_named_by_position(wrong):
    with pytest.raises(InputError, match=rf"Text 1 is .*{'None' if wrong is None else type(wrong).__name__}"):
        texts(["fine", wrong])


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", {"a": "b"}, object()])
def test_a_source_of_another_kind_is_refused_with_what_to_give(wrong):
    with pytest.raises(InputError, match="Give a list of strings"):
        texts(wrong)


def test_repeated_keys_become_distinct_and_stay_readable():
    found = texts(list("abcdef"), keys=["k", "k", "k (2)", "k", "", ""])
    assert found.keys == ("k", "k (3)", "k (2)", "k (4)", "", " (2)")
    assert len(set(texts(["w"] * 500, keys=["k"] * 500).keys)) == 500


def test_keys_must_match_the_texts():
    with pytest.raises(InputError, match="1 keys for 2 texts"):
        texts(["a", "b"], keys=["x"])
    with pytest.raises(InputError, match=r"Key 1 is None"):
        texts(["a", "b"], keys=["x", None])
    with pytest.raises(InputError, match=r"list has no named fields.*keys='id'"):
        texts(["a", "b"], keys="id")
    assert texts(["a", "b"], keys=[7, np.int64(8)]).keys == ("7", "8")


def test_lone_surrogates_in_texts_keys_and_name_are_replaced_and_counted():
    found = texts(["a\ud800b\udfff", "😀"], keys=["k\udc00", "k\udc01"], name=None)
    assert (list(found), found.keys) == (["a\ufffdb\ufffd", "😀"], ("k\ufffd", "k\ufffd (2)"))
    assert found.replaced_characters == 4
    "".join([*found, *found.keys, repr(found)]).encode("utf-8")


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "128"])
def test_context_tokens_must_be_a_positive_whole_number(wrong):
    with pytest.raises(ConfigError, match=r"context_tokens=.*at least 1"):
        texts(["a"], context_tokens=wrong)


# --- docstrings


def test_demo_texts_are_seeded_prose_of_the_standard_library():
    found = demo_texts(200, seed=3, context_tokens=64)
    assert (len(found), found.context_tokens, found.problems) == (200, 64, {})
    assert list(found[:50]) == list(demo_texts(50, seed=3))
    assert found.keys != demo_texts(200, seed=4).keys
    everything = demo_texts(len(docstrings.standard_library()))
    wanted = everything[everything.keys.index("json.dumps")]
    assert wanted.startswith("Serialize ``obj`` to a JSON formatted ``str``.")
    assert ">>>" not in "".join(everything)


def test_demo_texts_held_out_and_training_parts_divide_the_whole():
    whole = len(docstrings.standard_library())
    held_out = [d for d in docstrings.standard_library() if docstrings.is_held_out(d.text)]
    assert 0.03 < len(held_out) / whole < 0.08
    assert set(demo_texts(len(held_out), part="held-out")) == {d.text for d in held_out}
    train = demo_texts(whole - len(held_out), part="train")
    assert not any(docstrings.is_held_out(text) for text in train)


def test_too_many_demo_texts_are_refused_with_how_many_there_are():
    there_are = len(docstrings.standard_library())
    with pytest.raises(ConfigError, match=rf"{there_are:,} docstrings.*Give n from 1 to {there_are}"):
        demo_texts(there_are + 1)
    for wrong in (0, -1, 2.0, True):
        with pytest.raises(ConfigError, match="Give n from 1"):
            demo_texts(wrong)
    with pytest.raises(ConfigError, match="'held-out'"):
        demo_texts(5, part="test")


def test_the_held_out_rule_ignores_spacing_and_case_and_never_changes():
    assert [n for n in range(100) if docstrings.is_held_out("document number " + "x" * n)] == [0, 17, 50, 62, 80, 88]
    text = "Document, number: " + "X" * 17
    assert docstrings.is_held_out(text)
    assert docstrings.is_held_out(text.replace(" ", "\n   "))


def test_cleaned_prose_drops_code_and_joins_wrapped_lines():
    source = textwrap.dedent('''
        def f():
            """Return the sum of :class:`~a.Number` objects, or of anything that can be
            added to a number, as a float.

            >>> f()
            3.0
            x = f() + g(1, 2) ** 2

            - the first item of a list
            =====  =====
            """
    ''')
    (document,) = docstrings.module_documents(source, "m")
    assert document.key == "m.f"
    assert document.text == (
        "Return the sum of a.Number objects, or of anything that can be added to a number, as a float.\n"
        "- the first item of a list"
    )


def test_source_that_does_not_parse_gives_no_documents():
    assert list(docstrings.module_documents("def (:", "m")) == []
    assert list(docstrings.module_documents("a\x00b", "m")) == []
