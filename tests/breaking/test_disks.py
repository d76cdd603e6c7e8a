"""A disk that fills up at a random moment, and folders that cannot be written: said, nothing lost, and it goes on."""

from __future__ import annotations

import random
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from hurt import FILLER
from real_runs import RUNS, new_place, whole

from files import ROOT

DISK_MEGABYTES = 64
MOUNTS = ["unshare", "--map-root-user", "--mount"]


def mounts() -> bool:
    """Whether this system lets a process have disks of its own."""
    return bool(shutil.which("unshare")) and not subprocess.run([*MOUNTS, "true"], capture_output=True).returncode


pytestmark = pytest.mark.skipif(not mounts(), reason="this system gives an ordinary process no disk of its own")


def on_a_disk_of_its_own(place, script):
    """Run shell commands where $DISK is a disk of so many megabytes; what is left on it is copied to the place."""
    disk, kept = place.folder / "disk", place.folder / "kept"
    disk.mkdir()
    before = (
        f"mount -t tmpfs -o size={DISK_MEGABYTES}m none {disk} && export DISK={disk} && cd {shlex.quote(str(ROOT))}"
    )
    after = f"cp -r {disk} {kept}"
    environment = place.environment | {
        "LORA_RESULTS_DIR": f"{disk}/results", "LORA_CHECKPOINT_DIR": f"{disk}/checkpoints",
    }  # fmt: skip
    return subprocess.run(
        [*MOUNTS, "sh", "-c", f"{before}\n{script}\n{after}"], env=environment, capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.parametrize("kind", ["E2E", "GLUE"])
def test_a_disk_that_fills_up_at_a_random_moment_is_said_and_the_run_goes_on_when_there_is_room(kind, tally):
    draw, reference = random.Random(kind), whole(kind)
    hurt = f"{shlex.quote(sys.executable)} tests/breaking/hurt.py"
    for _ in range(10):
        place, moment = new_place(), draw.randint(3, reference.changes)
        done = on_a_disk_of_its_own(
            place,
            f"{hurt} fill {moment} run {RUNS[kind]} > $DISK.full.txt 2>&1; echo status $?\n"
            f"rm $DISK/checkpoints/{FILLER}\n{hurt} count 0 run {RUNS[kind]}",
        )
        said = (place.folder / "disk.full.txt").read_text()
        [status] = re.findall("status (\\d+)", done.stdout)
        assert done.returncode == 0, done.stderr
        kept = type(place)(place.folder / "kept")
        assert kept.outcomes() == reference.outcome
        if status == "0":  # only what nobody needs was not written
            tally("disks", f"full from a random moment, {kind}", "the run ended whole")
            continue
        assert re.search(r"error: .*(No space|no space).*", said), said
        assert "Traceback" not in said, said
        tally("disks", f"full from a random moment, {kind}", "said; same scores and adapter once there was room")


@pytest.mark.parametrize("folder", ["results", "checkpoints"])
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_trained(folder, tally):
    place = new_place()
    done = on_a_disk_of_its_own(
        place,
        f"mkdir $DISK/{folder} && mount -t tmpfs -o ro none $DISK/{folder}\n"
        f"{shlex.quote(sys.executable)} code/reproduce.py run {RUNS['GLUE']}; echo status $?",
    )
    assert "status 1" in done.stdout and re.search(r"error: .*Read-only", done.stderr), done.stderr
    assert "Traceback" not in done.stderr and "it/s" not in done.stderr
    tally("disks", f"{folder} on a read-only disk", "said before training")
