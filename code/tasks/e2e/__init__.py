"""From the facts about a restaurant to a sentence: Table 3 of the paper."""
