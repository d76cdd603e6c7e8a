"""The places where a data file may be, in one order for all data, and the one error that names them.

`data_dir`, or the environment's LORA_DATA_DIR; the cache `data/cache`; a folder `shared/data` beside the repository;
last, what `fetch` brings from where the data is published, which is then kept in the cache. Each folder has the same
layout: `e2e/testset_w_refs.csv`, `glue/mrpc/train-00000-of-00001.parquet`, ...
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path

import paths

SHARED = paths.ROOT.parent / "shared" / "data"
DOWNLOAD_SECONDS = 60  # without a byte


def fingerprint(rows: Iterable[Iterable[str]]) -> str:
    """First 16 hex digits of the SHA-256 of all rows in order: names in a record exactly what was loaded."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update("\0".join((*row, "")).encode())
    return digest.hexdigest()[:16]


def download(url: str) -> bytes:
    """What is published there; OSError where it cannot be had whole."""
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as response:
            return response.read()
    except HTTPException as error:  # a connection cut half-way is no OSError
        raise OSError(f"{type(error).__name__}: {error}") from error


def find_file(file: str, data_dir: Path | None, fetch: Callable[[], bytes], published: str) -> Path:
    """Where `file`, a path within the layout above, is; `published` names for the reader what `fetch` reads.

    Raises FileNotFoundError if `data_dir` or LORA_DATA_DIR is no folder, or if no place has the file and `fetch`
    raises OSError.
    """
    chosen = data_dir or os.environ.get("LORA_DATA_DIR")
    if chosen and not Path(chosen).is_dir():
        origin = "data_dir" if data_dir else "LORA_DATA_DIR"
        raise FileNotFoundError(f"{origin} is {chosen}, which is not a folder; expected one that holds {file}")
    places = [Path(folder) / file for folder in (chosen, paths.CACHE, SHARED) if folder]
    for path in places:
        if path.is_file():
            return path
    try:
        content = fetch()
    except OSError as error:
        tried = "\n  ".join([*map(str, places), f"{published} ({error})"])
        raise FileNotFoundError(
            f"{file} is in none of the places tried:\n  {tried}\nCheck the connection, or put the file into "
            f"{(paths.CACHE / file).parent}, or set LORA_DATA_DIR to a folder that holds {file}. The `quick` scale "
            "needs no data."
        ) from error
    path = paths.CACHE / file
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)
    return path
