"""A notebook's first import: packages on Colab, the scale, where results are kept.

Notebooks on Colab lose their disk when the runtime is disconnected. With `keep_in`, records and checkpoints are on
Drive, where the same cell finds them again: recorded runs are skipped, a stopped one continues.
Only the standard library is imported here, since the rest may not be installed yet.
"""

from __future__ import annotations

import os
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
A100_GIB = 39  # of the smaller one, as torch counts them


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
    """The scale for the device at hand, which is printed with the reason and the versions.

    `paper` on a GPU with bfloat16, with a warning below A100 class, `cpu` on a lesser one, `quick` where there is none.
    """
    import torch

    scale, why = "quick", "no GPU (on Colab: Runtime, Change runtime type)"
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        why = f"{torch.cuda.get_device_name()}, {memory:.0f} GiB"
        if torch.cuda.is_bf16_supported(including_emulation=False):
            scale = "paper"
            capability = torch.cuda.get_device_capability()
            if memory < A100_GIB or not (capability == (8, 0) or capability >= (9, 0)):  # an L40S is (8, 9)
                why += ". Warning: less than an A100, so slower, and the largest models may not fit: `make gpu-check`"
        else:
            scale, why = "cpu", f"{why}, without bfloat16: too slow for `paper`, which is for an A100"
    print(f"scale {scale}: {why}")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, transformers {version('transformers')}")
    return scale


def keep_in(folder: str | Path | None) -> None:
    """Keep records, predictions and checkpoints in this folder, beside those that the repository has already.

    None leaves them in the repository. A folder on Drive is mounted first; a first copy to it takes minutes. Raises
    RuntimeError if `files` was imported before with other folders.
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
    kinds = ("runs", "predictions", "rescored", "subspaces", "gpu")
    shipped = [path for kind in kinds for path in (ROOT / "results" / kind).rglob("*.json*")]
    if new := [path for path in shipped if not (folder / path.relative_to(ROOT)).exists()]:
        from tqdm.auto import tqdm  # installed by now

        from files import write_atomically  # which now knows the folders

        for path in tqdm(new, desc=f"records to {folder}", unit="file"):
            write_atomically(folder / path.relative_to(ROOT), path.read_bytes())
