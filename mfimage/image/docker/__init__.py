"""Docker: its engine, asked through the SDK, and its ``docker build`` command, run as a child.

`engine.Engine` is for everybody who needs an engine: to inspect, load, save, run, pull or push an
image. `builder.DockerBuilder` is for `image.builders` alone, which chooses a builder; it writes the
context that ``mfimage render`` writes and runs ``docker build`` on it. `progress` turns what that
command prints into `BuildEvent`.

Inside, ``builder`` imports ``engine`` and ``progress``; these import neither.
"""
