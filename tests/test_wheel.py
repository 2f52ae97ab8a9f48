"""The wheel holds everything it promises and works where the checkout is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).resolve().parent.parent
SHIPPED_LIMIT_BYTES = 20_000_000
NOTEBOOKS = (
    "01_interpret_clip.ipynb",
    "02_interpret_language_model.ipynb",
    "03_concepts_and_steering.ipynb",
    "04_concept_bias_celeba.ipynb",
    "07_train_and_compare.ipynb",
)


@dataclass(frozen=True)
class Built:
    sdist: Path
    wheel: Path

    def names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel and, behind it, the dependencies of the one that runs the tests."""

    folder: Path

    @property
    def scripts(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run in an empty folder, with nothing of the checkout on any path."""
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
        # JupyterLab's extensions lie beside the dependencies, not in this environment.
        environment["JUPYTER_PATH"] = str(Path(sysconfig.get_path("data")) / "share" / "jupyter")
        return subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    def python(self, snippet: str) -> str:
        """What an isolated interpreter prints; fails with its traceback."""
        result = self.run(str(self.scripts / "python"), "-I", "-c", snippet)
        assert result.returncode == 0, result.stderr
        return result.stdout


def checked(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The source archive, and the wheel made from it rather than from the checkout."""
    out = tmp_path_factory.mktemp("dist")
    checked(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT))
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Built(sdist=sdist, wheel=wheel)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = Installed(tmp_path_factory.mktemp("environment"))
    venv.create(home.folder, with_pip=False)
    python = str(home.scripts / "python")
    checked(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", str(built.wheel))
    # Added by a .pth: folders named there are searched last, and their own .pth files (an editable install of this
    # checkout) are not read.
    site = home.python("import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    here = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (Path(site) / "dependencies.pth").write_text("\n".join(here) + "\n")
    return home


def tracked(folder: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return {name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()}


def test_wheel_holds_every_tracked_file_of_the_package(built: Built):
    missing = tracked("nb_sae") - built.names()
    assert missing == set()


def test_wheel_holds_every_built_script_and_style(built: Built):
    static = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.js", "*.css")
        for path in (ROOT / "nb_sae/widgets/static").glob(pattern)
    }
    assert {"nb_sae/widgets/static/feature.js", "nb_sae/widgets/static/report.js"} <= static
    assert static <= built.names()


def test_wheel_holds_the_demo_models_the_notebooks_and_the_type_marker(built: Built):
    wanted = {
        "nb_sae/py.typed",
        "nb_sae/assets/demo_clip/open_clip_config.json",
        "nb_sae/assets/demo_clip/open_clip_model.safetensors",
        "nb_sae/assets/demo_lm/config.json",
        "nb_sae/assets/demo_lm/model.safetensors",
        "nb_sae/assets/demo_lm/tokenizer.json",
        *(f"nb_sae/assets/notebooks/{name}" for name in NOTEBOOKS),
    }
    assert wanted - built.names() == set()


def test_wheel_holds_nothing_of_the_workshop(built: Built):
    stray = [
        name
        for name in built.names()
        if not name.startswith(("nb_sae/", "nb_sae-")) or "__pycache__" in name or ".ipynb_checkpoints" in name
    ]
    assert stray == []


def test_shipped_default_stays_within_its_limit(built: Built):
    with zipfile.ZipFile(built.wheel) as archive:
        assets = sum(entry.file_size for entry in archive.infolist() if entry.filename.startswith("nb_sae/assets/"))
    print(f"assets {assets / 1e6:.1f} MB, wheel {built.wheel.stat().st_size / 1e6:.1f} MB")
    assert assets <= SHIPPED_LIMIT_BYTES
    assert built.wheel.stat().st_size <= SHIPPED_LIMIT_BYTES


def test_source_archive_can_build_the_widgets_and_run_the_tests(built: Built):
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"Makefile", "LICENSE", "README.md", "CHANGELOG.md", "scripts/hatch_build.py", "scripts/build_widgets.py"}
    wanted |= {"widgets_js/package.json", "widgets_js/package-lock.json", "widgets_js/build.mjs"}
    wanted |= {f"notebooks/{name}" for name in NOTEBOOKS}
    wanted |= tracked("widgets_js") | tracked("tests")
    assert wanted - names == set()
    assert not [name for name in names if "node_modules" in name]


def test_installed_wheel_is_imported_from_its_own_environment(installed: Installed):
    where = Path(installed.python("import nb_sae; print(nb_sae.__file__)").strip())
    assert installed.folder in where.parents
    assert ROOT not in where.parents


def test_installed_wheel_resolves_every_public_name(installed: Installed):
    missing = installed.python(
        "import json, nb_sae\nprint(json.dumps([name for name in nb_sae.__all__ if not hasattr(nb_sae, name)]))"
    )
    assert json.loads(missing) == []


def test_installed_wheel_loads_the_embedded_models_without_a_network(installed: Installed):
    printed = installed.python(
        "import os; os.environ['HF_HUB_OFFLINE'] = '1'\n"
        "import nb_sae as ns\n"
        "for model in (ns.load_clip('demo'), ns.load_lm('demo')): print(model.name, len(model.hook_names()))\n"
        "faces = ns.demo_faces(4, seed=0)\n"
        "print(len(faces), faces[0].size)"
    )
    assert len(printed.splitlines()) == 3
    assert printed.splitlines()[-1].startswith("4 ")


def test_installed_doctor_finds_nothing_wrong(installed: Installed):
    result = installed.run(str(installed.scripts / "nb-sae"), "doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nb_sae" in result.stdout or "nb-sae" in result.stdout
