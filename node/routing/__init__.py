"""Pure policy: which candidate is tried when, and what its failure means."""
