"""The methods: LoRA, its relatives and its rivals. Each changes a model in place."""
