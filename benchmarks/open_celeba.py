"""Opening a CelebA of the real size: 202,599 images, 40 attributes, partition and identity, in both file forms.

    python benchmarks/open_celeba.py [--images 202599]

The layout is made up (every image is a hard link to one small file, since opening reads no picture). Each form is
opened in a process of its own; the bounds are 5 s of processor time and 300 MB above the imports (the process's peak,
VmHWM).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS, MEGABYTES = 5.0, 300.0


def write_layout(root: Path, count: int, *, form: str, images: Path) -> None:
    import numpy as np

    values = np.where(np.random.default_rng(0).random((count, 40)) < 0.3, "1", "-1")
    names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
    (root / "img_align_celeba").symlink_to(images)
    attributes = [f"attribute_{number}" for number in range(40)]
    if form == "txt":
        lines = [str(count), " ".join(attributes)]
        lines += [f"{name} {' '.join(f'{value:>2}' for value in row)}" for name, row in zip(names, values, strict=True)]
        parts = [f"{name} {number % 3}" for number, name in enumerate(names)]
    else:
        lines = [",".join(["image_id", *attributes])]
        lines += [",".join([name, *row]) for name, row in zip(names, values, strict=True)]
        parts = ["image_id,partition", *(f"{name},{number % 3}" for number, name in enumerate(names))]
    (root / f"list_attr_celeba.{form}").write_text("\n".join(lines) + "\n")
    (root / f"list_eval_partition.{form}").write_text("\n".join(parts) + "\n")
    people = [f"{name} {number % 10_177 + 1}" for number, name in enumerate(names)]
    (root / "identity_CelebA.txt").write_text("\n".join(people) + "\n")


def peak_megabytes() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1000
    raise RuntimeError("this system does not report VmHWM")


def measure(root: Path) -> None:
    from nb_sae.data.celeba import celeba

    before, started = peak_megabytes(), time.process_time()
    faces = celeba(root)
    attributes = faces.attributes
    seconds = time.process_time() - started
    assert attributes.width == 42
    assert faces.identity is not None
    print(seconds, peak_megabytes() - before, len(faces))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=202_599)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure)
        return 0
    met = True
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        (images / "000001.jpg").write_bytes(b"no picture is read")
        # A file system holds so many links to one file; a new file every 10,000 stays below that everywhere.
        for number in range(2, given.images + 1):
            name = images / f"{number:06d}.jpg"
            if number % 10_000:
                os.link(images / f"{max(1, number // 10_000 * 10_000):06d}.jpg", name)
            else:
                name.write_bytes(b"no picture is read")
        for form in ("txt", "csv"):
            root = Path(folder) / form
            root.mkdir()
            write_layout(root, given.images, form=form, images=images)
            command = [sys.executable, __file__, "--measure", str(root)]
            figures = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, megabytes, count = (float(part) for part in figures.split())
            good = seconds <= SECONDS and megabytes <= MEGABYTES
            met &= good
            said = f"{form}: {count:,.0f} images opened in {seconds:.1f} s, {megabytes:.0f} MB more"
            print(said if good else f"{said}: MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
