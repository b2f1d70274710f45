"""The portable form of a bound function."""
