"""What opens a file in `code/`: every reader is listed here, and none runs code that it finds in a file.

`tests/breaking/test_no_pickle.py` plants a pickle in every place that one of READERS looks at.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter

import pytest

from files import ROOT
from test_layers import CODE

READERS = {  # module: call -> how often it stands there; each is of a library that reads more formats than plain text
    "adapter_files.py: safe_open": 1,
    "costs/benchmark_serving.py: PeftModel.from_pretrained": 1,  # what the benchmark has just written
    "files.py: ZipFile": 1,
    "methods/released_adapters.py: ZipFile": 1,
    "methods/released_adapters.py: torch.load": 1,
    "models.py: AutoTokenizer.from_pretrained": 1,
    "models.py: getattr(transformers, FAMILIES[entry.family].model).from_pretrained": 1,
    "tasks/glue/data.py: pd.read_parquet": 1,
    "training/pretrain_corpus.py: ByteLevelBPETokenizer": 2,
    "training/pretrain_corpus.py: np.load": 1,
    "training/pretrain_gpt2_mini.py: load_file": 1,
    "training/pretrain_gpt2_mini.py: torch.load": 1,
    "training/trainer.py: load_file": 1,
    "training/trainer.py: trainer.train": 1,  # resume_from_checkpoint: optimizer, schedule and random states
}
PLAIN = {"json.load", "json.loads", "pd.read_csv", "csv.reader", "csv.DictReader"}  # formats that hold no code
READS = re.compile(r"(?:^|\.)(?:load|loads|load_\w+|read_\w+|from_pretrained|from_file|safe_open|ZipFile|unpack_\w+)$")
TEXT = {
    "read_text",
    "read_bytes",
    "load_state_dict",
    "load",
}  # of paths and modules, and what an entry calls its loader
RUN_CODE = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle", "yaml", "runpy"}
REGISTER = "ray.cloudpickle.register_pickle_by_value"  # for Ray's own messages between its nodes
RUNNERS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}


def modules() -> dict[str, ast.Module]:
    paths = sorted(CODE.rglob("*.py"))
    return {path.relative_to(CODE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def calls(tree: ast.AST) -> list[tuple[str, dict[str, str]]]:
    """Each call as it is written, (what is called, its named arguments)."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(n.func), {k.arg: ast.unparse(k.value) for k in n.keywords if k.arg}) for n in nodes]


def our_functions() -> set[str]:
    """The names of all functions in `code/`; what they open, they open by a reader that is found where it stands."""
    return {node.name for tree in modules().values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def is_reader(call: str, arguments: dict[str, str], ours: set[str]) -> bool:
    library = call.startswith(("torch.", "np.", "pd.", "joblib.", "datasets.", "evaluate."))
    reads = READS.search(call) and (library or call.rpartition(".")[2] not in ours | TEXT)
    return call not in PLAIN and bool(reads or "resume_from_checkpoint" in arguments or call == "ByteLevelBPETokenizer")


def unsafe(tree: ast.AST) -> list[str]:
    """What could run code from a file, as it is written."""
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        module = getattr(node, "module", None) or ""
        modules = [module] if isinstance(node, ast.ImportFrom) else names
        if RUN_CODE & {name.split(".")[0] for name in modules} and names != ["UnpicklingError"]:
            found.append(ast.unparse(node))
    for call, arguments in calls(tree):
        wrong = call in RUNNERS or ("pickle" in call.lower() and call != REGISTER)
        wrong |= call == "torch.load" and arguments.get("weights_only") != "True"
        wrong |= arguments.get("allow_pickle", "False") != "False"
        wrong |= arguments.get("trust_remote_code", "False") != "False"
        wrong |= call == "AutoTokenizer.from_pretrained" and "trust_remote_code" not in arguments  # it would ask
        wrong |= arguments.get("shell", "False") != "False"
        if wrong:
            found.append(call)
    return found


def test_every_reader_of_files_is_known():
    ours = our_functions()
    each = [(path, *call) for path, tree in modules().items() for call in calls(tree)]
    found = Counter(f"{path}: {call}" for path, call, arguments in each if is_reader(call, arguments, ours))
    assert dict(found) == READERS


@pytest.mark.parametrize("source", [
    "torch.load(f)", "datasets.load_dataset('x')", "load_dataset('x')", "evaluate.load('x')", "np.load(f)",
    "GPT2Config.from_pretrained(f)", "pd.read_hdf(f)", "x.read_excel(f)", "load_file(f)", "Tokenizer.from_file(f)",
    "load_from_disk(f)", "t.train(resume_from_checkpoint=c)",
])  # fmt: skip
def test_a_new_reader_would_be_noticed(source):
    [(call, arguments)] = calls(ast.parse(source))
    assert is_reader(call, arguments, our_functions())


def test_nothing_runs_code_that_is_in_a_file():
    assert {path: found for path, tree in modules().items() if (found := unsafe(tree))} == {}


@pytest.mark.parametrize("source", [
    "import pickle", "from pickle import loads", "import dill as d", "from joblib import load", "torch.load(f)",
    "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "pd.read_pickle(f)", "exec(text)",
    "x.from_pretrained(f, trust_remote_code=True)", "AutoTokenizer.from_pretrained(f)", "ray.cloudpickle.loads(b)",
    "subprocess.run(command, shell=True)",
])  # fmt: skip
def test_what_runs_code_would_be_noticed(source):
    assert unsafe(ast.parse(source))


# What is published ------------------------------------------------------------------------------------------------

OF_A_MACHINE = {
    "a token": r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|\bsk-[A-Za-z0-9_-]{24,}|\bxox[abprs]-\w{10,}|-----BEGIN [A-Z ]*PRIVATE KEY|\bglpat-[\w-]{20}"
    r"|(?i:\b(?:authorization|api[_-]?key|password)\"?\s*[:=]\s*\"?[\w+/-]{8,})",
    "a path": r"(?<![\w.:/~}*-])/(?:root|home|work|Users|mnt|private|var|opt|srv|scratch|data|content/drive)/\w[\w./-]*"
    r"|\b[A-Za-z]:\\{1,2}(?:Users|Windows|Program|home)\b",
    "a host": r"\b(?:localhost|(?!0\.0\.0\.0)(?:\d{1,3}\.){3}\d{1,3}):\d{2,5}\b|(?<=\w)\.(?:internal|local|lan|corp)\b"
    r"|\bip-\d+-\d+-\d+-\d+\b",
}  # fmt: skip
PUBLISHED = ("README.md", "notebooks", "results", "report", "poster", "data", "Makefile", "CITATION.cff")
EXAMPLES = {"/content/drive/MyDrive"}  # where Colab mounts a drive


def of_a_machine(text: str) -> list[str]:
    found = [(kind, match[0]) for kind, pattern in OF_A_MACHINE.items() for match in re.finditer(pattern, text)]
    return [f"{kind}: {words}" for kind, words in found if not words.startswith(tuple(EXAMPLES))]


def published_texts(without: str = "nothing") -> dict[str, str]:
    """The text of every published file by its name, but for weights, documents and pictures."""
    listed = subprocess.run(["git", "ls-files", "-z", *PUBLISHED], cwd=ROOT, capture_output=True, check=True).stdout
    names = [name for name in listed.decode().split("\0") if name and not name.startswith(without)]
    names = [name for name in names if not name.endswith((".safetensors", ".pdf", ".png"))]
    return {name: (ROOT / name).read_bytes().decode("utf-8", errors="ignore") for name in names}


def test_nothing_published_names_a_token_a_path_or_a_host_of_a_machine():
    texts = published_texts(without="results/predictions")  # these, too, in tests/breaking
    assert len(texts) > 100
    assert {name: found for name, text in texts.items() if (found := of_a_machine(text))} == {}


@pytest.mark.parametrize("text", [
    '"path": "|root|project|results"', "in |home|someone|lora", "(|Users|someone|x.py)", "C:<<Users<<someone",
    "hf_" + "a1B2" * 8, "ghp_" + "x" * 36, "http://localhost:8888/lab", "on 10.0.0.12:6379", "ip-10-0-0-1",
    "node7.internal", "api_key = 'no'\nAPI_KEY=abcdefgh12",
])  # fmt: skip
def test_what_is_of_a_machine_would_be_noticed(text):
    assert of_a_machine(text.replace("|", "/").replace("<", "\\"))  # so that no path of a machine stands in this file
