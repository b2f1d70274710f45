"""The HTTP server of a function.

From below: ``problems``, ``content`` (media types), ``logs`` and ``metrics``; ``served`` (what is
served, as data), ``service`` (a function as handlers see it) and ``services`` (all of them);
``route``, ``body`` and ``openapi``; the room ``tabular``, and the room ``contracts``, whose
modules make routes; ``contract``, the table of all routes; ``app``, which dispatches by it; the
room ``http``: connections, and the entry points; ``apart``, for functions that need a process of
their own.
"""
