"""The interfaces that an image can have."""
