"""A server's processes and connections.

From below: ``connection``, ``server`` (uvicorn's), and the entry points ``process`` and
``supervisor``.
"""
