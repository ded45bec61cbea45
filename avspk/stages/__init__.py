"""The training stages: one step and one epoch of each, and the loop that runs them."""
