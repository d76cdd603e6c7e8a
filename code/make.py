"""Everything that is generated: results, documents, notebooks, and what comes with the repository.

python code/make.py summary                  records -> summary, tables, figures, the blocks of pages
python code/make.py documents                summary -> the report and the poster as PDF
python code/make.py notebooks 01 07          sources -> executed notebooks, these or all
python code/make.py check                    is all of it what the records give?
python code/make.py subspaces smollm2-135m   adapters that runs kept -> results/subspaces (section 7)
python code/make.py costs                    what the paper's runs take, by arithmetic -> data/paper_costs.csv
python code/make.py gpu-check                can this GPU be trusted with them, and in how many hours? -> results/gpu
python code/make.py base-model --corpus DIR  pre-trains gpt2-mini, in a few hours on two CPU cores
python code/make.py card                     the card of gpt2-mini
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

import files
from files import MODELS, results_are_own


def make_summary(arguments: argparse.Namespace) -> None:
    from publish.pages import write_pages
    from publish.result_files import write_results

    print(write_results())
    if results_are_own():
        write_pages()


def make_documents(arguments: argparse.Namespace) -> None:
    from publish.report import write_documents

    print(*write_documents(), sep="\n")


def make_notebooks(arguments: argparse.Namespace) -> None:
    from publish import notebooks

    sources = notebooks.chosen(arguments.notebooks)
    if arguments.check:
        notebooks.check(sources)
    else:
        notebooks.build_all(sources, arguments.unchanged)
    print(f"{len(sources)} notebooks {'agree with their sources' if arguments.check else 'built'}")


def rescore(arguments: argparse.Namespace) -> None:
    from runs.rescore import rescore

    print(f"records that lacked a score: {rescore(arguments.scale, arguments.data_dir)}")


def make_subspaces(arguments: argparse.Namespace) -> None:
    from analysis.subspace_measurement import measured
    from analysis.subspace_records import path_of
    from publish.subspace_sheets import as_text

    print(as_text(measured(arguments.base, arguments.seeds, arguments.data_dir)))
    print(f"kept in {path_of(arguments.base)}; delete it to measure anew")


def make_costs(arguments: argparse.Namespace) -> None:
    from costs.paper_costs import write_costs

    print(write_costs())


def check_gpu(arguments: argparse.Namespace) -> None:
    from costs.gpu_check import GpuCheck, require_gpu
    from runs.records import provenance

    GpuCheck(require_gpu()).run(provenance())


def make_card(arguments: argparse.Namespace) -> None:
    from publish.model_card import write_card

    print(write_card())


def make_adapters(arguments: argparse.Namespace) -> None:
    from publish.shipped_adapters import SHIPPED, ship

    print(*map(ship, SHIPPED), sep="\n")


def make_base_model(arguments: argparse.Namespace) -> None:
    from training.pretrain_gpt2_mini import pretrain

    facts = pretrain(arguments.corpus, arguments.steps, arguments.output, arguments.start_from)
    print(json.dumps(facts, indent=2, ensure_ascii=False))


def check(arguments: argparse.Namespace) -> None:
    from publish.check import check

    print(check())


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("summary", help="tables, figures and the blocks of pages, from the records")
    command.set_defaults(call=make_summary)
    command = commands.add_parser("documents", help="the report and the poster as PDF, from the summary")
    command.set_defaults(call=make_documents)
    command = commands.add_parser("notebooks", help="executed notebooks, from their sources")
    command.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="such as 01 or 07_results (default: all)")
    mode = command.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="execute nothing, compare sources and notebooks")
    mode.add_argument("--unchanged", action="store_true", help="fail if a notebook shows other words than before")
    command.set_defaults(call=make_notebooks)
    command = commands.add_parser("rescore", help="scores that are newer than a record, from the record's texts")
    command.add_argument("--scale", choices=("cpu", "paper"), default="cpu", help="(default: cpu)")
    command.add_argument("--data-dir", type=Path, help="folder with e2e/; else LORA_DATA_DIR, data/cache, the internet")
    command.set_defaults(call=rescore)
    command = commands.add_parser("subspaces", help="what the adapters of a base share (section 7)")
    command.add_argument("base", help="such as smollm2-135m, whose runs of r=1, 8 and 64 are recorded")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="two or more (default: 0 1 2)")
    command.add_argument("--data-dir", type=Path, help="folder with models/; else LORA_DATA_DIR, data/cache")
    command.set_defaults(call=make_subspaces)
    command = commands.add_parser("costs", help="what the paper's runs take, by arithmetic")
    command.set_defaults(call=make_costs)
    command = commands.add_parser("gpu-check", help="six minutes that tell what the paper's runs take on this GPU")
    command.set_defaults(call=check_gpu)
    command = commands.add_parser("card", help="the card of gpt2-mini, from what its pre-training measured")
    command.set_defaults(call=make_card)
    command = commands.add_parser("adapters", help="the adapters that come with the repository, from their runs")
    command.set_defaults(call=make_adapters)
    command = commands.add_parser("base-model", help="pre-trains gpt2-mini; continues from its last checkpoint")
    command.add_argument("--corpus", type=Path, required=True, help="folder of *.txt or *.txt.gz files")
    command.add_argument("--steps", type=int, default=8000, help="batches of 16 x 256 tokens (default: 8000)")
    command.add_argument("--output", type=Path, default=MODELS / "gpt2-mini", help="(default: data/models/gpt2-mini)")
    command.add_argument("--start-from", type=Path, help="folder of an earlier model, if its checkpoint is gone")
    command.set_defaults(call=make_base_model)
    command = commands.add_parser("check", help="compares what is generated with what the records give, byte for byte")
    command.set_defaults(call=check)
    return parser


def main() -> None:
    files.show_any_text()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    arguments = parser().parse_args()
    try:
        arguments.call(arguments)
    except KeyboardInterrupt:
        sys.exit("\nstopped; run the same command again")
    except (OSError, ValueError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
