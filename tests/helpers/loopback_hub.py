"""A Hub on this machine: what huggingface_hub and datasets ask when they read repositories."""

import contextlib
import hashlib
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LoopbackHub:
    """
    Repositories, each with the branches `main` and `other` of the same commits.

    Attributes:
        repositories (`dict`): Folder of each repository, by its id. The id of a dataset begins with "datasets/".
        requests (`list`): Method and path of every request.
        spans (`list`): Path and first byte of every file that was asked for.
        delay (`float`): Seconds that each 64 kB of a file takes.
        cut (`int`): Bytes after which a file ends, as if the connection was lost. 0 for no limit.
        token (`str`): Token that is needed, if any.
    """

    def __init__(self, repositories: dict[str, Path]):
        self.repositories = repositories
        self.requests: list[str] = []
        self.spans: list[tuple[str, int]] = []
        self.delay, self.cut, self.token = 0.0, 0, ""
        hub = self

        class Handler(_Handler):
            def __init__(self, *args):
                self.hub = hub
                super().__init__(*args)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def downloads(self) -> list[str]:
        """Return the paths of the files that were downloaded."""
        return [
            request.split(" ", 1)[1]
            for request in self.requests
            if request.startswith("GET") and "/resolve/" in request
        ]


@contextlib.contextmanager
def loopback_hub(repositories: dict[str, Path]) -> Iterator[LoopbackHub]:
    hub = LoopbackHub(repositories)
    threading.Thread(target=hub.server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.fail(401, "RepoNotFound")
        for repo_id, folder in self.hub.repositories.items():
            api = f"/api/{repo_id}" if repo_id.startswith("datasets/") else f"/api/models/{repo_id}"
            if path.startswith(f"/{repo_id}/resolve/"):
                revision, _, name = path.removeprefix(f"/{repo_id}/resolve/").partition("/")
                return self.file(folder / name, revision)
            if path == api or path.startswith(f"{api}/"):
                kind, _, revision = path.removeprefix(api).strip("/").partition("/")
                return self.list(repo_id, folder, kind, revision or "main")
        self.fail(401, "RepoNotFound")

    def list(self, repo_id: str, folder: Path, kind: str, revision: str) -> None:
        if revision.split("/")[0] not in ("main", "other", COMMIT):
            return self.fail(404, "RevisionNotFound")
        below = folder / revision.partition("/")[2]
        if kind == "tree" and not below.is_dir():
            return self.fail(404, "EntryNotFound")
        entries = [_entry(folder, path) for path in sorted(below.rglob("*"))]
        if kind == "tree":
            return self.send(json.dumps(entries).encode())
        siblings = [
            {"rfilename": entry["path"], "size": entry["size"]} for entry in entries if entry["type"] == "file"
        ]
        info = {"id": repo_id, "modelId": repo_id, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
        self.send(json.dumps(info).encode())

    def file(self, path: Path, revision: str) -> None:
        if revision not in ("main", "other", COMMIT):
            return self.fail(404, "RevisionNotFound")
        if not path.is_file():
            return self.fail(404, "EntryNotFound")
        content = path.read_bytes()
        start, status = 0, 200
        if (span := self.headers.get("Range")) is not None:
            start, status = int(span.removeprefix("bytes=").split("-")[0]), 206
        self.hub.spans.append((self.path, start))
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send(content[start:], headers, status)

    def send(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200):
        self.send_response(status)
        headers = {"X-Repo-Commit": COMMIT, "Content-Type": "application/json", **(headers or {})}
        headers["Content-Length"] = str(len(body))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(body), 1 << 16):
                if self.hub.cut and start >= self.hub.cut:
                    self.close_connection = True
                    return
                time.sleep(self.hub.delay)
                self.wfile.write(body[start : start + (1 << 16)])

    def fail(self, status: int, code: str) -> None:
        self.send(b"{}", {"X-Error-Code": code}, status)

    def log_message(self, *args):
        pass


def _entry(folder: Path, path: Path) -> dict:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}


def clean_environment(home: Path, hub: LoopbackHub | None = None) -> dict[str, str]:
    """Return an environment for a process with an empty Hugging Face cache, and a Hub or none."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    return environment | {"HF_HOME": str(home)} | (hub.environment if hub else {"HF_HUB_OFFLINE": "1"})
