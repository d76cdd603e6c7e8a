"""Many adapters, one base model: a batch whose rows belong to different tasks."""
