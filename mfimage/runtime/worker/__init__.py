"""The worker side of the process backend."""

# What a worker's interpreter runs, as ``python -c BOOT CONTROL LIFELINE RUNTIME``: two open files,
# and the folder that holds mfimage, if it is not installed.
BOOT = (
    "import sys; sys.path[:0] = sys.argv[3:]\n"
    "from mfimage.runtime.worker.lifeline import die_with\n"
    "die_with(int(sys.argv[2]))\n"
    "from mfimage.runtime.worker.process import main\n"
    "main(int(sys.argv[1]))"
)
