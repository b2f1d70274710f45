"""Manifests for the platforms that run images."""
