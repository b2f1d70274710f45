"""Docker: its engine, asked through the SDK, and its ``docker build`` command, run as a child.

``engine.Engine`` is open to every room above: it inspects, loads, saves, runs, pulls and pushes
images. ``builder.DockerBuilder`` and ``command.DockerCommand`` are for ``image.builders``, which
chooses the builder of an image. ``progress`` turns what the command prints into `BuildEvent`.

Inside, ``builder`` imports ``engine`` and ``command``, and ``command`` imports ``progress``.
"""
