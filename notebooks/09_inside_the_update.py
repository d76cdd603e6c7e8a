# %% [markdown]
# # Inside the update
#
# *What has LoRA learnt, when a small rank is enough?* This is section 7 of the paper. Which directions do the pairs
# learn? Does another rank or another seed find them too? What do they do to the frozen matrix?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/lora-reproduced/blob/main/notebooks/09_inside_the_update.ipynb)
#
# The paper looks at one layer of GPT-3, whose weights are not public. Here we look at the first, the middle and the
# last layer of SmolLM2-135M (`cpu` and `paper`), with pairs of rank 1, 8 and 64 on query and value. Scale `quick`
# trains a small model for 50 steps a run. That shows how the measurement works, but not what LoRA does.

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
SEEDS = [0, 1]  # two or more
CONFIRM = False  # True: begin what takes more than an hour
BASE = {"quick": "gpt2-mini", "cpu": "smollm2-135m", "paper": "smollm2-135m-base"}[SCALE]
DRIVE = None  # a folder on Colab's Drive, such as "/content/drive/MyDrive/lora", keeps results and unfinished runs
keep_in(DRIVE)

# %% [markdown]
# ## Directions that two matrices share
#
# The matrix $A$ of a pair is $r \times d$: it holds $r$ directions in the layer's input. Its first direction is the
# right singular vector of its largest singular value. The similarity of the first $i$ directions of one $A$ and the
# first $j$ of another is
#
# $$\phi(i, j) = \frac{\lVert V_1^{(i)} V_2^{(j)\top} \rVert_F^2}{\min(i, j)}$$
#
# It goes from 0 (at right angles) to 1 (one lies in the other). Try it where the answer is known. The two matrices
# below hold the axes 0, 1, 2, 3 and the axes 0, 4, 2, 5. Expect a similarity of one half for all four, and of 1 for the
# first alone.

# %%
import torch

from analysis.subspaces import amplification, similarity

axes, sizes = torch.eye(8), torch.tensor([4.0, 3.0, 2.0, 1.0])[:, None]
one, other = sizes * axes[[0, 1, 2, 3]], sizes * axes[[0, 4, 2, 5]]
print("first four:", similarity(one, other, 4, 4))
print("the first: ", similarity(one, other, 1, 1))
print("the second:", similarity(one[1:], other[1:], 1, 1))

# %% [markdown]
# Two random matrices share something too: $\max(i, j) / d$ on average. Expect about 8 / 512 here. Trained pairs have to
# be judged against this value.

# %%
random = torch.randn(2, 64, 512, generator=torch.Generator().manual_seed(0))
print(f"{similarity(*random, 8, 8):.4f}, expected about {8 / 512:.4f}")

# %% [markdown]
# ## What an update amplifies
#
# Does the update repeat what $W$ does already? Take the first $r$ left and right singular vectors $U$, $V$ of
# $\Delta W$, and ask how much of $W$ lies there: $\lVert U^\top W V \rVert_F$. Table 7 compares this norm with the same
# norm for $W$'s own first directions and for random ones. The factor of amplification is $\lVert \Delta W \rVert_F$
# over $\lVert U^\top W V \rVert_F$. Below, $W$ is large along the first axis, and the update is six times $W$ along the
# third. Expect 0.5, 10 and a factor of 6.

# %%
W, update = torch.diag(torch.tensor([10.0, 3.0, 0.5, 0.1])), torch.diag(torch.tensor([0.0, 0.0, 3.0, 0.0]))
amplification(W, update, 1)

# %% [markdown]
# ## What it costs here
#
# Each seed has three runs, one for each rank. A run keeps its adapter outside git. What is measured of the adapters
# is a small file in `results`, which names the runs.

# %%
from experiments.subspaces import RANKS, ROWS
from notebook_tools import Work

table, _, place = ROWS[BASE].partition("/")
adapters = Work(table, SCALE, SEEDS, [f"{place}/lora-r{rank}" for rank in RANKS])
adapters.cost()

# %% [markdown]
# ## Train
#
# At `cpu` this takes hours. A recorded run is trained again where its adapter, which is not in git, is missing.
# `python code/make.py subspaces smollm2-135m` measures the adapters from a shell.

# %%
adapters.run(CONFIRM)

# %%
from runs.execute import do

for run in adapters.runs:
    if run.recorded and (CONFIRM or SCALE == "quick"):
        do(run, for_adapter=True)

# %% [markdown]
# ## Measure
#
# Three things stand out in the paper:
#
# - The first direction of rank 8 is also the first of rank 64, with a similarity above a half. The other directions are
#   not shared. The paper sees in this a reason why rank 1 does so well.
# - Two seeds share more directions than random matrices do.
# - The update amplifies directions that $W$ has but does not emphasise, by a factor of 21.5 at rank 4.
#
# In the figures, look at the upper left corner first. At the right edge even random matrices share something.

# %%
from analysis.subspace_measurement import measured
from notebook_tools import show_subspaces

if all(run.recorded and run.adapter.exists() for run in adapters.runs):
    kept = measured(BASE, SEEDS)
show_subspaces(BASE)

# %% [markdown]
# In the paper the factor falls from 21.5 at rank 4 to about 2 at rank 64. Do not read much into the factor at rank 1,
# which divides by a single small number.
#
# ## SmolLM2-135M
#
# The cell shows what this repository has measured at scale `cpu`. It takes the adapters of ranks 1, 8 and 64, trained
# on 10,000 rows of E2E with three seeds. The paper's three findings are claims here, each with a test that decides it.

# %%
show_subspaces("smollm2-135m")

# %%
from notebook_tools import conclude

conclude("cpu", "same-first-direction", "seeds-share", "amplifies-new")

# %% [markdown]
# Which matrices should be adapted, and at which rank? That question of the paper's sections 7.1 and 7.2 is the subject
# of [04_rank_and_weights](04_rank_and_weights.ipynb).
