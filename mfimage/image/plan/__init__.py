"""What an image will be: options, base, lock, layers, labels. Data, no effects."""
