"""Modules whose ``routes`` returns routes of a function; only ``contract.py`` imports them."""
