"""A Hugging Face Hub on this machine: what the client asks to make a repository, commit files and read them back."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories in memory: files by name, for every revision."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.requests: list[str] = []
        self.endpoint = ""

    def commit_id(self, repo: str, revision: str) -> str:
        files = self.repositories[repo][revision]
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run one until the block ends; `hub.endpoint` is its address."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def answer(self, content: Any = b"", status: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            headers.setdefault("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def missing(self, code: str) -> None:
            self.answer({"error": "not found"}, 404, X_Error_Code=code, X_Error_Message="not found")

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_POST(self) -> None:
            path, content = unquote(urlsplit(self.path).path), self.body()
            hub.requests.append(f"POST {path}")
            if path == "/api/repos/create":
                asked = json.loads(content)
                repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                known = repo in hub.repositories
                hub.repositories.setdefault(repo, {"main": {}})
                url = {"url": f"{hub.endpoint}/{repo}", "id": repo, "name": repo}
                return self.answer(url, 409 if known else 200)
            if path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            repo, _, rest = path.removeprefix("/api/models/").partition("/")
            name, _, rest = rest.partition("/")
            repo, (what, _, revision) = f"{repo}/{name}", rest.partition("/")
            if repo not in hub.repositories:
                return self.missing("RepoNotFound")
            if what == "branch":
                hub.repositories[repo].setdefault(revision, dict(hub.repositories[repo]["main"]))
                return self.answer({})
            if what == "preupload":
                files = [
                    {**one, "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(content)["files"]
                ]
                return self.answer(
                    {"files": [{n: one[n] for n in ("path", "uploadMode", "shouldIgnore")} for one in files]}
                )
            if what == "commit":
                for line in content.splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "deletedFile":
                        del hub.repositories[repo][revision][value["path"]]
                    if entry["key"] == "file":
                        hub.repositories[repo][revision][value["path"]] = base64.b64decode(value["content"])
                commit = hub.commit_id(repo, revision)
                url = f"{hub.endpoint}/{repo}/commit/{commit}"
                return self.answer({"commitUrl": url, "commitOid": commit, "hookOutput": "", "pullRequestUrl": None})
            return self.missing("EntryNotFound")

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            api = path.startswith("/api/models/")
            parts = path.removeprefix("/api/models/").strip("/").split("/")
            repo, what, rest = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "", parts[3:]
            if repo not in hub.repositories:
                return self.missing("RepoNotFound")
            revisions = hub.repositories[repo]
            revision = rest[0] if rest else "main"
            found = next((r for r in revisions if revision in (r, hub.commit_id(repo, r))), None)
            if found is None:
                return self.missing("RevisionNotFound")
            files, commit = revisions[found], hub.commit_id(repo, found)
            if api and what in ("", "revision"):
                siblings = [{"rfilename": name} for name in files]
                return self.answer({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "private": False})
            if api and what == "tree":
                kinds = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                return self.answer(kinds)
            name = "/".join(rest[1:])
            if name not in files:
                return self.missing("EntryNotFound")
            data = files[name]
            tag = hashlib.sha1(data).hexdigest()
            self.answer(data, ETag=f'"{tag}"', X_Repo_Commit=commit, Content_Type="application/octet-stream")
            return None

        do_HEAD = do_GET  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
