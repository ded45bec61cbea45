"""Clustering, loss gate and label correction: arrays in, arrays out."""
