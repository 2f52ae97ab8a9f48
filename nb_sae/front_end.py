"""The browser's side of the widgets: what the Jupyter server hands to it.

The server may live in another environment than the kernel, so it is asked itself where this kernel can find it; else
the Jupyter folders of this environment are read. Only this machine's own server is asked, never the network.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANSWER_TIMEOUT_S = 2
_MANAGER = "@jupyter-widgets/jupyterlab-manager"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Server:
    """A running Jupyter server of this user on this machine."""

    url: str
    token: str
    started: float
    """Seconds since 1970."""

    @classmethod
    def of_this_kernel(cls) -> Server | None:
        """The server that started this kernel; in a terminal the only one that runs; else None."""
        from jupyter_core.paths import jupyter_runtime_dir

        found = sorted(Path(jupyter_runtime_dir()).glob("jpserver-*.json"))
        parent = os.environ.get("JPY_PARENT_PID")
        if parent is not None:
            found = [path for path in found if path.stem == f"jpserver-{parent}"]
        servers = [server for path in found if (server := cls._read(path)) is not None]
        return servers[0] if len(servers) == 1 else None

    @classmethod
    def _read(cls, path: Path) -> Server | None:
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            url, token = str(facts["url"]), str(facts.get("token", ""))
            started = path.stat().st_mtime
            here = urllib.parse.urlsplit(url).hostname in _LOOPBACK and _runs(facts.get("pid"))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cls(url, token, started) if here else None

    def read(self, path: str, *, with_token: bool = False) -> dict[str, Any] | None:
        """The JSON object at a path below the server's address; None where there is no such path.

        Raises:
            OSError: The server gives no such answer in time: it has ended, asks for a login, or sends us elsewhere.
        """
        request = urllib.request.Request(urllib.parse.urljoin(self.url, urllib.parse.quote(path)))
        if with_token:
            request.add_header("Authorization", f"token {self.token}")
        # A proxy does not know this machine, and a redirect would take the token along.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _StayHere)
        try:
            with opener.open(request, timeout=ANSWER_TIMEOUT_S) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code == http.client.NOT_FOUND:
                return None
            raise
        except (ValueError, http.client.HTTPException) as error:
            raise OSError(f"{self.url} gave no JSON") from error
        return found if isinstance(found, dict) else None

    def extension_version(self, name: str) -> str | None:
        """Version of the extension that this server hands to the browser, or None. Raises as `read` does."""
        return _version(self.read(f"lab/extensions/{name}/package.json"))

    def saves_state(self) -> bool | None:
        """Whether JupyterLab is set to save the widgets' state in the notebook; None where it does not say."""
        try:
            found = self.read(f"lab/api/settings/{_MANAGER}:plugin", with_token=True)
        except OSError:
            return None
        settings = None if found is None else found.get("settings")
        return bool(settings.get("saveState", False)) if isinstance(settings, dict) else None


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: each is an `HTTPError`."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        """None: do not go there."""
        del req, fp, code, msg, headers, newurl


def _runs(process: Any) -> bool:
    """Whether a process is alive; a killed server leaves its file behind. True where that cannot be asked."""
    if not isinstance(process, int) or os.name != "posix":
        return True
    try:
        os.kill(process, 0)  # signal 0 asks and sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it lives, and is another user's
        pass
    return True


def extension_folder(name: str) -> Path | None:
    """Folder of a JupyterLab extension under the Jupyter data paths of this environment, or None."""
    from jupyter_core.paths import jupyter_path

    folders = (Path(folder) / name for folder in jupyter_path("labextensions"))
    return next((folder for folder in folders if _version(_json(folder / "package.json"))), None)


def extension_version(name: str) -> str | None:
    """Version of that extension, or None."""
    folder = extension_folder(name)
    return None if folder is None else _version(_json(folder / "package.json"))


def installed_after(name: str, server: Server) -> bool:
    """Whether the extension in this environment is younger than the server: open browser tabs have an older one."""
    folder = extension_folder(name)
    if folder is None:
        return False
    try:
        facts = (folder / "package.json").stat()
    except OSError:
        return False
    return max(facts.st_mtime, facts.st_ctime) > server.started + 1  # some installers keep the time of the archive


def own_host() -> str | None:
    """The host that brings its own side of the widgets and asks no server for it, or None."""
    if "google.colab" in sys.modules:
        return "Colab"
    running = getattr(sys.modules.get("marimo"), "running_in_notebook", None)
    return "marimo" if running is not None and running() else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _version(package: Any) -> str | None:
    version = package.get("version") if isinstance(package, dict) else None
    return version if isinstance(version, str) else None
