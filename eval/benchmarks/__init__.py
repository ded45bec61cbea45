"""The benchmarks of eval/benchmark.py: one file each, with a function (device, sizes) that yields figures."""
