"""A process that runs a function for another process."""
