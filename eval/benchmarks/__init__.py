"""What eval/benchmark.py runs: one file a benchmark, each a function (device, sizes) that yields figures."""
