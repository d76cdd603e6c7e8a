"""On which rows, and scored how."""
