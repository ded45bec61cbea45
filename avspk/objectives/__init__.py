"""The losses, and the objectives of stage 1. Each has its settings, head, state and logged figures in one file."""
