"""Package folder -> live function."""
