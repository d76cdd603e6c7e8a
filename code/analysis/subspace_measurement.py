"""The subspaces of trained adapters, measured where runs keep them: figures 3 and 4, and Table 7, on models at hand.

    measured("smollm2-135m", seeds=[0, 1, 2])    # of the first, middle and last layer; kept in results/subspaces

Adapters lie outside git (`runs/run.py`). What is kept is small and names the runs, with the SHA-256 of each adapter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapter_files import WEIGHTS_FILE, base_fingerprint
from analysis.subspace_records import LARGE, NORMS, Measured, dimensions, path_of, read, row_of
from analysis.subspaces import amplification, similarities
from experiments.subspaces import RANKS
from families import layers
from files import write_json
from lora import lora_layers, projections, remove_lora
from methods.saved import load_adapter
from models import load_model
from runs import records
from runs.run import Run

DIGITS = 6


def measured(base: str, seeds: Sequence[int], data_dir: Path | None = None) -> Measured:
    """The measurement of a base: the one that is kept, whatever its seeds, else `measure`, which is then kept."""
    if (kept := read(base)) is None:
        write_json(path_of(base), measure(base, seeds, data_dir), new=True)
        kept = read(base)
    return kept


def measure(base: str, seeds: Sequence[int], data_dir: Path | None = None) -> Measured:
    """Compare the adapters of a base at all RANKS and these seeds; see `subspace_records.py` for what is kept.

    Raises ValueError for fewer than two seeds, where a run is not recorded or its adapter is not on this machine, and
    where an adapter is damaged or of other weights.
    """
    seeds = sorted(set(seeds))
    if len(seeds) < 2:
        raise ValueError(f"expected two seeds or more, to compare them; found {seeds}")
    runs = {(rank, seed): Run(row_of(base, rank), seed, data_dir) for rank in RANKS for seed in seeds}
    _require_adapters(list(runs.values()))
    model = load_model(base, data_dir=data_dir)
    fingerprint, A_by_run, amplified = base_fingerprint(model), {}, []
    for (rank, seed), run in runs.items():
        for matrix, W, A, delta in _learnt(model, run.adapter):
            A_by_run[matrix, rank, seed] = A
            norms = (torch.linalg.norm(W).item(), torch.linalg.norm(delta).item(), *amplification(W, delta, rank))
            row = {"matrix": matrix, "rank": rank, "seed": seed}
            amplified.append(row | dict(zip(NORMS, map(_rounded, norms), strict=True)))
    return {
        "base": base, "scale": row_of(base, LARGE).scale,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"), **records.provenance(),
        "base_fingerprint": fingerprint, "seeds": seeds, "runs": [_origin(run) for run in runs.values()],
        "similarities": list(_similarities(A_by_run, seeds)), "amplifications": amplified,
    }  # fmt: skip


def _require_adapters(runs: list[Run]) -> None:
    if lacking := [run for run in runs if not run.recorded]:
        commands = "\n  ".join(
            f"python code/reproduce.py run {run.experiment.name} --seed {run.seed}" for run in lacking
        )
        raise ValueError(f"expected {len(runs)} recorded runs, {len(lacking)} are not measured yet:\n  {commands}")
    if lacking := [run for run in runs if not run.adapter.exists()]:
        raise ValueError(
            f"expected the adapters of {len(runs)} runs, found none of {lacking[0]} in {lacking[0].adapter}; name the "
            f"folder that holds `adapters` with LORA_CHECKPOINT_DIR, or delete {lacking[0].record} and run it again"
        )
    for run in runs:
        run.require_own_adapter()


def _learnt(model: nn.Module, adapter: Path) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """("layer 0 query", W, A, delta W) and so on, of the first, middle and last layer; the model stays plain."""
    load_adapter(model, adapter)
    body = layers(model)
    for number in sorted({0, len(body) // 2, len(body) - 1}):
        for name, layer in lora_layers(body[number]).items():
            adapted = [projection for projection in projections(name) if projection in layer.config.targets]
            Bs = layer.lora_B.detach().split(layer.part_size)
            for projection, (rows, columns), B in zip(adapted, layer.blocks, Bs, strict=True):
                A = layer.lora_A.detach()[columns]
                delta = layer.scaling * B.double() @ A.double()  # in float32, small directions would drown in rounding
                yield f"layer {number} {projection}", layer.weight.detach()[rows], A, delta
    remove_lora(model)


def _similarities(A_by_run: dict[tuple[str, int, int], Tensor], seeds: list[int]) -> Iterator[dict[str, Any]]:
    """The grids of each matrix: the lower ranks with the largest, then each two seeds; and of random matrices."""
    by_seed = {
        matrix: {seed: A_by_run[matrix, LARGE, seed] for seed in seeds}
        for matrix in dict.fromkeys(key[0] for key in A_by_run)
    }
    for matrix, large in by_seed.items():
        for rank in RANKS[:-1]:
            for seed in seeds:
                grid = _grid(A_by_run[matrix, rank, seed], large[seed])
                yield {"kind": "ranks", "matrix": matrix, "rank": rank, "seeds": [seed, seed], "grid": grid}
    width = next(iter(A_by_run.values())).shape[1]  # query and value read the same hidden state
    generators = {seed: torch.Generator().manual_seed(seed) for seed in seeds}
    random = {seed: torch.randn(LARGE, width, generator=generator) for seed, generator in generators.items()}
    for matrix, large in (by_seed | {"random": random}).items():
        kind = "random" if matrix == "random" else "seeds"
        for one, other in combinations(seeds, 2):
            grid = _grid(large[one], large[other])
            yield {"kind": kind, "matrix": matrix, "rank": LARGE, "seeds": [one, other], "grid": grid}


def _grid(A1: Tensor, A2: Tensor) -> list[list[float]]:
    return [[_rounded(value) for value in row] for row in similarities(A1, A2, *(dimensions(len(A)) for A in (A1, A2)))]


def _rounded(value: float) -> float:
    return round(value, DIGITS)


def _origin(run: Run) -> dict[str, Any]:
    sha256 = hashlib.sha256((run.adapter / WEIGHTS_FILE).read_bytes()).hexdigest()
    commit = records.read_record(run.record).get("git_commit")
    return {"experiment": run.experiment.name, "seed": run.seed, "git_commit": commit, "adapter_sha256": sha256}
