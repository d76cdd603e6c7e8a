"""Runs `reproduce.py` and hurts it at one moment: before it changes a file for the Nth time.

    python tests/breaking/hurt.py kill 17 run table3/gpt2-mini/e2e-builtin/lora-r4

A change is one in the folders of LORA_RESULTS_DIR and LORA_CHECKPOINT_DIR: a file opened to write, a name given, moved
or removed. Checkpoints are saved every few seconds, so that short runs have many. What is done at the moment:

    count   nothing; in the end the number of changes is printed
    kill    SIGKILL to this process
    fill    the disk of the checkpoints is filled to its last byte
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "code"))

import reproduce
from training import checkpoints

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
SECONDS = 3  # between checkpoints
FILLER = "filler"


def fill(folder: Path) -> None:
    """Write a file until not one byte more fits on the folder's disk."""
    with (folder / FILLER).open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def main() -> None:
    act, moment = sys.argv[1], int(sys.argv[2])
    results, saved = (os.environ[name] for name in ("LORA_RESULTS_DIR", "LORA_CHECKPOINT_DIR"))
    changes, busy = 0, False

    def watch(event: str, about: tuple[object, ...]) -> None:
        nonlocal changes, busy
        writes = event == "open" and isinstance(about[2], int) and about[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if busy or not (writes or event in CHANGES) or not str(about[0]).startswith((results, saved)):
            return
        changes += 1
        if changes == moment and act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if changes == moment and act == "fill":
            busy = True
            fill(Path(saved))
            busy = False

    sys.addaudithook(watch)
    checkpoints.CHECKPOINT_SECONDS, checkpoints.SAVING_SHARE = SECONDS, 1.0
    sys.argv[:] = ["reproduce.py", *sys.argv[3:]]
    try:
        reproduce.main()
    finally:
        print(f"{changes} changes", flush=True)


if __name__ == "__main__":
    main()
