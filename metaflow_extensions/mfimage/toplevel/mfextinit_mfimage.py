"""Tells Metaflow which module holds the names for ``from metaflow import ...``."""

toplevel = "mfimage_toplevel"
