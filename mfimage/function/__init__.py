"""What the user writes: the decorator, the parameters, the hints."""
