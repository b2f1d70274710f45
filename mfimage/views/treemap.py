"""The files of an image -> a tree of sizes: layers, in them distributions or folders, and files.

What is drawn of it is squarified by `treemap.js`, at the width of the window.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mfimage.image.find.files import LayerFiles, StoredFiles
from mfimage.runtime.layout import BLOBS, CODE, FUNCTION, FUNCTION_JSON, LOCK, RUNTIME, VENV

BASE, LAYER = "base", "layer"
# What a layer is for, by folder; the most specific first. What is elsewhere is of the base.
_PLACES = {
    f"{FUNCTION}/{BLOBS}": "artifacts",
    FUNCTION: "code",
    RUNTIME: "runtime",
    VENV: "dependencies",
}
KINDS = (BASE, "dependencies", "artifacts", "runtime", "code")
_SMALL = "smaller files"
# With more, a page takes megabytes and nothing more is visible.
MOST_FILES = 6000
_LONGEST_LICENCE = 60


@dataclass(kw_only=True)
class Node:
    """A layer, distribution, folder or file, and its bytes."""

    name: str
    size: int = 0
    kind: str = ""  # of a layer
    children: dict[str, Node] = field(default_factory=dict)

    def add(self, path: Iterable[str], size: int) -> None:
        """Add a file below this node."""
        node = self
        node.size += size
        for name in path:
            node = node.children.setdefault(name, Node(name=name))
            node.size += size

    def by_size(self) -> list[Node]:
        """Return the children, the largest first."""
        return sorted(self.children.values(), key=lambda each: (-each.size, each.name))

    def to_json(self) -> list[Any]:
        """Return ``[name, size]``, and of what has children: them, and the kind of a layer."""
        if not self.children:
            return [self.name, self.size]
        children = [each.to_json() for each in self.by_size()]
        return [self.name, self.size, children, *([self.kind] if self.kind else [])]


@dataclass(frozen=True, kw_only=True)
class InstalledSize:
    """A distribution that is installed in an image."""

    name: str
    version: str
    size: int
    licence: str  # as its metadata names it; may be empty


def is_needed(path: str) -> bool:
    """Return whether the content of a file is needed, not its size alone."""
    folder, name = posixpath.split(path)
    if name in ("RECORD", "METADATA"):
        return folder.endswith(".dist-info")
    own = f"/{path}".startswith(f"{FUNCTION}/") and not f"/{path}".startswith(f"{FUNCTION}/{CODE}/")
    return own and name in (FUNCTION_JSON, LOCK)


def kind_of(layer: LayerFiles) -> str:
    """Return what a layer is for, by where most of its bytes are."""
    sizes = dict.fromkeys(KINDS, 0)
    for path, size in layer.files.items():
        places = (kind for place, kind in _PLACES.items() if f"/{path}".startswith(f"{place}/"))
        sizes[next(places, BASE)] += size + 1
    return max(sizes, key=lambda kind: sizes[kind])


def tree(name: str, files: StoredFiles, blobs: Mapping[str, str], *, ours: bool = True) -> Node:
    """Return the tree of an image; ``blobs`` are names for files that are named by a digest.

    Of an image that is not ``ours``, it is not known what a layer is for.
    """
    owners = _owners(files.kept)
    smallest = _threshold(files)
    root = Node(name=name)
    for number, layer in enumerate(files.layers, 1):
        kind = kind_of(layer) if ours else LAYER
        own = Node(name=f"{number} {kind}", kind=kind)
        for path, size in layer.files.items():
            folder, base = posixpath.split(path)
            owner = _owner(path, owners)
            where = (owner[0], *_inside(folder, owner[1])) if owner else _parts(folder)
            if base in blobs:
                own.add((blobs[base],), size)
            else:
                own.add((*where, base if size >= smallest else _SMALL), size)
        root.children[own.name] = _collapsed(own)
        root.size += own.size
    return root


def _threshold(files: StoredFiles) -> int:
    """Return the number of bytes from which on files are shown one by one."""
    sizes = sorted((s for layer in files.layers for s in layer.files.values()), reverse=True)
    return sizes[MOST_FILES - 1] + 1 if len(sizes) > MOST_FILES else 0


def _owners(contents: Mapping[str, bytes]) -> dict[str, tuple[str, str]]:
    """Return the distribution of each file, as ``numpy 2.1.0``, and its ``site-packages``."""
    found = {}
    for info, record in _records(contents):
        label, site = " ".join(_name_and_version(info)), posixpath.dirname(info)
        for path in _listed(record, site):
            found[path] = (label, site)
    return found


def _owner(path: str, owners: Mapping[str, tuple[str, str]]) -> tuple[str, str] | None:
    """Return the distribution of a file, or of the file that it was compiled from."""
    folder, name = posixpath.split(path)
    if posixpath.basename(folder) == "__pycache__":
        path = posixpath.join(posixpath.dirname(folder), f"{name.partition('.')[0]}.py")
    return owners.get(path)


def _records(contents: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    for path, data in contents.items():
        folder, name = posixpath.split(path)
        if name == "RECORD":
            yield folder, data


def _listed(record: bytes, site: str) -> Iterator[str]:
    """Yield the paths in a ``RECORD``, of which each line is ``path,hash,size``."""
    for line in record.decode(errors="replace").splitlines():
        path = line.rpartition(",")[0].rpartition(",")[0]
        if path.startswith('"'):
            path = path[1:-1].replace('""', '"')
        if path:
            yield posixpath.normpath(f"{site}/{path}")


def _name_and_version(info: str) -> tuple[str, str]:
    name, _, version = posixpath.basename(info).removesuffix(".dist-info").partition("-")
    return name.replace("_", "-").lower(), version


def _inside(folder: str, site: str) -> tuple[str, ...]:
    """Return the parts of a distribution's folder, as seen from ``site-packages``."""
    return tuple(p for p in posixpath.relpath(folder, site).split("/") if p not in (".", ".."))


def _parts(folder: str) -> tuple[str, ...]:
    return tuple(folder.split("/")) if folder else ()


def _collapsed(node: Node) -> Node:
    """Join folders that hold one other folder and nothing else, as ``usr/local/lib``."""
    children = [_collapsed(each) for each in node.children.values()]
    if len(children) == 1 and children[0].children and not node.kind:
        (only,) = children
        return Node(name=f"{node.name}/{only.name}", size=node.size, children=only.children)
    by_name = {each.name: each for each in children}
    return Node(name=node.name, size=node.size, kind=node.kind, children=by_name)


def installed(files: StoredFiles) -> tuple[InstalledSize, ...]:
    """Return the distributions in an image, the largest first."""
    owners, sizes = _owners(files.kept), dict[str, int]()
    for layer in files.layers:
        for path, size in layer.files.items():
            if owner := _owner(path, owners):
                sizes[owner[0]] = sizes.get(owner[0], 0) + size
    found = []
    for info, _ in _records(files.kept):
        name, version = _name_and_version(info)
        licence = _licence(files.kept.get(f"{info}/METADATA", b""))
        size = sizes.get(f"{name} {version}", 0)
        found.append(InstalledSize(name=name, version=version, size=size, licence=licence))
    return tuple(sorted(found, key=lambda each: (-each.size, each.name)))


def _licence(metadata: bytes) -> str:
    """Return a licence as ``METADATA`` has it: an expression, classifiers, or a short text."""
    fields: dict[str, list[str]] = {}
    for line in metadata.decode(errors="replace").splitlines():
        if not line:
            break
        name, _, value = line.partition(": ")
        fields.setdefault(name, []).append(value.strip())
    if expression := fields.get("License-Expression"):
        return expression[0]
    prefix = "License :: "
    classifiers = [each for each in fields.get("Classifier", ()) if each.startswith(prefix)]
    if names := [each.rpartition(" :: ")[2] for each in classifiers]:
        return ", ".join(names)
    text = (fields.get("License") or [""])[0]
    return text if len(text) <= _LONGEST_LICENCE else f"{text[: _LONGEST_LICENCE - 1]}…"
