"""What one step and one epoch of each training stage is."""
