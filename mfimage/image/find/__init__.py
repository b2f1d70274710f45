"""Where an image is, and what it says of itself."""
