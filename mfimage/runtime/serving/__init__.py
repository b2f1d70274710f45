"""The HTTP server of a function.

From below: ``problems``, ``content`` (media types), ``body``, ``logs`` and ``metrics``; ``service``
(the function as handlers see it); ``route``; the contracts ``status``, ``function`` and
``documentation`` with ``openapi``; ``contract``, the table of all routes; ``app``, which dispatches
by it; ``server`` (uvicorn), ``process`` and ``supervisor``, the entry points.
"""
