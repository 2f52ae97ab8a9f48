"""`celeba()`: every form in which CelebA is handed around, and what does not fit."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from nb_sae.data.celeba import celeba
from nb_sae.data.labeled import LabeledImages
from nb_sae.errors import InputError, InputNotFoundError

NAMES = ["000001.jpg", "000002.jpg", "000003.jpg"]
LABELS = {"Male": [True, False, True], "Smiling": [False, False, True]}


def save_images(folder: Path, names=NAMES) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (6, 6), (40 * number, 0, 0)).save(folder / name, quality=95)


def text_rows(no="-1") -> list[str]:
    # CelebA pads with two blanks before a 1 and ends the header with one.
    rows = [f"{n} {'  '.join('1' if LABELS[c][i] else no for c in LABELS)}" for i, n in enumerate(NAMES)]
    return [str(len(NAMES)), " ".join(LABELS) + " ", *rows]


@pytest.fixture
def text_form(tmp_path: Path) -> Path:
    save_images(tmp_path / "img_align_celeba")
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(text_rows()) + "\n")
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(f"{n} {i}" for i, n in enumerate(NAMES)) + "\n")
    return tmp_path


@pytest.fixture(params=["-1", "0"])
def kaggle_form(tmp_path: Path, request) -> Path:
    save_images(tmp_path / "img_align_celeba" / "img_align_celeba")
    rows = [",".join([n, *("1" if LABELS[c][i] else request.param for c in LABELS)]) for i, n in enumerate(NAMES)]
    (tmp_path / "list_attr_celeba.csv").write_text("\n".join(["image_id," + ",".join(LABELS), *rows[::-1]]))
    (tmp_path / "list_eval_partition.csv").write_text(
        "\n".join(["image_id,partition", *(f"{n},{i}" for i, n in enumerate(NAMES))])
    )
    return tmp_path


def check(faces: LabeledImages) -> None:
    frame = faces.attributes
    assert frame.columns == ["input_id", "key", "Male", "Smiling"]
    assert frame.schema["input_id"] == pl.UInt32
    assert {name: frame[name].to_list() for name in LABELS} == LABELS
    assert frame["key"].to_list() == list(faces.keys)


def test_text_form_is_read_with_labels_partition_and_images(text_form):
    faces = celeba(text_form)
    check(faces)
    assert list(faces.keys) == NAMES
    assert faces.partition.to_list() == ["train", "valid", "test"]
    assert abs(faces[2].getpixel((3, 3))[0] - 80) < 8
    assert faces.captions is None


def test_kaggle_form_is_read_whatever_the_order_of_its_rows(kaggle_form):
    faces = celeba(str(kaggle_form))
    check(faces)
    assert list(celeba(kaggle_form, split="valid").keys) == ["000002.jpg"]


@pytest.mark.parametrize("word", ["", "NA", "NaN"])
def test_unknown_labels_of_a_csv_stay_null_and_are_counted(kaggle_form, word):
    rows = (kaggle_form / "list_attr_celeba.csv").read_text().split("\n")
    # As pandas writes a column of whole numbers with a gap.
    rows[1] = f"000003.jpg,1.0,{word}"
    (kaggle_form / "list_attr_celeba.csv").write_text("\n".join(rows))
    faces = celeba(kaggle_form)
    assert faces.attributes["Male"].to_list() == LABELS["Male"]
    assert faces.attributes["Smiling"].to_list() == [False, False, None]
    assert faces.missing == {"Smiling": 1}
    assert "2 attributes, 1 values unknown" in repr(faces)


def test_unknown_labels_of_the_text_form_stay_null(text_form):
    rows = text_rows()
    rows[4] = "000003.jpg nan 1"
    (text_form / "list_attr_celeba.txt").write_text("\n".join(rows))
    assert celeba(text_form).attributes["Male"].to_list() == [True, False, None]


def test_folders_of_the_official_archive_are_found_and_the_people_on_it(tmp_path, text_form):
    root = tmp_path / "official"
    (root / "Anno").mkdir(parents=True)
    (root / "Eval").mkdir()
    (root / "Img").mkdir()
    (text_form / "img_align_celeba").rename(root / "Img" / "img_align_celeba")
    (text_form / "list_attr_celeba.txt").rename(root / "Anno" / "list_attr_celeba.txt")
    (text_form / "list_eval_partition.txt").rename(root / "Eval" / "list_eval_partition.txt")
    (root / "Anno" / "identity_CelebA.txt").write_text("000003.jpg 7\n000001.jpg 2880\n000002.jpg 7\n")
    faces = celeba(root)
    check(faces)
    assert faces.identity is not None
    assert faces.identity.to_list() == [2880, 7, 7]
    assert faces[[2, 0]].identity.to_list() == [7, 2880]
    (root / "Anno" / "identity_CelebA.txt").write_text("000003.jpg someone\n")
    with pytest.raises(InputError, match=r"'000003\.jpg someone' is not a file name and the number of a person"):
        celeba(root)


def test_no_image_is_opened_when_reading_the_labels(text_form):
    for name in NAMES:
        (text_form / "img_align_celeba" / name).write_bytes(b"")
    faces = celeba(text_form)
    check(faces)
    with pytest.raises(InputError, match=r"000001\.jpg.*cannot be read"):
        faces[0]


def test_part_keeps_labels_and_keys_and_numbers_anew(text_form):
    faces = celeba(text_form)[[2, 0]]
    assert isinstance(faces, LabeledImages)
    assert faces.attributes.rows() == [(0, "000003.jpg", True, True), (1, "000001.jpg", True, False)]
    assert faces.partition.to_list() == ["test", "train"]
    again = pickle.loads(pickle.dumps(faces))
    assert again.attributes.equals(faces.attributes)
    assert len(faces[:0]) == 0


def test_rows_that_do_not_match_the_images_are_refused_with_examples_of_both(text_form):
    (text_form / "img_align_celeba" / "000002.jpg").rename(text_form / "img_align_celeba" / "other.jpg")
    with pytest.raises(
        InputError,
        match=r"3 rows, 3 images; 1 rows without an image \(such as '000002\.jpg'\); "
        r"1 images without a row \(such as 'other\.jpg'\)",
    ):
        celeba(text_form)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, "4", r"announces 4 rows and has 3"),
        (0, "Male Smiling", "does not start with the number"),
        (1, "Male Male", "two columns of the same name"),
        (3, "000002.jpg 1", r"'000002\.jpg' has 1 values for 2"),
        (3, "000002.jpg 1 2", r"'000002\.jpg' has Smiling = '2'"),
        (3, "000002.jpg 1 0", r"mixes −1/1 and 0/1"),
        (3, "000002.jpg 1 yes", r"has Smiling = 'yes'"),
        (3, "000001.jpg 1 1", r"'000001\.jpg' more than once"),
    ],
)
def test_damaged_attribute_file_is_refused(text_form, line, text, message):
    rows = text_rows()
    rows[line] = text
    (text_form / "list_attr_celeba.txt").write_text("\n".join(rows) + "\n")
    with pytest.raises(InputError, match=message):
        celeba(text_form)


def test_missing_parts_say_what_is_there(tmp_path, text_form):
    with pytest.raises(InputNotFoundError, match="no folder"):
        celeba(tmp_path / "nowhere")
    (text_form / "list_attr_celeba.txt").unlink()
    with pytest.raises(InputNotFoundError, match=r"no list_attr_celeba\.txt or \.csv; it holds 'img_align_celeba'"):
        celeba(text_form)


def test_split_without_partition_or_of_another_name_is_refused(text_form):
    with pytest.raises(InputError, match=r"Closest: valid"):
        celeba(text_form, split="valide")
    (text_form / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    with pytest.raises(InputError, match=r"does not name 2 of the images \(such as '000002\.jpg'"):
        celeba(text_form)
    (text_form / "list_eval_partition.txt").unlink()
    assert celeba(text_form).partition is None
    with pytest.raises(InputError, match="needs a partition"):
        celeba(text_form, split="train")


def rows_in_memory() -> list[dict]:
    picture = Image.new("RGB", (6, 6), (0, 9, 0))
    return [{"image": picture, **{name: LABELS[name][i] for name in LABELS}} for i in range(3)]


def test_rows_in_memory_carry_labels_as_booleans_or_numbers():
    check(celeba(rows_in_memory()))
    signed = [{"image": r["image"], "attributes": {n: 1 if r[n] else -1 for n in LABELS}} for r in rows_in_memory()]
    check(celeba(signed))
    keyed = celeba([{**row, "key": "same", "split": "test"} for row in rows_in_memory()])
    assert list(keyed.keys) == ["same", "same (2)", "same (3)"]
    assert keyed.partition.to_list() == ["test"] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Male": 3}, r"column 'Male' is no attribute: row 1 holds 3"),
        ({"Extra": True}, "row 1 differs from row 0 in Extra"),
        ({"Male": "yes"}, r"row 1 holds 'yes'"),
    ],
)
def test_rows_that_cannot_be_labels_are_refused(change, message):
    rows = rows_in_memory()
    rows[1] = {**rows[1], **change}
    with pytest.raises(InputError, match=message):
        celeba(rows)


def test_rows_without_image_or_attribute_are_refused():
    with pytest.raises(InputError, match="no 'image'"):
        celeba([{"Male": True}])
    with pytest.raises(InputError, match="no attribute"):
        celeba([{"image": Image.new("RGB", (2, 2))}])
    with pytest.raises(InputError, match="empty list"):
        celeba([])
    with pytest.raises(InputError, match="got a int"):
        celeba(7)


def test_hugging_face_rows_are_read_like_the_files():
    datasets = pytest.importorskip("datasets")
    columns = {"image": [row["image"] for row in rows_in_memory()], "celeb_id": [10, 20, 30], **LABELS}
    data = datasets.Dataset.from_dict(columns)
    faces = celeba(data)
    check(faces)
    assert np.asarray(faces[1])[0, 0].tolist() == [0, 9, 0]


class UntouchedPicture:
    """Fails the test that decodes it."""

    def __call__(self, *_args, **_kwargs):
        raise AssertionError("a picture was decoded")


def test_hugging_face_pictures_are_not_read_with_the_labels(monkeypatch):
    datasets = pytest.importorskip("datasets")
    columns = {"image": [row["image"] for row in rows_in_memory()], "Male": [1, None, -1], "note": ["a", "b", "c"]}
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    monkeypatch.setattr(datasets.Image, "decode_example", UntouchedPicture())
    faces = celeba(data.select([2, 1, 0]))
    assert faces.attributes["Male"].to_list() == [False, None, True]
    assert faces.missing == {"Male": 1}


def test_streamed_or_unsplit_hugging_face_rows_are_refused_with_what_to_do():
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": [1], "Male": [1]})
    with pytest.raises(InputError, match=r"streamed.*streaming=False"):
        celeba(data.to_iterable_dataset())
    with pytest.raises(InputError, match=r"several splits; choose one, such as data\['train'\]"):
        celeba(datasets.DatasetDict({"train": data}))


def test_unknown_labels_of_rows_stay_null():
    rows = rows_in_memory()
    rows[0]["Male"], rows[1]["Male"] = None, float("nan")
    assert celeba(rows).attributes["Male"].to_list() == [None, None, True]
    assert celeba([{**row, "celeb_id": 4} for row in rows]).identity.to_list() == [4, 4, 4]


def test_real_size_attribute_file_is_read_in_seconds(tmp_path):
    import time

    from nb_sae.data.celeba_files import read_attributes

    count, columns = 20_000, [f"a{i}" for i in range(40)]
    row = " ".join(["-1", " 1"] * 20)
    lines = [str(count), " ".join(columns), *(f"{i:06d}.jpg {row}" for i in range(count))]
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(lines))
    started = time.process_time()
    names, frame = read_attributes(tmp_path / "list_attr_celeba.txt")
    assert (len(names), frame.shape) == (count, (count, 40))
    assert frame["a1"].all()
    assert time.process_time() - started < 2
