"""Speaker verification trained from unlabelled talking-head video."""
