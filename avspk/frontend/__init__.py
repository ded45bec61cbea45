"""Batched tensor code that turns raw segments into encoder inputs on the training device."""
