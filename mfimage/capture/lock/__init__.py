"""Exact versions and hashes for a platform, solved and read by uv."""
