"""The layers of `code/`: what each module may import, checked from the imports as they are written.

leaf < declaration < doing < verb: a module imports from lower layers and, unless it is a leaf or a verb,
from its own. Nothing imports a verb.
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from paths import ROOT

CODE = ROOT / "code"
LAYERS = {
    "leaf": "lora baselines smoothed_loss nlg_metrics meteor ptb_tokenizer slot_matching statistics_seeds paths "
    "ngram_baseline e2e_generator glue_generator glue_metrics colab",
    "declaration": "tasks settings experiments experiments_e2e experiments_glue experiments_methods "
    "experiments_pitfalls data_tables data_places glue_data e2e_data models",
    "doing": "methods rank_schedule rank_allocation stacked_lora batches machine optimizer sittings training "
    "generation evaluation records released_adapters e2e_run glue_run work runs workers sweeps costs parameter_counts "
    "quantities paper_values summary summary_tables result_tables summary_files figure_data figure_style "
    "figures session timing benchmark_e2e benchmark_glue claims differences document_tables documents",
    "verb": "reproduce train benchmark pretrain_gpt2_mini",
}
LAYER = {module: layer for layer, modules in LAYERS.items() for module in modules.split()}
MAY_IMPORT = {
    "leaf": set(),
    "declaration": {"leaf", "declaration"},
    "doing": {"leaf", "declaration", "doing"},
    "verb": {"leaf", "declaration", "doing"},
}
PARTS = {"nlg_metrics": {"meteor", "ptb_tokenizer", "slot_matching"}}  # one leaf in four files
OPTIONAL = {"ray", "google"}  # `--engine ray` says how to install the one, the other is part of Colab
DISTRIBUTIONS = {"sklearn": "scikit-learn", "IPython": "ipython"}  # by the name that is imported
LORA_LINES = 250  # to be read in one sitting


def layer_of(module: str) -> str | None:
    return "verb" if module.startswith("make_") else LAYER.get(module)


def imports(source: str) -> set[str]:
    """The first part of every imported module's name, wherever in the file the import stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0] if node.level == 0 else ".")
    return names


def violations(code: Path) -> list[str]:
    modules = {path.stem: imports(path.read_text(encoding="utf-8")) for path in sorted(code.glob("*.py"))}
    found = []
    for module, imported in modules.items():
        if module == "__init__":
            found.append("__init__.py: code/ must not be a package, it would hide the standard library's `code`")
            continue
        if module in sys.stdlib_module_names or PathFinder.find_spec(module, [sysconfig.get_path("purelib")]):
            found.append(f"{module}.py: hides the installed module `{module}`; choose another name")
        if (layer := layer_of(module)) is None:
            found.append(f"{module}.py: in no layer; list it in LAYERS of tests/test_layers.py")
            continue
        for name in sorted(imported & modules.keys() - PARTS.get(module, set())):
            if layer_of(name) not in MAY_IMPORT[layer]:
                found.append(f"{module}.py: a {layer} may not import {name} ({layer_of(name) or 'in no layer'})")
        if "." in imported:
            found.append(f"{module}.py: relative import; the modules of code/ import each other by name")
    if "lora" in modules and (lines := len((code / "lora.py").read_text(encoding="utf-8").splitlines())) > LORA_LINES:
        found.append(f"lora.py: {lines} lines, at most {LORA_LINES} are allowed")
    return found


def test_every_module_imports_only_what_its_layer_may():
    assert violations(CODE) == []


ALLOWED = {
    "paths": "import os",
    "lora": "import torch\n" * 250,
    "nlg_metrics": "import ptb_tokenizer\nfrom slot_matching import match",
    "ptb_tokenizer": "",
    "slot_matching": "",
    "tasks": "from paths import ROOT",
    "models": "import tasks",
    "training": "import lora, models, transformers",
    "runs": "import training",
    "reproduce": "import os.path\ndef main():\n    from runs import run",
    "make_tables": "import runs",
}


def write(code: Path, files: dict[str, str]) -> Path:
    for module, source in files.items():
        (code / f"{module}.py").write_text(source, encoding="utf-8")
    return code


def test_a_tree_that_keeps_the_rule_has_no_violation(tmp_path):
    assert violations(write(tmp_path, ALLOWED)) == []


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("lora", "import paths", "lora.py: a leaf may not import paths (leaf)"),
        ("ptb_tokenizer", "import slot_matching", "ptb_tokenizer.py: a leaf may not import slot_matching (leaf)"),
        ("nlg_metrics", "import paths", "nlg_metrics.py: a leaf may not import paths (leaf)"),
        ("tasks", "from training import train", "tasks.py: a declaration may not import training (doing)"),
        ("training", "def f():\n    import reproduce", "training.py: a doing may not import reproduce (verb)"),
        ("benchmark", "import make_tables", "benchmark.py: a verb may not import make_tables (verb)"),
        ("lora", "\n" * 251, "lora.py: 251 lines, at most 250 are allowed"),
        ("tasks", "from . import paths", "tasks.py: relative import; the modules of code/ import each other by name"),
        ("surprise", "", "surprise.py: in no layer; list it in LAYERS of tests/test_layers.py"),
        ("__init__", "", "__init__.py: code/ must not be a package, it would hide the standard library's `code`"),
    ],
)
def test_each_breach_of_the_rule_is_named(tmp_path, module, source, message):
    assert violations(write(tmp_path, ALLOWED | {module: source})) == [message]


@pytest.mark.parametrize("module", ["statistics", "datasets"])
def test_a_module_may_not_hide_one_that_can_be_imported(tmp_path, module):
    found = violations(write(tmp_path, ALLOWED | {module: ""}))
    assert f"{module}.py: hides the installed module `{module}`; choose another name" in found


@pytest.mark.parametrize("module", ["benchmark", "everything else"])
def test_every_package_that_the_code_imports_is_in_its_requirements(module):
    files = ["requirements.txt", "tests/requirements.txt"] if module == "benchmark" else ["requirements.txt"]
    written = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files)
    required = set(re.findall(r"^[\w-]+", written, re.MULTILINE))
    sources = [path for path in CODE.glob("*.py") if path.stem.startswith("benchmark") == (module == "benchmark")]
    imported = set().union(*(imports(path.read_text(encoding="utf-8")) for path in sources))
    foreign = imported - sys.stdlib_module_names - LAYER.keys() - OPTIONAL - {path.stem for path in CODE.glob("*.py")}
    distributions = {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in foreign}
    assert "torch" in distributions and distributions <= required
