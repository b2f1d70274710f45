"""A function's code: where it is defined, which files it needs, what they import.

``locate`` and ``named`` find a function, ``archive`` captures its files, ``imports`` asks a fresh
interpreter (``interpreter``, which runs ``_probe`` with ``_reading``) what they import.
"""
