"""What every part of the package may use: settings, files of text, ranks, logs, progress. It imports no other part."""
