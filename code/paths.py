"""Where every folder of the project is: from a shell, a notebook, Colab or a test."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
CACHE = DATA / "cache"
MODELS = DATA / "models"
RESULTS = Path(os.environ.get("LORA_RESULTS_DIR", ROOT / "results"))
CHECKPOINTS = Path(os.environ.get("LORA_CHECKPOINT_DIR", ROOT / "checkpoints"))
