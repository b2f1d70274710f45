"""Calling a function from an event loop.

``queue`` has the calls, what carries them, and ``Dispatcher``, which ``threads`` and
``coroutines`` implement.
"""
