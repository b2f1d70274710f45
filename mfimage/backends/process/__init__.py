"""The function in processes of its own, in its locked environment."""
