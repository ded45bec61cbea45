"""What stage 1 minimises. Each objective has its settings, head, state and logged figures in one file."""
