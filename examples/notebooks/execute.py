"""Run the notebooks of this folder and keep their outputs: python execute.py [NOTEBOOK ...]."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
# Outputs name the folder that a notebook ran in.
SHOWN_FOLDER = "/home/you/notebooks"


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run a notebook in a folder; what would differ each time is left out of its outputs."""
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number}"
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # notices of libraries, with the time
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def main() -> None:
    """Execute what is named, or all, and write it back."""
    os.environ.setdefault("METAFLOW_USER", "you")  # Metaflow refuses root
    for path in map(Path, sys.argv[1:] or sorted(HERE.glob("*.ipynb"))):
        notebook = nbformat.read(path, as_version=4)
        folder = Path(tempfile.mkdtemp())
        try:
            execute(notebook, folder)
        finally:
            shutil.rmtree(folder)
        text = nbformat.writes(notebook).replace(str(folder), SHOWN_FOLDER)
        path.write_text(f"{text.rstrip()}\n")


if __name__ == "__main__":
    main()
