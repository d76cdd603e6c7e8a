"""Sentences and pairs of sentences to classify: Table 2 of the paper."""
