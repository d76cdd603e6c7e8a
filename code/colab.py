"""A notebook's first import: packages on Colab, the scale, where results are kept.

Notebooks on Colab lose their disk when the runtime is disconnected. With `keep_in`, records and checkpoints are on
Drive, where the same cell finds them again: recorded runs are skipped, a stopped one continues.
Only the standard library is imported here, since the rest may not be installed yet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
OF_THE_KERNEL = ("ipython", "jupyter", "jupytext", "nbclient", "nbformat")  # Colab has its own, or needs none
DRIVE = Path("/content/drive")


def install_missing() -> None:
    """Install what requirements.txt names and the environment lacks; an installed torch stays as it is.

    Raises CalledProcessError, after pip has said why, if that is impossible with this torch.
    """
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if not line.startswith(OF_THE_KERNEL)]
    with suppress(PackageNotFoundError):
        wanted.append(f"torch=={version('torch')}")
    with TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(file)], check=True)


def suitable_scale() -> str:
    """`paper` where there is a GPU, else `quick`."""
    import torch

    return "paper" if torch.cuda.is_available() else "quick"


def keep_in(folder: str | Path | None) -> None:
    """Keep records, predictions and checkpoints in this folder, beside those that the repository has already.

    None leaves them in the repository. A folder on Drive is mounted first. Raises RuntimeError if `files` was
    imported before with other folders.
    """
    if folder is None:
        return
    folder = Path(folder)
    places = {"LORA_RESULTS_DIR": folder / "results", "LORA_CHECKPOINT_DIR": folder / "checkpoints"}
    if "files" in sys.modules and any(os.environ.get(name) != str(place) for name, place in places.items()):
        raise RuntimeError(f"to keep results in {folder}, restart the kernel and run the notebook from its first cell")
    if DRIVE in folder.parents and not DRIVE.is_mount() and find_spec("google.colab"):
        from google.colab import drive

        drive.mount(str(DRIVE))
    for name, place in places.items():
        place.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(place)
    kinds = ("runs", "predictions", "subspaces")
    for shipped in (path for kind in kinds for path in (ROOT / "results" / kind).rglob("*.json*")):
        kept = folder / shipped.relative_to(ROOT)
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(shipped, kept)
