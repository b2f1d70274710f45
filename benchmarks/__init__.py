"""The numbers in docs/performance.md; run them with ``make bench``."""
