"""The HTTP server of a function.

From below: ``problems``, ``content`` (media types), ``body``, ``logs`` and ``metrics``; ``service``
(the function as handlers see it); ``route`` and ``openapi``; the room ``contracts``; ``contract``,
the table of all routes; ``app``, which dispatches by it; ``server`` (uvicorn); and the entry points
``process`` and ``supervisor``.
"""
