# %% [markdown]
# # Start here
#
# *How little of a model has to be trained to teach it something new?* Two minutes, no GPU needed.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/lora-reproduced/blob/main/notebooks/00_start_here.ipynb)
#
# LoRA (Hu et al., 2021) leaves the weights of a pre-trained model as they are and learns, beside some of its matrices,
# the product of two thin ones:
#
# $$h = W_0 x + \frac{\alpha}{r} B A x, \qquad A \in \mathbb{R}^{r \times d_\text{in}},\quad
# B \in \mathbb{R}^{d_\text{out} \times r},\quad r \ll d.$$
#
# Here an encoder learns to tell praise from complaint: all of it is trained, then only LoRA's pairs. Each notebook has
# its knobs in one cell. This one stays at `quick`: small models and generated sentences, which prove that all parts
# work and say nothing about the paper. The others choose `paper` on a GPU with bfloat16, and `cpu` on
# an older one.

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
from colab import keep_in

SCALE = "quick"  # or "cpu", with rows like "minilm/sst2/full"; or "paper", like "roberta-base/sst2/full", on an A100
SEEDS = [0]  # what is recorded is not trained again; another seed is
ROWS = ["minilm/sentiment-builtin/full", "minilm/sentiment-builtin/lora-r8"]
DRIVE = None  # a folder on Colab's Drive, such as "/content/drive/MyDrive/lora", keeps results and unfinished runs
keep_in(DRIVE)

# %% [markdown]
# Every row that this project runs is an experiment. Its name has the table, the trained model, the task and the row.
# `Work` is some rows with some seeds; ask what it costs before you start it.

# %%
from notebook_tools import Work

work = Work("table2", SCALE, SEEDS, ROWS)
work.cost()

# %% [markdown]
# The column *trained* is the point. It has two parts: the pairs of LoRA, and the new classification head,
# which every method trains and which the paper does not count.
#
# Now train. Stop it whenever you like: the same cell continues where you stopped, and once the run is recorded it
# returns at once.

# %%
work.run()

# %% [markdown]
# The result, with the paper's number in a column of its own. The two are not the same work, and no difference is taken
# between them. By the *paper's rule*, the epoch is the best one on the split that is reported. The *held-out* number
# is of an epoch chosen on other rows.

# %%
work.show()

# %% [markdown]
# You keep the pairs and the head; all tasks share the model.

# %%
from runs.records import read_record

run = work.runs[-1]
parameters = read_record(run.record)["parameters"]  # of 4 bytes each
adapter = parameters["trainable"] + parameters["head"]
print(f"the whole model   {4 * (parameters['total'] - parameters['trainable']) / 1e6:6.1f} MB")
print(f"pairs and head    {4 * adapter / 1e6:6.1f} MB")

# %% [markdown]
# ## Where to go from here
#
# | notebook | question |
# |---|---|
# | [01_lora_by_hand](01_lora_by_hand.ipynb) | What exactly does the equation do to a model? |
# | [02_e2e_gpt2](02_e2e_gpt2.ipynb) | Does LoRA write as well as full fine-tuning? (Table 3) |
# | [03_glue](03_glue.ipynb) | Does it understand as well? (Table 2) |
# | [04_rank_and_weights](04_rank_and_weights.ipynb) | Which matrices, and how thin? (Tables 5, 6 and 18) |
# | [05_rank_over_time](05_rank_over_time.ipynb) | Should the rank change during training? |
# | [06_pitfalls](06_pitfalls.ipynb) | Why do reproductions fall short of the paper? |
# | [07_results](07_results.ipynb) | What has been measured so far, and does it agree? |
# | [08_costs_and_many_tasks](08_costs_and_many_tasks.ipynb) | What does an adapter cost, and can a batch mix them? |
# | [09_inside_the_update](09_inside_the_update.ipynb) | What do the pairs hold? (Section 7) |
#
# From a shell it is the same: `python code/reproduce.py list` names the experiments, `run`, `sweep`, `table` and
# `figure` do what the cells above did.
