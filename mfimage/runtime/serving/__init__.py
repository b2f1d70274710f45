"""The HTTP server of a function.

From below: ``problems``, ``content`` (media types), ``logs`` and ``metrics``; ``served`` (what is
served, as data), ``service`` (a function as handlers see it) and ``services`` (all of them);
``route``, ``body`` and ``openapi``; the room ``contracts``; ``contract``, the table of all routes;
``app``, which dispatches by it; ``connection`` (HTTP/1.1); ``server`` (uvicorn); and the entry
points ``process`` and ``supervisor``.
"""
