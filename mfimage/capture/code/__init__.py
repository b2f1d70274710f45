"""A function's code: where it is defined, which files it needs, what they import."""
