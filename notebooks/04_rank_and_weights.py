# %% [markdown]
# # Rank and weights
#
# *Which matrices should be adapted, and how low may the rank be?* These are Tables 5, 6 and 18 of the paper. We add the
# MLP, which the paper leaves out.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/lora-reproduced/blob/main/notebooks/04_rank_and_weights.ipynb)
#
# The paper asks this of GPT-3, whose weights are not public. Here the same matrices and ranks are tried on MNLI and
# SST-2, with RoBERTa-base at scale `paper` and MiniLM at the others. Every cell of the grid has the same settings. A
# row's name, such as `sst2/query-value-r8`, gives task, matrices and rank. The matrices are `query`, `value`,
# `query-value`, `query-key-value-output`, `mlp` and `all`. The ranks are 1, 2, 4, 8 and 64.

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
TASK = "sentiment-builtin" if SCALE == "quick" else "sst2"
ROWS = [f"{TASK}/query-r1", f"{TASK}/query-value-r1", f"{TASK}/query-value-r8"]  # None: the grid, 30 runs a task
CONFIRM = False  # True: begin what takes more than an hour
DRIVE = None  # a folder on Colab's Drive, such as "/content/drive/MyDrive/lora", keeps results and unfinished runs
keep_in(DRIVE)

# %% [markdown]
# ## The task, in rows of its validation split
#
# SST-2 asks whether a sentence praises or blames a film. Below are recorded answers of MiniLM with one pair of rank 1 a
# layer, on the query, and with pairs of rank 8 on all four matrices of attention.

# %%
from notebook_tools import Work

rows = ["minilm/sst2/query-r1", "minilm/sst2/query-key-value-output-r8"]
Work("table6", "cpu", [0], rows).texts(4)

# %% [markdown]
# ## One budget, three places
#
# A pair of rank $r$ beside a square matrix of width $d$ has $2 d r$ numbers. So three choices have the same count:
# query alone at rank 8, query and value at rank 4, or all four matrices of attention at rank 2. Which choice is best?

# %%
from lora import LoRAConfig, add_lora, count_parameters
from models import load_model

for rank, targets in ((8, ("query",)), (4, ("query", "value")), (2, ("query", "key", "value", "output"))):
    model = load_model("minilm", 2)
    add_lora(model, LoRAConfig(rank=rank, alpha=16, targets=targets))
    print(f"rank {rank}, {', '.join(targets):26} {count_parameters(model)[0]:,} trained")

# %% [markdown]
# ## What it costs here
#
# The cost hardly depends on the rank. Pairs of rank 64 take more memory than pairs of rank 1, but little beside the
# model.

# %%
table6 = Work("table6", SCALE, SEEDS, ROWS)
table6.cost()

# %% [markdown]
# ## Train

# %%
table6.run(CONFIRM)

# %% [markdown]
# ## Table 6: matrices by rank
#
# The paper finds that rank 1 is nearly enough if query *and* value are adapted, but not if only the query is. An
# [earlier reproduction](https://github.com/tn292/cs5782_final_project) on RoBERTa found the same order with a wide gap.
# Its classification head was frozen, so the pairs had to do the head's work as well. Here the head is trained.
#
# The paper's numbers are of GPT-3 and stand in `data/paper.csv`. GPT-3 is not public, so no row here repeats them.

# %%
table6.show()

# %%
table6.figure("grid")

# %% [markdown]
# ## Recorded: small models, real data
#
# Results at `quick` only show that the cells above work. The table below was measured at scale `cpu`.

# %%
from notebook_tools import show_table

show_table("table6", "cpu", "grid")

# %% [markdown]
# ## Table 5: one budget, spread over more matrices
#
# With the number of parameters fixed, is one matrix at rank 8 better, or four at rank 2? The recorded grid has both,
# and two matrices at rank 4. `Work("table5", SCALE, SEEDS).run(CONFIRM)` runs all ways to spend that budget.

# %%
budget = [f"minilm/sst2/{row}" for row in ("query-r8", "query-value-r4", "query-key-value-output-r2")]
Work("table6", "cpu", [0], budget).show()

# %% [markdown]
# ## Table 18: rank on E2E
#
# For GPT-2 medium the paper prints one run for every rank, with settings that were tuned at rank 4. BLEU is highest at
# rank 4, but the validation loss falls until rank 16:

# %%
import pandas as pd

from files import DATA

paper = pd.read_csv(DATA / "paper.csv").query("table == 'table18'")
paper.pivot_table(index="method", columns="metric", values="value", aggfunc="first", sort=False)

# %% [markdown]
# Our runs of this are the rows of [Table 3](02_e2e_gpt2.ipynb) that differ in the rank alone, recorded on SmolLM2-135M:

# %%
Work("table3", "cpu", [0, 1, 2], [f"smollm2-135m/lora-r{rank}" for rank in (1, 4, 8, 64)]).show()

# %% [markdown]
# ## What follows

# %%
from notebook_tools import conclude

conclude("cpu", "rank-one", "attention-suffices", "mlp-first", "e2e-rank")

# %% [markdown]
# Next: [05_rank_over_time](05_rank_over_time.ipynb). If a small rank suffices at the end, must it be the same from the
# beginning?
