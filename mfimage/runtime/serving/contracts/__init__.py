"""Contracts: modules whose function ``routes`` returns the routes of a function's server.

Only the table in ``contract.py`` imports them. They do not import each other.
"""
