"""What a run costs: estimated, counted, measured."""
