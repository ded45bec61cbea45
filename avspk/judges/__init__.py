"""Judges decide from losses which pseudo labels are trusted, and replace the others by predictions."""
