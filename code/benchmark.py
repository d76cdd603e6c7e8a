"""Speed and memory as ratios against a peer, in one run.

    python code/benchmark.py step       a LoRA training step of GPT-2 small against PEFT's
    python code/benchmark.py decode     batched beam search against one `generate` of transformers an input
    python code/benchmark.py metrics    the E2E metrics with and without METEOR's jar
    python code/benchmark.py glue       an epoch and a step of MiniLM and RoBERTa-base on MRPC
    python code/benchmark.py smollm2-step, smollm2-losses, smollm2-decode
                                        SmolLM2-135M in bfloat16 against the plain step and search, and PEFT's
    python code/benchmark.py training   a LoRA step beside the frozen model, PEFT, loralib and full fine-tuning
    python code/benchmark.py profile    where the time of a LoRA step goes that the frozen model does not take
    python code/benchmark.py memory     what training GPT-2 medium takes above its weights: LoRA and full fine-tuning
    python code/benchmark.py precision  SmolLM2-135M's LoRA step with the base in float32, bfloat16, int8, compiled ...
    python code/benchmark.py latency    Table 1: GPT-2 medium with LoRA merged and not, and with adapters
    python code/benchmark.py adapters   to merge, unmerge, load and switch adapters; the storage of ten tasks
    python code/benchmark.py serving, serving-beams, serving-requests
                                        a batch over many adapters against one, and PEFT's; 1,000 mixed requests

Absolute times depend on the machine; the ratios are what is claimed. Repetitions of the variants
alternate, medians are printed, and `results/benchmark/` keeps them.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import files
from costs import (
    benchmark_e2e,
    benchmark_glue,
    benchmark_latency,
    benchmark_precision,
    benchmark_profile,
    benchmark_serving,
    benchmark_smollm2,
    benchmark_training,
)
from costs.timing import apart
from files import write_json
from runs.records import provenance

PEERS = ("peft", "loralib", "accelerate")
BENCHMARKS = {  # name -> benchmark, its usual repetitions; None: it is done once
    "step": (benchmark_e2e.step, 15),
    "decode": (benchmark_e2e.decode, 3),
    "metrics": (benchmark_e2e.metrics, 3),
    "glue": (benchmark_glue.glue, 15),
    "smollm2-step": (benchmark_smollm2.step, 9),
    "smollm2-losses": (benchmark_smollm2.losses, None),
    "smollm2-decode": (benchmark_smollm2.decode, 1),
    "training": (benchmark_training.training, 15),
    "memory": (benchmark_training.memory, None),
    "profile": (benchmark_profile.profile, 9),
    "precision": (benchmark_precision.precision, 9),
    "latency": (benchmark_latency.latency, 15),
    "adapters": (benchmark_latency.adapters, 9),
    "serving": (benchmark_serving.mixed, 9),
    "serving-beams": (benchmark_serving.beams, 5),
    "serving-requests": (benchmark_serving.requests, None),
}


def main() -> None:
    files.show_any_text()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", default=[*BENCHMARKS], choices=BENCHMARKS, help="all when none is named")
    parser.add_argument("--repetitions", type=int, help="of each variant, instead of the usual ones (1 to 15)")
    parser.add_argument("--data-dir", type=Path, help="folder with e2e/*.csv; else LORA_DATA_DIR, data/cache")
    arguments = parser.parse_args()
    if arguments.repetitions is not None and arguments.repetitions < 1:
        parser.error(f"--repetitions must be 1 or more, found {arguments.repetitions}")
    try:
        files.check_room(files.RESULTS)  # before anything is measured
    except OSError as error:
        sys.exit(f"error: {error}")
    for name in arguments.which:
        call, usual_repetitions = BENCHMARKS[name]
        repetitions = (arguments.repetitions or usual_repetitions) if usual_repetitions else 1
        measured = apart(call, repetitions, arguments.data_dir)  # what one allocates, the next does not find
        how = f"median of {repetitions}, taking turns" if repetitions > 1 else "once"
        print(f"{name} ({torch.get_num_threads()} threads, {how})")
        for quantity, value in measured.items():
            median, *interval = value if isinstance(value, list) else [value]
            print(f"  {quantity:58} {median:8.3f} {'..'.join(f'{end:.3f}' for end in interval)}", flush=True)
        on_gpu = name == "latency" and torch.cuda.is_available()  # the others run on the processor everywhere
        facts = {"device": torch.cuda.get_device_name() if on_gpu else "cpu", "threads": torch.get_num_threads()}
        facts |= {"repetitions": repetitions, "peers": {peer: version(peer) for peer in PEERS}, **provenance()}
        place = files.RESULTS / "benchmark" / f"{name}{'-gpu' * on_gpu}.json"
        write_json(place, {"measured": measured, **facts})


if __name__ == "__main__":
    main()
