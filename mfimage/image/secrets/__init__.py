"""Credentials of a build: passed to one step, masked in output, never left in an image."""
