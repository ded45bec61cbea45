"""Verification scores and their metrics."""
