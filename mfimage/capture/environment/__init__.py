"""A function's environment: what it needs to run, why, and whether that is complete.

``sources.describe_environment`` is the door. ``installed`` knows what the interpreter has,
``check`` refuses a lock that lacks something the function imports.
"""
