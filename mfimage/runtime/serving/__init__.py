"""The HTTP server of a function."""
