"""Verified artifact bytes -> the object, as Metaflow would load it."""

from __future__ import annotations

import gzip
import io
import pickle
from typing import Any

from mfimage.errors import ParameterError
from mfimage.package.spec import ArtifactRef
from mfimage.runtime.modules import CodeSpace

_GZIP = "gzip+"


class _Unpickler(pickle.Unpickler):
    """Finds the classes of the function's own code where this process keeps them."""

    def __init__(self, data: bytes, code: CodeSpace) -> None:
        super().__init__(io.BytesIO(data))
        self._code = code

    def find_class(self, module_name: str, global_name: str) -> Any:
        value: Any = self._code.import_module(module_name)
        for part in global_name.split("."):
            value = getattr(value, part)
        return value


def load_artifact(name: str, ref: ArtifactRef, data: bytes, code: CodeSpace) -> Any:
    """Return the object that ``data`` holds.

    Parameters
    ----------
    name : str
        The artifact's name, for errors.
    ref : ArtifactRef
        Says how it is encoded.
    data : bytes
        The stored bytes, already verified.
    code : CodeSpace
        Where classes of the project are imported from.

    Raises
    ------
    ParameterError
        When a class it names is missing, or nothing here reads its encoding.
    """
    encoding = ref.encoding
    try:
        if encoding.startswith(_GZIP):
            data, encoding = gzip.decompress(data), encoding.removeprefix(_GZIP)
        if encoding.startswith("pickle"):
            return _unpickle(data, code)
        if encoding.startswith("text+"):
            return data.decode(encoding.removeprefix("text+"))
        if encoding == "bytes":
            return data
        return _by_metaflow(ref, encoding, data)
    except ParameterError:
        raise
    except ModuleNotFoundError as error:
        raise ParameterError(
            f"parameter {name!r} ({ref.type}): needs the module {error.name!r}, "
            "which is not installed here",
            hint="run it where its environment is: the image, or a matching virtual environment",
        ) from error
    except Exception as error:
        raise ParameterError(
            f"parameter {name!r} ({ref.type}) cannot be loaded: {type(error).__name__}: {error}",
            hint="is it loaded with the versions it was saved with?",
        ) from error


def _unpickle(data: bytes, code: CodeSpace) -> Any:
    try:
        return _Unpickler(data, code).load()
    except AttributeError as error:
        # A class that the script's __main__ had and its module, imported, has not.
        raise ParameterError(f"a class that the artifact names is gone: {error}") from error


def _by_metaflow(ref: ArtifactRef, encoding: str, data: bytes) -> Any:
    """Load what a Metaflow serializer other than pickle wrote."""
    try:
        from metaflow.datastore.artifacts.serializer import (
            SerializationFormat,
            SerializationMetadata,
            SerializerStore,
        )
    except ImportError:
        raise ParameterError(
            f"encoding {encoding!r} needs Metaflow's serializers, which are not installed here"
        ) from None
    metadata = SerializationMetadata(ref.type, ref.size, encoding, dict(ref.info))
    for serializer in SerializerStore.get_ordered_serializers():
        if serializer.can_deserialize(metadata):
            return serializer.deserialize([data], metadata, format=SerializationFormat.STORAGE)
    raise ParameterError(
        f"no serializer reads encoding {encoding!r}",
        hint=f"install the Metaflow extension that wrote it ({ref.info.get('source', 'unknown')})",
    )
