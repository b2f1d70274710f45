"""Exact versions and hashes for one Python and platform: ``pylock.toml`` files, solved by uv.

``solve`` is the door; ``settle`` makes any tool's lock one for a platform, ``notes`` says who
requires what, ``pylock`` reads and writes the format, and only ``uv`` runs uv.
"""
