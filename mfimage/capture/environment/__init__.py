"""A function's environment: which source describes it, and whether it is complete."""
