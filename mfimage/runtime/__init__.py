"""What ships inside an image and runs there."""
