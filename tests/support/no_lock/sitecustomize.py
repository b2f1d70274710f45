"""On ``PYTHONPATH``, it lets other processes bind without an index to lock from."""

import importlib.util
import sys
from pathlib import Path

_FAKE = Path(__file__).with_name("no_lock.py")


class _Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "mfimage.capture.environment.sources":
            folder = str(Path(path[0], "sources"))
            return importlib.util.spec_from_file_location(
                name, _FAKE, submodule_search_locations=[folder]
            )
        return None


sys.meta_path.insert(0, _Finder)
