"""A stand-in of the Hugging Face Hub on the loopback interface: folders served under the addresses that its client asks for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


class Hub:
    """Repositories below `root`, as root/OWNER/NAME/REVISION/..., and what was asked of them.

    files: the paths of files that were fetched, "OWNER/NAME: file", in order.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.files = root, list[str]()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def folder(self, repository: str, revision: str = "main") -> Path:
        """The folder that is served as a repository."""
        folder = self.root / repository / revision
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def environment(self, cache: Path, *, offline: bool = False) -> dict[str, str]:
        """The variables of a process that takes this for the Hub; `cache` is its own, new one."""
        own = {"HF_ENDPOINT": self.address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": str(int(offline)),
               "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
        return {**os.environ, "NO_PROXY": "127.0.0.1", **own}

    def taken(self) -> list[str]:
        """The files that were fetched since the last call."""
        files, self.files[:] = list(self.files), []
        return files

    @contextmanager
    def running(self) -> Iterator[Hub]:
        thread = Thread(target=self.server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                return

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                parts = unquote(urlsplit(self.path).path).strip("/").split("/")
                if parts[:2] == ["api", "models"]:
                    owner, name, *rest = parts[2:]
                    self._describe(f"{owner}/{name}", rest)
                    return
                owner, name, _, revision, *path = parts
                self._file(f"{owner}/{name}", revision, "/".join(path), body=body)

            def _served(self, repository: str, revision: str) -> Path | None:
                """The folder of a revision or commit; answers for what is not there."""
                folders = {each.name: each for each in (hub.root / repository).glob("*")}
                if not folders:
                    self._send(404, {"X-Error-Code": "RepoNotFound"})
                    return None
                found = folders.get(revision) or {commit(each): each for each in folders.values()}.get(revision)
                if found is None:
                    self._send(404, {"X-Error-Code": "RevisionNotFound"})
                return found

            def _describe(self, repository: str, rest: list[str]) -> None:
                kind, revision = (*rest, "revision", "main")[:2] if rest else ("revision", "main")
                folder = self._served(repository, revision)
                if folder is None:
                    return
                files = sorted(path for path in folder.rglob("*") if path.is_file())
                names = [str(path.relative_to(folder)) for path in files]
                if kind == "tree":
                    listed = [{"type": "file", "path": name, "size": path.stat().st_size, "oid": digest(path)[:40]}
                              for name, path in zip(names, files, strict=True)]  # fmt: skip
                    self._send(200, {"X-Repo-Commit": commit(folder)}, json.dumps(listed).encode())
                    return
                said = {"id": repository, "modelId": repository, "sha": commit(folder), "private": False, "gated": False,
                        "disabled": False, "downloads": 0, "likes": 0, "tags": [],
                        "siblings": [{"rfilename": name} for name in names]}  # fmt: skip
                self._send(200, {"X-Repo-Commit": commit(folder)}, json.dumps(said).encode())

            def _file(self, repository: str, revision: str, path: str, *, body: bool) -> None:
                folder = self._served(repository, revision)
                if folder is None:
                    return
                file, headers = folder / path, {"X-Repo-Commit": commit(folder)}
                if not file.is_file():
                    self._send(404, {**headers, "X-Error-Code": "EntryNotFound"})
                    return
                if body:
                    hub.files.append(f"{repository}: {path}")
                self._send(200, {**headers, "ETag": f'"{digest(file)}"'}, file.read_bytes(), body=body)

            def _send(self, status: int, headers: dict[str, str], content: bytes = b"", *, body: bool = True) -> None:
                self.send_response(status)
                kind = {"Content-Type": "application/json", "Content-Length": str(len(content))}
                for name, value in {**kind, **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if body and self.command != "HEAD":
                    self.wfile.write(content)

        return Handler


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def commit(folder: Path) -> str:
    """40 hex digits, another one for each repository and revision."""
    return hashlib.sha1(f"{folder.parent.parent.name}/{folder.parent.name}@{folder.name}".encode()).hexdigest()
