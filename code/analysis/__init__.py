"""From records to findings: quantities, statistics over seeds, comparisons, claims."""
