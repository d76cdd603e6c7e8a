"""The experiments: every row of every table, by name."""
