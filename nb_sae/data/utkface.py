"""UTKFace: faces whose file names say age, gender and race. No picture is opened.

Zhang, Song and Qi 2017, Age Progression/Regression by Conditional Adversarial Autoencoder, CVPR. A name is
`[age]_[gender]_[race]_[date and time].jpg` (`.jpg.chip.jpg` where aligned and cropped); a few of the distributed names
lack a field.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import polars as pl

from nb_sae.data.images import FolderReader, clean_name, list_images
from nb_sae.data.labeled import LabeledImages
from nb_sae.errors import InputError

GENDERS = ("male", "female")
RACES = ("White", "Black", "Asian", "Indian", "Others")
"""In the order of their numbers in the file names; "Others" is the data set's own word."""
LABELS = pl.Schema({"age": pl.Int32, "gender": pl.Enum(GENDERS), "race": pl.Enum(RACES)})
OLDEST = 120
_NAME = re.compile(r"(\d{1,3})_([01])_([0-4])_\d")


def utkface(path: str | os.PathLike[str]) -> LabeledImages:
    """UTKFace, or images named as it names them: `age` in years (a number), `gender` and `race` of every image.

    Args:
        path: The folder of the images; subfolders (`part1/`, `UTKFace/`, `crop_part1/`) are read with it.

    Returns:
        The labelled images. What has no three labels in its name, and a second image of the same name (the crops are
        distributed twice), is in `.skipped` with its reason.

    Raises:
        InputNotFoundError: there is no such folder.
        InputError: no image there is named so.
    """
    root = Path(path).expanduser()
    found, others = list_images(root)
    names: list[str] = []
    labels: list[tuple[int, str, str]] = []
    skipped: list[tuple[str, str]] = []
    taken: dict[str, str] = {}
    for name in found:
        base = name.rpartition("/")[2]
        read = read_name(base)
        if isinstance(read, str):
            skipped.append((name, read))
        elif base in taken:
            skipped.append((name, f"has the same name as {taken[base]}"))
        else:
            taken[base] = name
            names.append(name)
            labels.append(read)
    if not names:
        such = f", such as {found[0]!r}" if found else ""
        raise InputError(
            f"{str(root)!r} holds {len(found):,} images{such}, and no name is [age]_[gender]_[race]_[date].jpg. Give "
            "UTKFace's folder; for other images use images(folder)."
        )
    return LabeledImages(
        FolderReader(root, names),
        names,
        name=clean_name(root),
        labels=pl.DataFrame(labels, schema=LABELS, orient="row"),
        skipped=skipped,
        ignored=sum(others.values()),
    )


def read_name(name: str) -> tuple[int, str, str] | str:
    """Age, gender and race in a file name; or why there are none."""
    fields = _NAME.match(name)
    if fields is None:
        return "its name is not [age]_[gender 0–1]_[race 0–4]_[date]"
    age, gender, race = (int(field) for field in fields.groups())
    if age > OLDEST:
        return f"its name says {age} years"
    return age, GENDERS[gender], RACES[race]
