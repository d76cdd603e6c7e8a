# %% [markdown]
# # Results
#
# *What has been measured, and does it agree with the paper?* Here is every table and figure that the records support,
# with our numbers beside the paper's.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/lora-reproduced/blob/main/notebooks/07_results.ipynb)
#
# Nothing is trained here. The cells below read the records that come with the repository. If `DRIVE` is the folder of
# your own records, they read those too. What is not recorded is shown as missing; no number comes from anywhere else.

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

DRIVE = None  # a folder on Colab's Drive, such as "/content/drive/MyDrive/lora", with your own records
keep_in(DRIVE)

# %% [markdown]
# ## Claim by claim
#
# These are the paper's claims and further ones of this project, judged on the records of scale `cpu`. A claim that
# fails on models this small may still hold for the paper's models.

# %%
from notebook_tools import show_claims, show_recorded

show_claims("cpu")

# %% [markdown]
# ## How to read a verdict
#
# LoRA is compared with full fine-tuning of the same model, on the same rows, with the same seeds. The verdict depends
# on the interval of the mean difference:
#
# - *equivalent*: the interval lies within a margin that was fixed before;
# - *better* or *worse*: it lies on one side of zero;
# - *inconclusive*: neither.
#
# One seed has no interval and gives no verdict. A claim is decided from one seed only where two rows lie more than five
# margins apart; learning rates are compared as they are. The paper's numbers stand beside ours and are never part of a
# difference.

# %%
import pandas as pd

from publish import result_files
from publish.labels import TITLES

rows = [
    {"scale": scale, "table": TITLES.get(table, table), "rows": cells["experiment"].nunique(),
     "recorded": cells.loc[cells["n"] > 0, "experiment"].nunique()}
    for table, scale, cells in result_files.recorded()
]  # fmt: skip
pd.DataFrame(rows, columns=["scale", "table", "rows", "recorded"])

# %% [markdown]
# ## Small models, real data
#
# At scale `cpu` the data are those of E2E and GLUE, and the models are small enough for two processor cores. The
# results are about LoRA on small models. Whether they carry over to larger ones is not measured.

# %%
show_recorded("cpu")

# %% [markdown]
# ## The paper's models
#
# Scale `paper` has the paper's models and settings. A table that is empty here has not been run. To fill a row, run
# `python code/reproduce.py run NAME --seed 0`, or one of the notebooks 02 to 06.

# %%
show_recorded("paper")

# %% [markdown]
# The same numbers are in a file: [`results/summary.csv`](../results/summary.csv) has a line for each of them, with the
# value of every seed, the interval and the margin.
