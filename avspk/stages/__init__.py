"""The training stages: one step and one epoch of each."""
