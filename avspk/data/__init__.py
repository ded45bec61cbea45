"""Data read from disk: manifests, media, face crops, noise, and the views cut from them."""
