# %% [markdown]
# # Rank over time
#
# *Should the rank stay the same from the first step to the last?* Here are two ways to let it change: pairs that are
# added in stages, and pairs that move to where they matter. The paper tries neither.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/lora-reproduced/blob/main/notebooks/05_rank_over_time.ipynb)
#
# **Sequential LoRA** grows the rank in stages, here 2, 4, 6, 8. A stage begins after a *fixed* share of the steps, or
# when the validation loss no longer falls (*plateau*). Earlier pairs are then *frozen*, trained slowly (*hybrid*) or
# trained as before (*unfrozen*).
#
# **Adaptive rank** keeps the total number of rank-1 pairs. It moves an eighth of them at a time, from where they matter
# least to where they matter most.
#
# All are compared with plain LoRA of rank 8 at the same seeds.

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
TASK = "paraphrase-builtin" if SCALE == "quick" else "mrpc"
ROWS = [f"{TASK}/sequential-fixed-frozen"]  # or f"{TASK}/adaptive", "sequential-plateau-hybrid"; None: all
CONFIRM = False  # True: begin what takes more than an hour
DRIVE = None  # a folder on Colab's Drive, such as "/content/drive/MyDrive/lora", keeps results and unfinished runs
keep_in(DRIVE)

# %% [markdown]
# ## Recorded texts
#
# The recorded runs of this notebook are on E2E; the cells below train on pairs of sentences, which is quicker. Here are
# the first inputs of E2E's test set, and what a small GPT-2 wrote after its rank grew in stages and after its pairs
# moved.

# %%
from notebook_tools import Work

Work("rank-over-time", "cpu", [0], ["gpt2-mini/sequential-fixed-frozen", "gpt2-mini/adaptive"]).texts(2)

# %% [markdown]
# ## A new pair changes nothing
#
# A pair whose $B$ is zero can join in the middle of training without disturbing it. Expect three more stages. Each
# gives every projection (an adapted matrix) a higher rank, and the model's output stays the same, bit for bit.

# %%
import torch

from experiments.catalogue import find
from methods.catalogue import apply_method
from methods.rank_stages import begin_stage
from methods.stacked_lora import ranks
from models import load_model

grown = load_model("gpt2-mini").eval()
apply_method(grown, find("rank-over-time/gpt2-mini/sequential-fixed-frozen").settings)
ids = torch.arange(10)[None]
with torch.no_grad():
    first = grown(ids).logits
    for _ in range(3):
        begin_stage(grown, 2)
        same = torch.equal(grown(ids).logits, first)
        print("rank of every projection:", *set(ranks(grown).values()), "  same output:", same)

# %% [markdown]
# ## Pairs that move
#
# The cell does one round of adaptive rank. A pair's importance is the loss without this pair, minus the loss with this
# pair alone. Pretend that only the pairs of one projection matter. Pairs of other projections are then removed first.
# Projections that lost no pair get new ones instead.

# %%
from methods.rank_budget import reallocate

adaptive = load_model("gpt2-mini").eval()
apply_method(adaptive, find("rank-over-time/gpt2-mini/adaptive").settings)
before = ranks(adaptive)
places = [(name, pair) for name, rank in before.items() for pair in range(rank)]
scores = {place: float(place[0] == next(iter(before))) for place in places}  # the first projection alone matters
reallocate(adaptive, scores, number=8)
print("pairs in all:", sum(before.values()), "before,", sum(ranks(adaptive).values()), "after")
print({name: f"{before[name]} -> {rank}" for name, rank in ranks(adaptive).items() if rank != before[name]})

# %% [markdown]
# ## What it costs here
#
# Growing costs nothing. Moving costs evaluations: two losses for every pair, at every move. On a small data set that is
# more than the training itself. (For rows on E2E, plain LoRA is `Work("table3", SCALE, SEEDS, ["lora-r8"])`.)

# %%
plain = Work("curves", SCALE, SEEDS, [f"{TASK}/lora-r8"])
changing = Work("rank-over-time", SCALE, SEEDS, ROWS)
plain.cost()
changing.cost()

# %% [markdown]
# ## Train

# %%
plain.run(CONFIRM)
changing.run(CONFIRM)

# %% [markdown]
# ## Against plain LoRA
#
# The verdict compares with plain LoRA of rank 8, not with full fine-tuning. The six sequential variants are from a
# [course project](https://github.com/edwinlin13/cs4782-lora-replication). In that project, no variant was above plain
# LoRA of rank 8 on GPT-2 small. It had one seed for each and a BLEU of its own.

# %%
changing.show()

# %% [markdown]
# ## Recorded: small models, real data
#
# Results at `quick` only show that the cells above work. The table below was measured at scale `cpu`.

# %%
from notebook_tools import show_table

show_table("rank-over-time", "cpu", "stages")

# %% [markdown]
# ## The rank at every step
#
# A record has the ranks at every change. In the table a row is a projection. A column is the step from which its rank
# holds.

# %%
import pandas as pd

from runs.records import read_record

record = read_record(changing.runs[0].record)
pd.DataFrame({f"step {entry['step']}": entry["ranks"] for entry in record["history"] if "ranks" in entry})

# %%
changing.figure("stages")

# %% [markdown]
# ## What follows

# %%
from notebook_tools import conclude

conclude("cpu", "growing-rank", "adaptive-rank")

# %% [markdown]
# Next: [06_pitfalls](06_pitfalls.ipynb), on why reproductions fall short of the paper.
