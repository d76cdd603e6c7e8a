# %% [markdown]
# # Costs and many tasks
#
# *What does one more task cost, and can tasks share one batch?* These are sections 3 and 4.2 of the paper, and Table 1.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/lora-reproduced/blob/main/notebooks/08_costs_and_many_tasks.ipynb)
#
# The paper names one limit of LoRA. Pairs that are merged into the weights add no time, but then a batch serves only
# one task. If the pairs are not merged, each row of a batch can have its own. Here two tasks are learnt. Then one batch
# holds rows of both tasks and of the plain model.

# %%
# Set-up. On Colab: fetch the code and install what is missing. Elsewhere: find the code, no more.
import os
import subprocess
import sys
from pathlib import Path

ON_COLAB = "google.colab" in sys.modules
if ON_COLAB:
    root, url = Path("lora"), os.environ.get("LORA_REPOSITORY", "https://github.com/OWNER/lora-reproduced")
    clone = ["git", "clone", "--quiet", "--depth=1", "--branch=main", url, str(root)]
    if not root.exists() and subprocess.run(clone).returncode:
        raise RuntimeError(f"{url} cannot be cloned: write your copy's name in the place of OWNER in this cell")
else:
    root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "code" / "lora.py").exists())
sys.path.insert(0, str(root.resolve() / "code"))
if ON_COLAB:
    from colab import install_missing

    install_missing()

# %%
from colab import keep_in, suitable_scale

SCALE = suitable_scale()  # "paper" on a GPU with bfloat16, "cpu" on an older one such as a T4, else "quick"
SEEDS = [0]  # what is recorded is not trained again; another seed is
BASE, E2E, TRIPLES = {
    "quick": ("gpt2-mini", "gpt2-mini/e2e-builtin/lora-r4", "gpt2-mini/triples-builtin/lora-r4"),
    "cpu": ("smollm2-135m", "smollm2-135m/lora-r4", "smollm2-135m/webnlg-dev/lora-r4"),
    "paper": ("gpt2-medium", "gpt2-medium/lora-r4", "gpt2-medium/webnlg/lora-r4"),
}[SCALE]
CONFIRM = False  # True: begin what takes more than an hour
DRIVE = None  # a folder on Colab's Drive, such as "/content/drive/MyDrive/lora", keeps results and unfinished runs
keep_in(DRIVE)

# %% [markdown]
# ## Two tasks
#
# Both tasks turn facts into a sentence, but write the facts differently. E2E (Table 3) has slots of a restaurant.
# WebNLG (Table 14) has triples of subject, relation and object. At `quick`, small grammars make rows in the same two
# notations.

# %%
import pandas as pd

from notebook_tools import Work
from tasks.catalogue import TASKS

pd.set_option("display.max_colwidth", None)
works = [Work("table3", SCALE, SEEDS, [E2E]), Work("table14", SCALE, SEEDS, [TRIPLES])]
runs = [work.runs[-1] for work in works]
tasks = [TASKS[run.experiment.settings.task] for run in runs]
rows = {task.name: task.load("test", "lora", None) for task in tasks}
pd.DataFrame(
    [(name, row.context, row.reference) for name, examples in rows.items() for row in examples[::9][:2]],
    columns=["task", "what the model reads", "what it shall write"],
)

# %% [markdown]
# ## What a task adds, by arithmetic
#
# The cell counts LoRA with rank 4 on query and value, at four bytes a number. No weights are loaded for that. Expect
# 0.6 MB for GPT-2 small, beside a model of 498 MB. The share falls from one GPT-2 to the next larger one.

# %%
from lora import LoRAConfig, add_lora, count_parameters
from models import architecture

sizes = []
for name in ("gpt2-mini", "smollm2-135m", "gpt2", "gpt2-medium", "gpt2-large"):
    model = architecture(name)
    add_lora(model, LoRAConfig(rank=4))
    pairs, total = count_parameters(model)
    sizes.append((name, f"{4 * (total - pairs) / 1e6:,.1f}", f"{4 * pairs / 1e6:.2f}", f"{pairs / total:.3%}"))
pd.DataFrame(sizes, columns=["base", "MB of the base", "MB of a task", "share"])

# %% [markdown]
# ## Train two adapters

# %%
for work in works:
    work.cost()

# %%
for work in works:
    work.run(CONFIRM)

# %% [markdown]
# Records are in git, adapters are not. So a recorded run whose adapter is missing is trained again.

# %%
from runs.execute import do

for run in runs:
    if run.recorded:
        do(run, for_adapter=True)

# %% [markdown]
# For each task one folder is kept. With GPT-2's packed `c_attn`, the adapter file has zeros where nothing is adapted.
# So it holds twice as many numbers as were trained ([01_lora_by_hand](01_lora_by_hand.ipynb)). A task that is fully
# fine-tuned keeps the whole model.

# %%
whole = 4 * sum(parameter.numel() for parameter in architecture(BASE).parameters())
for run in runs:
    size = sum(file.stat().st_size for file in run.adapter.iterdir())
    print(f"{run.experiment.settings.task:16} {size / 1e6:6.2f} MB, the whole model {whole / 1e6:.2f} MB")

# %% [markdown]
# ## One batch
#
# An `AdapterBank` holds adapters beside a frozen base. Each row of a batch names its adapter; `None` is the base. The
# base's matrices see the whole batch, and to each row its own pair is added. Below, one input of each task goes through
# the base and through both adapters: six rows in one search. Expect the base to write no sentence of the task. Expect
# an adapter to write well only about facts in its own notation.

# %%
from models import load_model, load_tokenizer
from serving.adapters import AdapterBank
from tasks.e2e.beam_search import DecodingSettings, generate

tokenizer, bank = load_tokenizer(BASE), AdapterBank(load_model(BASE).eval())
for run, task in zip(runs, tasks, strict=True):
    bank.add(task.name, run.adapter)
contexts = [examples[0].context for examples in rows.values() for _ in range(3)]
names = [None, *bank.names] * 2
with bank.rows(names):
    answers = generate(bank.model, tokenizer, contexts, DecodingSettings(), progress=False)
texts = [answer.text for answer in answers]
pd.DataFrame({"input": contexts, "adapter": [name or "none" for name in names], "text": texts})

# %% [markdown]
# ## Each row as if it were alone
#
# Now each adapter is merged into a model of its own, which computes the same logits. Expect each row of the batch to
# agree with it up to rounding. The base's row agrees to the last bit.

# %%
import torch

from adapter_files import load_lora
from lora import merge_lora, remove_lora

folders = {task.name: run.adapter for run, task in zip(runs, tasks, strict=True)}
batch = torch.tensor([tokenizer(contexts[0])["input_ids"]] * 3)
with torch.no_grad(), bank.rows(names[:3]):
    mixed = bank.model(batch).logits

# %%
print("base: to the last bit:", torch.equal(mixed[0], load_model(BASE).eval()(batch).logits[0]))
for place, name in enumerate(names[1:3], start=1):
    merged = load_model(BASE).eval()
    load_lora(merged, folders[name])
    merge_lora(merged)
    remove_lora(merged)  # the plain architecture again: nothing is left that could take time
    with torch.no_grad():
        alone = merged(batch).logits[place]
    print(f"{name}, merged: but for rounding:", torch.allclose(mixed[place], alone, atol=1e-3))

# %% [markdown]
# ## Tasks come and go
#
# The base is not touched when an adapter is added, replaced or removed. An unknown name raises an error; it never falls
# back to the base.

# %%
bank.remove(tasks[0].name)
print("left:", bank.names)
try:
    with bank.rows([tasks[0].name]):
        pass
except ValueError as error:
    print(error)
bank.add(tasks[0].name, runs[0].adapter)
print("there again:", bank.names)

# %% [markdown]
# `make demo` puts such a batch on a web page: type an input, choose adapters, read their answers side by side.
#
# ## The paper's claims of efficiency
#
# The table has what `code/benchmark.py` has recorded in this repository, and names what is not recorded yet. The
# paper's claims are about GPT-3 and about GPT-2 medium on a GPU. Our verdict is about the ratio on the model that is
# named.

# %%
from IPython.display import Markdown

from notebook_tools import show_times
from publish.efficiency import efficiency_block, table1_block

Markdown(efficiency_block())

# %%
show_times()

# %% [markdown]
# ## Table 1: latency
#
# The table shows the time that is added to a forward pass of GPT-2 medium, in percent. On a CPU the batches are a
# sixteenth of the paper's.

# %%
Markdown(table1_block())

# %% [markdown]
# ## A batch over many adapters, and other ratios of time
#
# Two pieces of code that do the same were timed in turn, within one run.

# %%
from publish.pages import speed_block

Markdown(speed_block())

# %% [markdown]
# **In short:** one more task costs a small file, and no time once it is merged. Unmerged tasks share one model and one
# batch. The last table gives the time that this costs, where it is measured.
