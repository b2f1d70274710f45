"""What a function is made of: its task's artifacts, its code, and its environment, locked.

``task``, ``code``, ``environment`` and ``lock`` are rooms of their own; ``bind`` puts together what
they find, and image builds use ``lock`` again.
"""
