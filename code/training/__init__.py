"""Training: the one loop, its optimizer, batches and checkpoints."""
