"""Benchmarks of the library through its public API: `python -m benchmarks` lists them."""
