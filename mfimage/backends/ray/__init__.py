"""The function in actors of a Ray cluster."""
