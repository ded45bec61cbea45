"""Rows of all modalities -> one pseudo label per utterance."""
