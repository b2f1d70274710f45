"""What ``from metaflow import ...`` gains; Metaflow copies every name that stands here."""

from mfimage import __version__
from mfimage.function.decorator import avro_function, json_function
from mfimage.function.parameters import FunctionParameters
from mfimage.function.serializers import register_serializer
from mfimage.load import JsonFunction, function_from_json

__mf_extensions__ = "mfimage"

__all__ = [
    "FunctionParameters",
    "JsonFunction",
    "__version__",
    "avro_function",
    "function_from_json",
    "json_function",
    "register_serializer",
]
