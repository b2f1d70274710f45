"""The Docker engine, and the builder that uses it."""
