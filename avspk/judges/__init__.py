"""Losses and predictions of an epoch -> which pseudo labels to trust, and what replaces the others."""
