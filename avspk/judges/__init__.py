"""From losses and predictions of an epoch to trusted pseudo labels and replacements of the others."""
