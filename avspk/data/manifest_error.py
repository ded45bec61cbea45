"""The error of lists and tables. It stands alone, because lists are also read where pandas is not installed."""


class ManifestError(ValueError):
    """A manifest, list or trial list is missing, malformed or inconsistent; the message names file, row and value."""
