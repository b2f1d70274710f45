"""Batch jobs: a function over files of records, in parts."""
