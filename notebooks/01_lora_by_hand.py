# %% [markdown]
# # LoRA by hand
#
# *What exactly does the equation do to a model?* Section 4 of the paper, one property at a time, each shown on numbers.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/lora-reproduced/blob/main/notebooks/01_lora_by_hand.ipynb)
#
# Nothing here is trained for longer than a step. `paper` takes GPT-2 small from the hub, `quick` the small GPT-2 that
# comes with the repository: same architecture, a third of the width, four layers instead of twelve.

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
import torch

from colab import keep_in, suitable_scale

SCALE = suitable_scale()  # "paper" on a GPU with bfloat16, "cpu" on an older one such as a T4, else "quick"
SEEDS = [0]  # what is recorded is not trained again; another seed is
RANK, ALPHA = 4, 32.0
MODEL = "gpt2" if SCALE == "paper" else "gpt2-mini"
DRIVE = None  # no run is recorded here; the knob is the same in all notebooks
keep_in(DRIVE)
_ = torch.manual_seed(SEEDS[0])

# %% [markdown]
# ## The equation
#
# $$h = W_0 x + \frac{\alpha}{r} B A x$$
#
# $W_0$ is frozen; $A$ is random and $B$ zero. So at the start the second term is zero for every $x$, and the model is
# still the pre-trained one. An example with a matrix of 6 x 8 and rank 2:

# %%
d_out, d_in, r, alpha = 6, 8, 2, 4.0
W0, x = torch.randn(d_out, d_in), torch.randn(d_in)
A, B = torch.randn(r, d_in), torch.zeros(d_out, r)
h = W0 @ x + alpha / r * B @ (A @ x)
print("equal to W0 x:", torch.equal(h, W0 @ x))
print("numbers in W0:", W0.numel(), "  in A and B:", A.numel() + B.numel())

# %% [markdown]
# Once $B$ has been trained, the update $\Delta W = \frac{\alpha}{r} B A$ is a matrix like $W_0$, but one of rank 2. The
# order of the product matters: $B(Ax)$ takes $r(d_\text{in} + d_\text{out})$ multiplications, $(BA)x$ builds the large
# matrix first.

# %%
B = torch.randn(d_out, r)
delta = alpha / r * B @ A
print("rank of the update:", torch.linalg.matrix_rank(delta).item())
print("the same output:", torch.allclose(W0 @ x + alpha / r * B @ (A @ x), (W0 + delta) @ x, atol=1e-5))

# %% [markdown]
# ## A real model
#
# GPT-2 makes query, key and value with one packed matrix, `c_attn`. Adapting *query and value*, as the paper does, then
# means two pairs over two thirds of its output. Expect one adapted module a layer, and a model that computes exactly
# what it did before.

# %%
from lora import LoRAConfig, add_lora, count_parameters, lora_layers
from models import load_model, load_tokenizer

model, tokenizer = load_model(MODEL).eval(), load_tokenizer(MODEL)
ids = tokenizer("name : Blue Spice | area : riverside", return_tensors="pt")["input_ids"]
with torch.no_grad():
    before = model(ids).logits
names = add_lora(model, LoRAConfig(rank=RANK, alpha=ALPHA, targets=("query", "value")))
print(names)

# %%
with torch.no_grad():
    print("the same logits, to the last bit:", torch.equal(model(ids).logits, before))

# %% [markdown]
# ## Counting
#
# The paper counts $2 \cdot L_\text{LoRA} \cdot d \cdot r$ trained numbers, where $L_\text{LoRA}$ is the number of
# adapted matrices: two a layer. Expect the formula and the model to agree.

# %%
layers, d = model.config.num_hidden_layers, model.config.hidden_size
trainable, total = count_parameters(model)
print(f"2 * {2 * layers} * {d} * {RANK} = {2 * 2 * layers * d * RANK:,}")
print(f"trainable {trainable:,} of {total:,}: {trainable / total:.2%}")

# %% [markdown]
# A count alone proves little. One pair over the whole of `c_attn` has $A$ of $r \times d$ and $B$ of $3d \times r$:
# exactly as many numbers, although it adapts the key as well. Two reproductions that we read did that without noticing.

# %%
print(f"one pair over all of c_attn: {layers * (RANK * d + 3 * d * RANK):,}")

# %% [markdown]
# The same for every row of Tables 2 and 3: the paper's number, and ours, counted on models without weights. The head of
# a classifier is trained too, but the paper does not count it. Expect about half of the rows to agree when rounded, and
# a note beside each other one.

# %%
import pandas as pd

from costs.parameter_counts import count_table

pd.set_option("display.max_colwidth", None)
counts = count_table()
counts.assign(**{column: counts[column].map("{:,}".format) for column in ("counted", "head")})

# %% [markdown]
# ## The packed projection
#
# So look at what training changes: the update of each third of `c_attn` after one step on one sentence. Expect that
# query and value have moved, and that the key has not, not even in the last bit.

# %%
from lora import merge_lora, remove_lora, unmerge_lora

layer = lora_layers(model)[names[0]]
W0 = layer.weight.detach().clone()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
model(ids, labels=ids).loss.backward()
optimizer.step()
merge_lora(model)
delta = (layer.weight - W0).detach()
for part, change in zip(("query", "key", "value"), delta.split(d), strict=True):
    print(f"{part:6} changed in {(change != 0).float().mean():5.1%} of its numbers")

# %% [markdown]
# ## Merging
#
# The weights above were merged: $W_0 + \Delta W$ stands in the place of $W_0$, and the model is as fast as before LoRA.
# Expect the unmerged model's output, up to rounding. Unmerging gives $W_0$ back to the last bit, because a copy of it
# was kept.

# %%
with torch.no_grad():
    merged = model(ids).logits
    unmerge_lora(model)
    apart = model(ids).logits
print("the same but for rounding:", torch.allclose(merged, apart, atol=1e-3))
print("W0 is back, to the last bit:", torch.equal(layer.weight, W0))

# %% [markdown]
# ## How A is drawn
#
# The paper says *Gaussian*; its code draws $A$ uniformly, with a spread of $1/\sqrt{3 d_\text{in}}$. If $A$ is
# stored transposed, $d_\text{in} \times r$, the same call takes the rank for the fan-in. $A$ is then too large by
# $\sqrt{d_\text{in} / r}$: with the same learning rate, that is another experiment.

# %%
fresh = load_model(MODEL)
add_lora(fresh, LoRAConfig(rank=RANK, alpha=ALPHA))
A = lora_layers(fresh)[names[0]].lora_A
transposed = torch.nn.init.kaiming_uniform_(torch.empty(d, RANK), a=5**0.5)
print(f"spread of A          {A.std():.4f}   expected {(3 * d) ** -0.5:.4f}")
print(f"stored transposed    {transposed.std():.4f}   larger by about {(d / RANK) ** 0.5:.0f}")

# %% [markdown]
# ## What you keep
#
# An adapter is a folder with the pairs and nothing else, in PEFT's format. That has one pair a module: in the packed
# matrix, zeros stand where nothing is adapted, and the file has twice the trained numbers. The adapter names its model
# and is refused on other weights. On the right ones, expect the trained model back.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

from adapter_files import load_lora, save_lora

with TemporaryDirectory() as folder:
    save_lora(model, folder)
    size = sum(file.stat().st_size for file in Path(folder).iterdir())
    again = load_model(MODEL).eval()
    load_lora(again, folder)
with torch.no_grad():
    print("the trained model is back:", torch.equal(again(ids).logits, apart))
print(f"adapter {size / 1e6:.2f} MB, model {4 * total / 1e6:.2f} MB")

# %% [markdown]
# Merge it for good and the wrappers can go: what remains is the plain architecture with adapted weights.

# %%
merge_lora(again)
remove_lora(again)
with torch.no_grad():
    print(type(again.transformer.h[0].attn.c_attn).__name__, torch.equal(again(ids).logits, merged))

# %% [markdown]
# That is the whole method, in 200 lines: [`code/lora.py`](../code/lora.py). Try it yourself: set `RANK` to 1 or 64 and
# see which of the statements above still hold (all should), or `targets` to `("key",)` and see which third moves.
#
# Next: [02_e2e_gpt2](02_e2e_gpt2.ipynb), where it is trained.
