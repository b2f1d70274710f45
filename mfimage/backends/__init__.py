"""Where a loaded function runs: ``choice.open_backend`` starts a ``base.Backend`` for a package.

``local`` runs it in this process, ``process/`` in interpreters with the locked environment,
``ray/`` in actors of a cluster. The latter two share ``calls`` and ``map``.
"""
