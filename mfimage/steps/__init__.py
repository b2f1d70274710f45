"""Metaflow steps that run elsewhere: in a container, or in a pool of warm workers.

Called by Metaflow, through the decorators and the environment that the extension registers, and
by `mfimage.cli`. Two halves, with ``launch.py`` as the seam:

- in the process that runs the flow: `decorators` and `environment` decide where a step runs and
  write that down as a file of options (`command`);
- in a process of its own for each attempt of a task: `launch` reads the file and starts
  Metaflow's unchanged ``step`` command through an `executor`. What it imports needs the standard
  library only, as it also runs where nothing else is installed.
"""
