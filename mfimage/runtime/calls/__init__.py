"""Calling a function from an event loop: ``threads`` and ``coroutines`` are its dispatchers."""
