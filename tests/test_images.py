"""`images()`: what it reads, what it refuses and in which words."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from nb_sae.data.images import Images, images
from nb_sae.errors import InputError, InputNotFoundError
from nb_sae.types import Inputs

RED, BLUE = (200, 10, 20), (10, 20, 200)


def picture(colour=RED, size=(12, 8)) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b").mkdir()
    picture(RED).save(tmp_path / "b" / "2.png")
    picture(BLUE).save(tmp_path / "a.JPG", format="JPEG")
    picture(BLUE).save(tmp_path / "z.webp", lossless=True)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._a.jpg").write_bytes(b"what a Mac leaves behind")
    return tmp_path


def test_folder_is_read_with_subfolders_in_sorted_order_and_counts_the_rest(folder):
    photos = images(folder)
    assert isinstance(photos, Inputs)
    assert (photos.modality, photos.name, len(photos)) == ("image", folder.name, 3)
    assert list(photos.keys) == ["a.JPG", "b/2.png", "z.webp"]
    assert photos.ignored == 2
    assert photos[1].mode == "RGB"
    assert photos[1].getpixel((0, 0)) == RED
    assert photos[-1].getpixel((0, 0)) == BLUE


def test_part_of_a_collection_is_a_collection_with_its_own_numbers_and_the_same_keys(folder):
    photos = images(str(folder), name="mine")
    for part in (photos[1:], photos[[1, 2]], photos[np.array([False, True, True])], photos[np.array([-2, -1])]):
        assert isinstance(part, Images)
        assert list(part.keys) == ["b/2.png", "z.webp"]
        assert part[0].getpixel((0, 0)) == RED
        assert part.name == "mine"
    assert list(photos[1:][1:].keys) == ["z.webp"]
    assert (images(photos, name="again").name, photos.name) == ("again", "mine")
    assert len(photos[[]]) == 0
    with pytest.raises(IndexError, match="has 3 images"):
        photos[3]
    with pytest.raises(IndexError, match="no number 7"):
        photos[[0, 7]]
    with pytest.raises(InputError, match="chosen by number, slice, list"):
        photos["a.JPG"]
    assert len([photo for photo in photos]) == 3  # noqa: C416 - iteration must end


def test_collection_survives_pickling_for_worker_processes(folder):
    for photos in (images(folder), images([picture()]), images(np.zeros((2, 4, 4, 3), np.uint8))):
        again = pickle.loads(pickle.dumps(photos))
        assert list(again.keys) == list(photos.keys)
        assert np.array_equal(np.asarray(again[0]), np.asarray(photos[0]))


def test_exif_orientation_is_applied_and_transparency_lies_on_white(tmp_path):
    turned = picture(size=(12, 8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    photos = images(tmp_path)
    assert photos[2].size == (8, 12)
    assert photos[0].getpixel((0, 0)) == (255, 255, 255)
    assert photos[1].getpixel((0, 0)) == (156, 156, 156)


def test_broken_image_is_named_with_its_reason_when_it_is_read(folder):
    whole = (folder / "a.JPG").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("not a picture")
    photos = images(folder)
    broken = {key: number for number, key in enumerate(photos.keys)}
    with pytest.raises(InputError, match=r"'cut\.jpg' of .* cannot be read: .*[Tt]runcated"):
        photos[broken["cut.jpg"]]
    with pytest.raises(InputError, match=r"'text\.png' .*cannot identify image file.*skips and lists") as raised:
        photos[broken["text.png"]]
    assert str(folder) not in str(raised.value)


def test_missing_empty_and_imageless_folders_say_what_was_found(tmp_path):
    with pytest.raises(InputNotFoundError, match=r"no folder .*nowhere"):
        images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is empty"):
        images(tmp_path)
    for name in ("a.txt", "b.txt", "c.csv"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"3 other files \(2 × \.txt, 1 × \.csv\)"):
        images(tmp_path)
    with pytest.raises(InputError, match=r"is a file.*images\(\[path\]\)"):
        images(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "got a int"),
        (picture(), "Put the image into a list"),
        ([], "empty list"),
        ([picture(), "a.jpg"], "1 × Image, 1 × path"),
        ({"a": 1}, "got a dict"),
        ((i for i in range(3)), "length must be known"),
        (b"abc", "got a bytes"),
        (np.zeros((2, 4, 4, 3)), "float64; give uint8"),
        (np.zeros((2, 5, 4, 7), np.uint8), "no stack of images"),
        (np.zeros(5, np.uint8), "no stack of images"),
    ],
)
def test_what_is_no_collection_of_images_is_refused(source, message):
    with pytest.raises(InputError, match=message):
        images(source)


def test_list_of_paths_keeps_its_order_and_its_keys_hide_where_the_files_lie(folder, tmp_path):
    photos = images([folder / "z.webp", str(folder / "b" / "2.png")])
    assert list(photos.keys) == ["z.webp", "b/2.png"]
    assert photos[1].getpixel((0, 0)) == RED
    twice = images([folder / "z.webp"] * 3)
    assert list(twice.keys) == ["z.webp", "z.webp (2)", "z.webp (3)"]
    with pytest.raises(InputNotFoundError, match=r"1 of 2 paths are no files; the first is .*gone"):
        images([folder / "z.webp", tmp_path / "gone.png"])


def test_arrays_and_tensors_give_their_pixels_in_either_order_of_channels():
    stack = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)
    for source in (stack, stack.transpose(0, 3, 1, 2), torch.from_numpy(stack).permute(0, 3, 1, 2)):
        photos = images(source)
        assert np.array_equal(np.asarray(photos[2]), stack[2])
        assert list(photos.keys) == ["0", "1", "2"]
    grey = images(stack[..., 0])
    assert np.array_equal(np.asarray(grey[1])[..., 2], stack[1, ..., 0])


def test_hostile_file_names_become_valid_unique_keys(tmp_path):
    names = [b"caf\xe9.png", b"caf\xea.png", b"<img onerror=alert(1)>.png", "\u202egnp.png".encode(), b"</script>.png"]
    for name in names:
        target = os.fsencode(tmp_path / "x")[:-1] + name.replace(b"/", b":")
        with open(target, "wb") as file:  # noqa: PTH123 - the name is bytes
            picture().save(file, format="PNG")
    photos = images(tmp_path)
    assert len(set(photos.keys)) == len(names)
    for key in photos.keys:
        key.encode("utf-8")
    assert [photo.size for photo in (photos[i] for i in range(len(photos)))] == [(12, 8)] * len(names)
    assert any("caf\ufffd" in key for key in photos.keys)


def test_linked_folder_that_leads_back_up_is_read_once(folder):
    (folder / "b" / "up").symlink_to(folder, target_is_directory=True)
    assert len(images(folder)) == 3


def test_hugging_face_data_set_gives_its_image_column(folder):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict(
        {"photo": [str(folder / "a.JPG"), str(folder / "b" / "2.png")], "label": [0, 1]}
    ).cast_column("photo", datasets.Image())
    photos = images(data)
    assert len(photos) == 2
    assert photos[1].getpixel((0, 0)) == RED
    assert pickle.loads(pickle.dumps(photos))[1].size == (12, 8)
    with pytest.raises(InputError, match=r"choose one, such as data\['train'\]"):
        images(datasets.DatasetDict({"train": data}))
    with pytest.raises(InputError, match="no image column; its columns are label"):
        images(data.remove_columns(["photo"]))
    with pytest.raises(InputError, match="streaming=False"):
        images(data.to_iterable_dataset())


def test_photographs_that_scikit_image_carries_can_be_read():
    skimage = pytest.importorskip("skimage")
    photos = images(Path(skimage.__file__).parent / "data")
    readable, refused = [], []
    for number, key in enumerate(photos.keys):
        try:
            readable.append(photos[number])
        except InputError:  # some of its TIFF files have no RGB form
            refused.append(key)
    assert len(readable) >= 10
    assert all(photo.mode == "RGB" and min(photo.size) > 1 for photo in readable)
    assert all(key.endswith((".tif", ".tiff")) for key in refused)


def test_a_preview_shows_the_first_images_and_leaves_a_broken_one_grey(tmp_path):
    Image.new("RGB", (30, 10), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    Image.new("RGB", (10, 10), "blue").save(tmp_path / "c.png")
    sheet = images(tmp_path).preview(10, side=30, columns=2)
    assert sheet.size == (60, 60)
    at = {(15, 15): "red", (15, 2): "white", (45, 15): "lightgrey", (15, 45): "blue", (45, 45): "white"}
    assert {place: sheet.getpixel(place) for place in at} == {p: ImageColor.getrgb(c) for p, c in at.items()}
