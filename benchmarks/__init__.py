"""Benchmarks for docs/performance.md; run them with ``make bench``."""
