"""Calling a function from an event loop: the queue, threads, coroutines."""
