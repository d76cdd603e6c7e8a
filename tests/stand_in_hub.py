"""A model hub on localhost: enough of the Hugging Face hub's interface to download files through its own client.

    with StandInHub(folder) as hub:      # folder/models/<owner>/<name>/<file>, folder/datasets/<owner>/<name>/<file>
        ...                              # HF_ENDPOINT=hub.url in the environment of a new process
        hub.asked                        # ["HEAD /openai-community/gpt2/resolve/main/config.json", ...]

As there, a large file is a redirect to its content, named by SHA-256 (`X-Linked-Etag`); a small one comes at once with
its `ETag`; a renamed repository is a relative redirect; every answer names the commit; and what is missing is a 404
whose `X-Error-Code` says which of repository, revision and file it is.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from models import BASES
from tasks.glue.data import COMMIT, REPOSITORY

LARGE = (".parquet", ".safetensors", ".bin")
PINNED = {entry.source: entry.revision for entry in BASES.values() if entry.revision} | {REPOSITORY: COMMIT}
NEWEST = "c0ffee" + 34 * "0"
RESOLVE = re.compile(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)")
API = re.compile(r"/api/(models|datasets)/(.+?)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?")
Headers = dict[str, str]
Answer = tuple[int, Headers, bytes]


class StandInHub:
    """Serves `folder` while in its `with` block.

    Every repository has one commit, also called `main`: the one that the project pins or, where it pins none, NEWEST.
    """

    def __init__(self, folder: Path, renamed: dict[str, str] | None = None):
        self.folder, self.commits, self.renamed = folder, dict(PINNED), renamed or {}
        self.asked: list[str] = []
        self.cut = False  # whether each connection closes half-way through a file

    def __enter__(self) -> StandInHub:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.storage = f"http://localhost:{self.server.server_port}"  # another host, as the hub keeps large files on
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, path: str) -> Answer:
        if match := re.fullmatch("/lfs/(.+)", path):
            return 200, {}, (self.folder / match[1]).read_bytes()
        match = RESOLVE.fullmatch(path) or API.fullmatch(path)
        if not match:
            return _missing("EntryNotFound")
        if match[2] in self.renamed:
            return 307, {"Location": path[: match.start(2)] + self.renamed[match[2]] + path[match.end(2) :]}, b""
        return self._describe(*match.groups()) if match.re is API else self._resolve(*match.groups())

    def _resolve(self, datasets: str | None, repository: str, revision: str, file: str) -> Answer:
        kind = "datasets" if datasets else "models"
        path = self.folder / kind / repository / file
        if error := self._error(kind, repository, revision) or (None if path.is_file() else "EntryNotFound"):
            return _missing(error)
        content, commit = path.read_bytes(), {"X-Repo-Commit": self._commit(repository)}
        if not file.endswith(LARGE):
            return 200, commit | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content
        linked = {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
        return 302, commit | linked | {"Location": f"{self.storage}/lfs/{kind}/{repository}/{file}"}, b""

    def _describe(
        self, kind: str, repository: str, view: str | None, revision: str | None, below: str | None
    ) -> Answer:
        if error := self._error(kind, repository, revision or "main"):
            return _missing(error)
        root = self.folder / kind / repository
        files = sorted(path for path in (root / (below or "")).rglob("*") if path.is_file())
        if view == "tree":
            listed = [{"type": "file", "path": str(p.relative_to(root)), "size": p.stat().st_size} for p in files]
            return (200, {}, json.dumps(listed).encode()) if files else _missing("EntryNotFound")
        siblings = [{"rfilename": str(path.relative_to(root))} for path in files]
        described = {"id": repository, "sha": self._commit(repository), "siblings": siblings, "tags": []}
        return 200, {}, json.dumps(described).encode()

    def _commit(self, repository: str) -> str:
        return self.commits.get(repository, NEWEST)

    def _error(self, kind: str, repository: str, revision: str) -> str | None:
        if not (self.folder / kind / repository).is_dir():
            return "RepoNotFound"
        return None if revision in ("main", self._commit(repository)) else "RevisionNotFound"


def _missing(error: str) -> Answer:
    return 404, {"X-Error-Code": error, "X-Error-Message": error}, b""


def _handler(hub: StandInHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            status, headers, body = hub.answer(path)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if hub.cut else body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    return Handler
