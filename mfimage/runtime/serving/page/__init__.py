"""The page that a browser gets from ``/``; ``contracts/status.py`` asks ``response.py`` for it.

``page.html``, ``page.css`` and ``page.js`` become one response, without a request to elsewhere.
``style.css`` is shared with the HTML of ``mfimage/views``.
"""
