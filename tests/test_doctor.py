"""The doctor: what it looks at, and that each problem comes with one line that repairs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import nb_sae as ns
from nb_sae import __version__
from nb_sae.diagnosis import (
    Check,
    Diagnosis,
    _built_files,
    _disk,
    _same_generation,
    _same_minor,
    _widget_bridge,
)
from nb_sae.front_end import Server, extension_version

DOCTOR = import_module("nb_sae.diagnosis")


@pytest.fixture
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A Jupyter data path of its own; call it to install an extension there."""

    def install(name: str, version: str) -> None:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(json.dumps({"name": name, "version": version}))

    monkeypatch.setattr("jupyter_core.paths.jupyter_path", lambda *_: [str(tmp_path / "empty"), str(tmp_path)])
    return install


@pytest.fixture(autouse=True)
def no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where Jupyter servers write that they run: empty, whatever runs on this machine."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    monkeypatch.setattr("jupyter_core.paths.jupyter_runtime_dir", lambda: str(folder))
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    return folder


@pytest.fixture
def serve(no_server: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, object]], Path]]:
    """A Jupyter server of another environment, which started this kernel and answers with the given JSON by path."""
    running: list[HTTPServer] = []

    def start(answers: dict[str, object]) -> Path:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                # As jupyter_server: settings ask for the token, extensions are files for everybody.
                wanted = "token secret" if "/settings/" in self.path else None
                known = self.headers["Authorization"] == wanted and self.path in answers
                self.send_response(200 if known else 404)
                self.end_headers()
                if known:
                    self.wfile.write(json.dumps(answers[self.path]).encode())

            def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        monkeypatch.setenv("JPY_PARENT_PID", "77")
        path = no_server / "jpserver-77.json"
        path.write_text(json.dumps({"url": f"http://127.0.0.1:{server.server_port}/base/", "token": "secret"}))
        return path

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def server_with(anywidget: str | None, manager: str = "5.0.16", saves: object = False) -> dict[str, object]:
    """What such a server answers."""
    packages = {"anywidget": anywidget, "@jupyter-widgets/jupyterlab-manager": manager}
    answers: dict[str, object] = {
        f"/base/lab/extensions/{name}/package.json": {"version": version}
        for name, version in packages.items()
        if version
    }
    setting = "/base/lab/api/settings/@jupyter-widgets/jupyterlab-manager:plugin"
    return {path.replace("@", "%40"): answer for path, answer in answers.items()} | {
        setting.replace("@", "%40").replace(":", "%3A"): {"settings": {"saveState": saves}}
    }


def versions(monkeypatch: pytest.MonkeyPatch, **known: str) -> None:
    monkeypatch.setattr(DOCTOR, "version_of", known.get)


def test_doctor_names_every_part():
    diagnosis = ns.doctor()
    topics = " ".join(check.topic for check in diagnosis.checks)
    for part in (
        "Python",
        "nb_sae",
        "torch",
        "open_clip",
        "transformer_lens",
        "CPU",
        "GPU",
        "anywidget",
        "ipywidgets",
        "disk",
    ):
        assert part in topics or (part == "GPU" and "CUDA" in topics)
    assert __version__ in str(diagnosis)
    assert all(check.fix for check in diagnosis.problems)
    assert all("\n" not in check.fix for check in diagnosis.checks)


def test_diagnosis_is_text_in_a_terminal_and_a_table_in_a_notebook():
    diagnosis = Diagnosis((Check("disk <b>", "full", "problem", "free some"), Check("torch", "2.0")))
    assert "✗ disk <b>  full" in str(diagnosis)
    assert "→ free some" in str(diagnosis)
    assert "1 problem found." in repr(diagnosis)
    assert "<b>" not in diagnosis._repr_html_()
    assert [check.topic for check in diagnosis.problems] == ["disk <b>"]
    assert Diagnosis(()).verdict == "Nothing is wrong."


KERNEL = {"anywidget": "0.11.0", "ipywidgets": "8.1.9", "jupyterlab": "4.6.0", "ipykernel": "7.4.0"}


def found_by_topic() -> dict[str, Check]:
    return {check.topic.partition(" (")[0]: check for check in _widget_bridge()}


def test_both_sides_of_the_widget_bridge_are_compared(extensions, monkeypatch: pytest.MonkeyPatch):
    versions(monkeypatch, **KERNEL)
    extensions("anywidget", "0.11.2")
    extensions("@jupyter-widgets/jupyterlab-manager", "5.0.16")
    assert [check.level for check in _widget_bridge()] == ["ok", "ok"]
    extensions("anywidget", "0.9.3")
    old = found_by_topic()["anywidget"]
    assert old.level == "problem"
    assert "0.11.0 ↔ 0.9.3" in old.found
    assert "pip install anywidget==0.11.0" in old.fix
    assert "reload the browser tab" in old.fix
    assert "Where you cannot" not in old.fix  # that one is older than what we work with


def test_the_running_server_is_asked_and_not_this_environment(serve, extensions, monkeypatch: pytest.MonkeyPatch):
    versions(monkeypatch, **KERNEL)
    extensions("anywidget", "0.11.0")
    extensions("@jupyter-widgets/jupyterlab-manager", "5.0.16")
    serve(server_with("0.9.21"))
    found = found_by_topic()["anywidget"]
    assert found.level == "problem"
    assert "0.11.0 ↔ 0.9.21 (the running server) do not fit" in found.found
    assert "Where you cannot: pip install anywidget==0.9.21 for the kernel" in found.fix


def test_a_server_without_anywidget_is_a_problem_even_where_this_environment_has_it(serve, extensions, monkeypatch):
    versions(monkeypatch, **KERNEL)
    extensions("anywidget", "0.11.0")
    serve(server_with(None))
    found = found_by_topic()["anywidget"]
    assert (found.level, "the running server has no extension anywidget" in found.found) == ("problem", True)
    assert found.fix.startswith("Where the Jupyter server runs: pip install anywidget==0.11.0")


class Odd(BaseHTTPRequestHandler):
    """Answers with what is no answer, and remembers what it was sent."""

    status, place, heard = 302, "", []

    def do_GET(self):
        type(self).heard.append(self.headers["Authorization"])
        if not self.status:
            self.wfile.write(b"what?\r\n")
            return
        self.send_response(self.status)
        self.send_header("Location", self.place)
        self.end_headers()
        self.wfile.write(b"<html>Log in</html>")

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002


@pytest.fixture
def odd(no_server: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """A server of this kernel that answers oddly."""
    running: list[HTTPServer] = []

    def start(status: int, place: str = "") -> Server:
        handler = type("Handler", (Odd,), {"status": status, "place": place, "heard": []})
        running.append(HTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        monkeypatch.setenv("JPY_PARENT_PID", "77")
        address = f"http://127.0.0.1:{running[-1].server_port}/"
        (no_server / "jpserver-77.json").write_text(json.dumps({"url": address, "token": "secret"}))
        found = Server.of_this_kernel()
        assert found is not None
        return found

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [0, 200, 302, 403, 500])
def test_a_server_that_gives_no_answer_is_not_said_to_lack_an_extension(odd, extensions, monkeypatch, status: int):
    versions(monkeypatch, **KERNEL)
    extensions("anywidget", "0.11.2")
    extensions("@jupyter-widgets/jupyterlab-manager", "5.0.16")
    assert odd(status, "/login").saves_state() is None
    found = found_by_topic()
    assert {check.level for check in found.values()} == {"ok"}
    assert found["anywidget"].found == "0.11.0 ↔ 0.11.2"


def test_the_token_goes_to_no_other_server_and_only_where_it_is_needed(odd):
    elsewhere = odd(200)
    server = odd(302, elsewhere.url + "taken")
    assert server.saves_state() is None
    with pytest.raises(OSError, match="302"):
        server.extension_version("anywidget")
    heard = [handler.heard for handler in Odd.__subclasses__()[-2:]]
    assert heard == [[], ["token secret", None]]


def test_the_file_of_a_killed_server_is_passed_over(no_server: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name, process in (("1", ended.pid), ("2", os.getpid())):
        facts = {"url": f"http://127.0.0.1:{name}/", "token": "", "pid": process}
        (no_server / f"jpserver-{name}.json").write_text(json.dumps(facts))
    server = Server.of_this_kernel()
    assert server is not None
    assert server.url.endswith(":2/")


def test_a_server_that_does_not_answer_or_lives_elsewhere_is_not_waited_for(serve, no_server: Path):
    path = serve({})
    server = Server.of_this_kernel()
    assert server is not None
    assert (server.extension_version("anywidget"), server.saves_state()) == (None, None)
    path.write_text(json.dumps({"url": "http://jupyter.example.org/", "token": "secret"}))
    assert Server.of_this_kernel() is None
    path.write_text("{broken")
    assert Server.of_this_kernel() is None


@pytest.mark.parametrize("saves", [True, False])
def test_widget_state_that_is_not_saved_is_said_with_both_ways_out(serve, monkeypatch, saves: bool):
    versions(monkeypatch, **KERNEL)
    serve(server_with("0.11.0", saves=saves))
    state = found_by_topic()["widget state"]
    assert state.level == ("ok" if saves else "note")
    assert ("Save Widget State Automatically" in state.fix, "nb-sae report" in state.fix) == (not saves, not saves)


def test_an_extension_younger_than_the_server_asks_for_a_reload(serve, extensions, monkeypatch: pytest.MonkeyPatch):
    versions(monkeypatch, **KERNEL)
    extensions("anywidget", "0.11.0")
    path = serve(server_with("0.11.0"))
    assert "browser tab" not in found_by_topic()
    os.utime(path, (1e9, 1e9))
    tab = found_by_topic()["browser tab"]
    assert (tab.level, tab.fix.startswith("Reload the browser tab")) == ("note", True)


def test_ipywidgets_7_beside_a_new_jupyterlab_is_a_problem_of_the_kernel(extensions, monkeypatch: pytest.MonkeyPatch):
    versions(monkeypatch, **KERNEL | {"ipywidgets": "7.7.1"})
    extensions("anywidget", "0.11.0")
    extensions("@jupyter-widgets/jupyterlab-manager", "5.0.16")
    found = found_by_topic()["ipywidgets"]
    assert (found.level, "pip install -U 'ipywidgets>=8'" in found.fix) == ("problem", True)


def test_colab_needs_no_server(monkeypatch: pytest.MonkeyPatch, extensions):
    versions(monkeypatch, **KERNEL | {"ipywidgets": "7.7.1"})
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    found = found_by_topic()
    assert {check.level for check in found.values()} == {"ok"}
    assert "Colab brings its own side" in found["ipywidgets"].found


def test_an_old_ipykernel_answers_after_the_cell(extensions, monkeypatch: pytest.MonkeyPatch):
    versions(monkeypatch, **KERNEL | {"ipykernel": "6.29.5"})
    found = found_by_topic()["while a cell runs"]
    assert (found.level, "ipykernel>=7" in found.fix) == ("note", True)


def test_missing_extension_matters_where_jupyterlab_is(extensions, monkeypatch: pytest.MonkeyPatch):
    versions(monkeypatch, anywidget="0.11.0", ipywidgets="8.1.9", jupyterlab="4.6.0")
    assert [check.level for check in _widget_bridge()] == ["problem", "problem"]
    versions(monkeypatch, anywidget="0.11.0", ipywidgets="8.1.9")
    assert [check.level for check in _widget_bridge()] == ["note", "note"]
    versions(monkeypatch)
    assert [check.fix for check in _widget_bridge()] == ["pip install anywidget", "pip install ipywidgets"]


def test_broken_extension_file_counts_as_missing(extensions, tmp_path: Path):
    extensions("anywidget", "0.11.0")
    assert extension_version("anywidget") == "0.11.0"
    (tmp_path / "anywidget" / "package.json").write_text("{broken")
    assert extension_version("anywidget") is None


def test_versions_fit_by_minor_and_by_generation():
    assert _same_minor("0.11.0", "0.11.9")
    assert not _same_minor("0.11.0", "0.9.1")
    assert _same_generation("8.1.9", "5.0.16")
    assert _same_generation("7.7.1", "3.1.0")
    assert not _same_generation("8.1.9", "3.1.0")


def test_scripts_that_are_not_built_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DOCTOR, "files", lambda _: tmp_path)
    found = {check.topic: check for check in _built_files()}
    assert found["dashboards"].level == "problem"
    assert "make widgets" in found["dashboards"].fix
    assert found["demo CLIP"].level == "problem"


@pytest.mark.parametrize(("free", "level"), [(5e8, "problem"), (3e9, "note"), (9e10, "ok")])
def test_little_disk_is_said(free: float, level: str, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1e12, 0, free))
    (check,) = _disk()
    assert check.level == level
