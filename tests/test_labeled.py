"""FairFace and UTKFace as they are distributed, and labels of one's own for images and texts."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from PIL import Image

import nb_sae as ns
from nb_sae.data.labeled import LabeledImages
from nb_sae.errors import InputError, InputNotFoundError

HEAD = "file,age,gender,race,service_test"


def save(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (60 * number, 0, 0)).save(folder / name, "JPEG", quality=95)


@pytest.fixture
def fair(tmp_path: Path) -> Path:
    save(tmp_path, "train/1.jpg", "train/2.jpg", "train/10.jpg", "val/1.jpg")
    (tmp_path / "fairface_label_train.csv").write_text(
        f"{HEAD}\ntrain/1.jpg,50-59,Male,East Asian,True\ntrain/2.jpg,more than 70,Female,White,False\n"
        "train/10.jpg,,Female,Black,False\n"
    )
    (tmp_path / "fairface_label_val.csv").write_text(f"{HEAD}\nval/1.jpg,3-9,Male,Latino_Hispanic,True\n")
    return tmp_path


# ── FairFace ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_fairface_is_read_with_ordered_ages_and_partition(fair):
    faces = ns.fairface(fair)
    assert isinstance(faces, LabeledImages)
    assert list(faces.keys) == ["train/1.jpg", "train/2.jpg", "train/10.jpg", "val/1.jpg"]
    frame = faces.attributes
    assert frame.columns == ["input_id", "key", "age", "gender", "race", "service_test"]
    assert frame["age"].to_list() == ["50-59", "more than 70", None, "3-9"]
    assert frame.sort("age", nulls_last=True)["age"].to_list() == ["3-9", "50-59", "more than 70", None]
    assert frame["race"].to_list() == ["East Asian", "White", "Black", "Latino_Hispanic"]
    assert frame["service_test"].to_list() == [True, False, False, True]
    assert faces.missing == {"age": 1}
    assert list(ns.fairface(fair, split="val").keys) == ["val/1.jpg"]
    assert abs(faces[1].getpixel((3, 3))[0] - 60) < 8
    assert faces.skipped.height == 0


def test_fairface_finds_the_folder_of_a_margin_and_asks_where_there_are_two(fair):
    margin = fair / "fairface-img-margin025-trainval"
    margin.mkdir()
    for part in ("train", "val"):
        (fair / part).rename(margin / part)
    assert len(ns.fairface(fair)) == 4
    save(fair / "fairface-img-margin125-trainval", "val/1.jpg")
    with pytest.raises(InputError, match=r"Choose one: fairface\(path, images='fairface-img-margin125-trainval'\)"):
        ns.fairface(fair)
    small = ns.fairface(fair, images="fairface-img-margin125-trainval")
    assert list(small.keys) == ["val/1.jpg"]
    assert small.skipped["key"].to_list() == ["train/1.jpg", "train/2.jpg", "train/10.jpg"]
    assert "3 skipped" in repr(small)


def test_fairface_lists_images_without_a_row(fair):
    save(fair, "val/77.jpg")
    faces = ns.fairface(fair)
    assert len(faces) == 4
    assert faces.skipped.rows() == [("val/77.jpg", "no list names it")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}\nval/1.jpg,7-9,Male,White,True\n", "age '7-9' is none of FairFace's bands 0-2, 3-9"),
        ("file,age\nval/1.jpg,3-9\n", "gender, race is missing"),
        (f"{HEAD}\nval/1.jpg,3-9,Male,White,True\nval/1.jpg,3-9,Male,White,True\n", "'val/1.jpg' more than once"),
    ],
)
def test_damaged_fairface_list_is_refused(fair, text, message):
    (fair / "fairface_label_val.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        ns.fairface(fair)


def test_fairface_says_what_is_missing(fair, tmp_path):
    with pytest.raises(InputNotFoundError, match="nothing is there"):
        ns.fairface(tmp_path / "nowhere")
    for name in ("1.jpg", "2.jpg", "10.jpg"):
        (fair / "train" / name).unlink()
    (fair / "val" / "1.jpg").unlink()
    with pytest.raises(InputNotFoundError, match=r"none of the 4 images.*'train/1\.jpg'"):
        ns.fairface(fair)
    with pytest.raises(InputError, match="got a int"):
        ns.fairface(3)


def test_fairface_rows_of_hugging_face_have_words_for_numbers(fair):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "age": datasets.ClassLabel(names=["0-2", "3-9"]),
            "gender": datasets.ClassLabel(names=["Male", "Female"]),
            "race": datasets.Value("string"),
            "service_test": datasets.Value("bool"),
        }
    )
    columns = {
        "image": [Image.new("RGB", (4, 4))] * 2,
        "age": [1, 0],
        "gender": [0, 1],
        "race": ["White", "Indian"],
        "service_test": [True, False],
    }
    data = datasets.Dataset.from_dict(columns, features=features, split="validation")
    faces = ns.fairface(data)
    assert faces.attributes.select("age", "gender", "race").rows() == [
        ("3-9", "Male", "White"),
        ("0-2", "Female", "Indian"),
    ]
    assert faces.partition is not None
    assert faces.partition.to_list() == ["valid", "valid"]


# ── UTKFace ───────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD = [
    "26_1_2_20170116184024662.jpg.chip.jpg",
    "116_0_0_20170120134646399.jpg",
    "1_0_4_20161219140623097.jpg.chip.jpg",
]
# All five are in what is distributed, but the last.
BAD = [
    "61_1_20170109142408075.jpg.chip.jpg",
    "53__0_20170116184028385.jpg.chip.jpg",
    "39_1_20170116174525125.jpg.chip.jpg",
    "61_3_20170109150557335.jpg.chip.jpg",
    "250_1_1_20170109142408075.jpg",
]


def test_utkface_reads_its_names_and_lists_those_that_lack_a_field(tmp_path):
    save(tmp_path, *GOOD, *BAD, "24_0_1_20170116220224657 .jpg", "55_0_0_20170116232725357jpg.chip.jpg")
    faces = ns.utkface(tmp_path)
    frame = faces.attributes
    assert frame.columns == ["input_id", "key", "age", "gender", "race"]
    assert dict(zip(frame["key"], frame.select("age", "gender", "race").rows(), strict=True)) == {
        GOOD[0]: (26, "female", "Asian"),
        GOOD[1]: (116, "male", "White"),
        GOOD[2]: (1, "male", "Others"),
        "24_0_1_20170116220224657 .jpg": (24, "male", "Black"),
        "55_0_0_20170116232725357jpg.chip.jpg": (55, "male", "White"),
    }
    assert frame["age"].dtype.is_integer()
    assert set(faces.skipped["key"]) == set(BAD)
    assert faces.skipped.filter(pl.col("key") == BAD[-1])["reason"].item() == "its name says 250 years"
    assert "5 images, 3 attributes, 5 skipped" in repr(faces)
    assert faces[0].size == (6, 6)
    part = faces[[1]]
    assert part.attributes.height == 1


def test_utkface_takes_a_picture_that_is_distributed_twice_once(tmp_path):
    save(tmp_path, f"UTKFace/{GOOD[0]}", f"crop_part1/{GOOD[0]}", f"UTKFace/{GOOD[1]}")
    faces = ns.utkface(tmp_path)
    assert len(faces) == 2
    assert faces.skipped.rows() == [(f"crop_part1/{GOOD[0]}", f"has the same name as UTKFace/{GOOD[0]}")]


def test_utkface_without_such_names_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds 0 images"):
        ns.utkface(tmp_path)
    save(tmp_path, "000001.jpg")
    with pytest.raises(InputError, match=r"1 images, such as '000001\.jpg', and no name is"):
        ns.utkface(tmp_path)
    with pytest.raises(InputNotFoundError):
        ns.utkface(tmp_path / "nowhere")


# ── labels of one's own ───────────────────────────────────────────────────────────────────────────────────────────


def test_labels_of_texts_are_joined_by_key_whatever_their_order():
    texts = ns.texts(["a good day", "a bad day", "no day"], keys=["x", "y", "z"])
    table = pl.DataFrame({"id": ["y", "x", "other"], "toxic": [True, False, True], "score": [0.5, float("nan"), 1.0]})
    frame = ns.attributes(texts, table, key="id")
    assert frame.columns == ["input_id", "key", "toxic", "score"]
    assert frame.schema["input_id"] == pl.UInt32
    assert frame.rows() == [(0, "x", False, None), (1, "y", True, 0.5), (2, "z", None, None)]


def test_labels_without_keys_are_taken_row_by_row_where_nothing_is_left_out():
    texts = ns.texts(["one", "two"])
    assert ns.attributes(texts, {"group": ["a", "b"]}).rows() == [(0, "0", "a"), (1, "1", "b")]
    with pytest.raises(InputError, match="3 rows for 2 inputs, and no column 'key'"):
        ns.attributes(texts, {"group": ["a", "b", "c"]})


def test_labels_of_a_store_follow_its_inputs():
    import torch

    store = ns.ActivationStore.from_tensor(torch.randn(3, 4), keys=["a", "b", "c"])
    frame = ns.attributes(store, {"key": ["c", "a", "b"], "kind": [3, 1, 2]})
    assert frame.rows() == [(0, "a", 1), (1, "b", 2), (2, "c", 3)]


def test_rows_are_not_counted_off_where_a_collection_has_left_something_out(tmp_path):
    save(tmp_path, GOOD[0], GOOD[1], BAD[0])
    faces = ns.utkface(tmp_path)
    with pytest.raises(InputError, match="no column 'key'"):
        ns.attributes(faces, {"group": ["a", "b"]})
    assert ns.attributes(faces, {"key": [GOOD[0]], "group": ["a"]})["group"].null_count() == 1


@pytest.mark.parametrize(
    ("table", "key", "message"),
    [
        ({"name": ["x"], "v": [1]}, "nane", "no column 'nane'. Closest: name"),
        ({"key": ["x", "x"], "v": [1, 2]}, None, "'x' more than once"),
        ({"key": ["q"], "v": [1]}, None, "inputs are called such as 'x', the column holds such as 'q'"),
        (7, None, "a int cannot be read as a table"),
    ],
)
def test_labels_that_cannot_be_joined_are_refused(table, key, message):
    texts = ns.texts(["one", "two"], keys=["x", "y"])
    with pytest.raises(InputError, match=message):
        ns.attributes(texts, table, key=key)


def test_labels_for_something_else_are_refused():
    with pytest.raises(InputError, match="got a dict as inputs"):
        ns.attributes({"a": 1}, {"key": ["a"]})
