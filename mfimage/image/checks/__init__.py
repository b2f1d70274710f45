"""``mfimage test IMAGE``: run an image, call it, compare it with what it says of itself."""
