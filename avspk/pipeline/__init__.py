"""What the recipe calls: open a run, check its input, train a stage, label a round, evaluate. Plans of many runs."""
