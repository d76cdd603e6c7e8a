"""The house of `code/`: a folder imports only from folders to its left, as the imports are written."""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from files import ROOT

CODE = ROOT / "code"
# From left to right; what stands between two bars does not import each other.
HOUSE = (
    "files lora batch_rows | adapter_files | families | models experiments | methods | training | tasks | serving | "
    "runs costs | analysis | publish | reproduce train benchmark demo make colab notebook_tools"
)
PLACE = {room: place for place, rooms in enumerate(HOUSE.split("|")) for room in rooms.split()}
OPTIONAL = {"torchao", "ray", "gradio", "google"}  # asked for where they are needed; the last is Colab
DISTRIBUTIONS = {"sklearn": "scikit-learn", "IPython": "ipython", "pyter": "pyter3"}  # by the name that is imported
MOST_LINES = {"lora.py": 200}  # to be read in one sitting
LINES = 300  # of every other module
FORBIDDEN = {"utils", "helpers", "common", "misc"}  # drawers for everything


def imports(source: str) -> set[str]:
    """The first part of every imported module's name, wherever in the file the import stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0] if node.level == 0 else ".")
    return names


def sources(code: Path) -> dict[str, str]:
    """{path below code/: source} of every module; the `evaluate` module is run by that library, from its own copy."""
    paths = (path.relative_to(code) for path in sorted(code.rglob("*.py")))
    return {
        path.as_posix(): (code / path).read_text(encoding="utf-8")
        for path in paths
        if "evaluate_modules" not in path.parts
    }


def breaches(code: Path) -> list[str]:
    found = []
    for path, source in sources(code).items():
        room, *rest = path.removesuffix(".py").split("/")
        if path == "__init__.py":
            found.append("__init__.py: code/ must not be a package, it would hide the standard library's `code`")
            continue
        if room in sys.stdlib_module_names or PathFinder.find_spec(room, [sysconfig.get_path("purelib")]):
            found.append(f"{path}: hides the installed module `{room}`; choose another name")
        if FORBIDDEN & {room, *rest}:
            found.append(f"{path}: a drawer for everything; name it after the one thing that it holds")
        if room not in PLACE:
            found.append(f"{path}: {room} has no place in the house; give it one in HOUSE of tests/test_layers.py")
            continue
        for name in sorted(imports(source)):
            if name == ".":
                found.append(f"{path}: relative import; modules import each other by name")
            elif name in PLACE and name != room and PLACE[name] >= PLACE[room]:
                found.append(f"{path}: imports {name}, which is not to the left of {room}")
        if (lines := len(source.splitlines())) > (most := MOST_LINES.get(path, LINES)):
            found.append(f"{path}: {lines} lines, at most {most} are allowed")
    for folder in sorted({path.rpartition("/")[0] for path in sources(code)} - {""}):
        if not ast.get_docstring(ast.parse(sources(code).get(f"{folder}/__init__.py", ""))):
            found.append(
                f"{folder}/__init__.py: no docstring; without that file an installed package of that name would win"
            )
    return found


def test_every_folder_imports_only_from_folders_to_its_left():
    assert breaches(CODE) == []


def test_the_doors_of_a_notebook_and_the_commands_are_imported_by_nobody():
    doors = {room for room in PLACE if PLACE[room] == max(PLACE.values())}
    importers = {path: imports(source) & doors for path, source in sources(CODE).items()}
    assert {path: names for path, names in importers.items() if names} == {}


ALLOWED = {
    "files.py": "import os",
    "lora.py": "import torch\n" * 200,
    "adapter_files.py": "from lora import add_lora",
    "models.py": "import files",
    "tasks/__init__.py": '"""What is learnt."""',
    "tasks/catalogue.py": "import models\nfrom tasks.metrics import score",
    "tasks/metrics.py": "",
    "runs/__init__.py": '"""One run."""',
    "runs/execute.py": "from tasks import catalogue",
    "reproduce.py": "import os.path\ndef main():\n    from runs.execute import do",
}


def write(code: Path, files: dict[str, str]) -> Path:
    for path, source in files.items():
        (code / path).parent.mkdir(exist_ok=True)
        (code / path).write_text(source, encoding="utf-8")
    return code


def test_a_tree_that_keeps_the_rule_has_no_breach(tmp_path):
    assert breaches(write(tmp_path, ALLOWED)) == []


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("lora.py", "import files", "imports files, which is not to the left of lora"),
        ("lora.py", "import adapter_files", "imports adapter_files, which is not to the left of lora"),
        ("tasks/metrics.py", "from runs.execute import do", "imports runs, which is not to the left of tasks"),
        ("tasks/metrics.py", "def f():\n    import reproduce", "imports reproduce, which is not to the left of tasks"),
        ("lora.py", "\n" * 201, "201 lines, at most 200 are allowed"),
        ("tasks/metrics.py", "\n" * 301, "301 lines, at most 300 are allowed"),
        ("tasks/metrics.py", "from . import catalogue", "relative import; modules import each other by name"),
        ("surprise.py", "", "surprise has no place in the house; give it one in HOUSE of tests/test_layers.py"),
        ("tasks/utils.py", "", "a drawer for everything; name it after the one thing that it holds"),
        ("__init__.py", "", "code/ must not be a package, it would hide the standard library's `code`"),
        ("tasks/__init__.py", "", "no docstring; without that file an installed package of that name would win"),
    ],
)  # fmt: skip
def test_each_breach_of_the_rule_is_named(tmp_path, path, source, message):
    assert breaches(write(tmp_path, ALLOWED | {path: source})) == [f"{path}: {message}"]


@pytest.mark.parametrize("module", ["statistics", "datasets"])
def test_a_module_may_not_hide_one_that_can_be_imported(tmp_path, module):
    found = breaches(write(tmp_path, ALLOWED | {f"{module}.py": ""}))
    assert f"{module}.py: hides the installed module `{module}`; choose another name" in found


@pytest.mark.parametrize("module", ["benchmark", "everything else"])
def test_every_package_that_the_code_imports_is_in_its_requirements(module):
    requirements = ["requirements.txt", "tests/requirements.txt"] if module == "benchmark" else ["requirements.txt"]
    written = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in requirements)
    required = set(re.findall(r"^[\w-]+", written, re.MULTILINE))
    chosen = [source for path, source in sources(CODE).items() if ("benchmark" in path) == (module == "benchmark")]
    foreign = set().union(*map(imports, chosen)) - sys.stdlib_module_names - PLACE.keys() - OPTIONAL
    distributions = {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in foreign}
    assert "torch" in distributions and distributions <= required
