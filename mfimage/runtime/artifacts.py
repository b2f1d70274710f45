"""Verified artifact bytes -> the object, as Metaflow would load it."""

from __future__ import annotations

import gzip
import io
import operator
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
        if not self._code.owns(module_name):
            return super().find_class(module_name, global_name)
        return operator.attrgetter(global_name)(self._code.import_module(module_name))


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
    try:
        return _decode(ref, data, code)
    except Exception as error:
        message = f"parameter {name!r} ({ref.type})"
        if isinstance(error, ModuleNotFoundError):
            message += f" needs the module {code.public(error.name)!r}, which is not installed here"
            hint = "run it where its environment is: the image, or a matching virtual environment"
        elif isinstance(error, ParameterError):
            message, hint = f"{message}: {error.message}", error.hint or ""
        else:
            message += f" cannot be loaded: {type(error).__name__}: {error}"
            hint = "is it loaded with the versions, and the code, that it was saved with?"
        raise ParameterError(message, hint=hint or None) from error


def _decode(ref: ArtifactRef, data: bytes, code: CodeSpace) -> Any:
    encoding = ref.encoding
    if encoding.startswith(_GZIP):
        data, encoding = gzip.decompress(data), encoding.removeprefix(_GZIP)
    if encoding.startswith("pickle"):
        return _Unpickler(data, code).load()
    return _by_metaflow(ref, encoding, data)


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
