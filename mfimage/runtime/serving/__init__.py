"""The HTTP server of a function.

From below: ``problems``, ``content`` (media types), ``logs`` and ``metrics``; ``service`` (the
function as handlers see it); ``route``, ``body`` and ``openapi``; the room ``contracts``;
``contract``, the table of all routes; ``app``, which dispatches by it; ``server`` (uvicorn); and
the entry points ``process`` and ``supervisor``.
"""
