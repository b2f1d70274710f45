"""Where a loaded function runs."""
