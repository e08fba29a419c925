"""Trees on disk: arrays in an npz file, their structure in JSON beside them. No pickle.

A tree has arrays, numbers, strings, None, dicts, lists, tuples, and objects of classes registered
with `numerics.tree`, which are written as the arguments of their constructor.
"""

import json
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxem.numerics.tree import arguments

DAMAGE = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, EOFError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RecursionError),
)
"""The exceptions that reading a damaged file may raise."""


def write(path, content: dict[str, Any], arrays: list[np.ndarray]) -> None:
    """Writes encoded `content`, a tree for JSON, and the arrays that it refers to."""
    named = {f"array{i}": array for i, array in enumerate(arrays)}
    with open(path, "wb") as file:
        np.savez_compressed(file, structure=np.array(json.dumps(content)), **named)


def read(path):
    """The content and the arrays that `write` wrote."""
    with np.load(path, allow_pickle=False) as file:
        content = json.loads(str(file["structure"]))
        return content, [file[f"array{i}"] for i in range(len(file.files) - 1)]


def kind_of(path) -> str | None:
    """The entry "kind" of the content of a file; None where there is none, or no such file."""
    try:
        return read(path)[0].get("kind")
    except DAMAGE:
        return None


def encode(value, arrays: list[np.ndarray]):
    """`value` for JSON; its arrays are appended to `arrays`.

    Raises ValueError where it holds an object of a class that is not registered.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        arrays.append(np.asarray(value))
        return {"array": len(arrays) - 1}
    if isinstance(value, dict):
        return {"dict": [[str(k), encode(v, arrays)] for k, v in value.items()]}
    name = type(value).__name__
    if type(value) in (list, tuple):
        return {name: [encode(v, arrays) for v in value]}
    fields = arguments(value)
    if fields is None:
        raise ValueError(f"cannot save a {name}: params may be arrays, dicts, lists and tuples")
    return {"type": name, "fields": {k: encode(v, arrays) for k, v in fields.items()}}


def decode(content, arrays, find: Callable[[str], type]):
    """The tree of which `encode` returned `content`. find: the class of a name; KeyError where
    there is none."""
    if not isinstance(content, dict):
        return content
    if "array" in content:
        return arrays[content["array"]]
    if "dict" in content:
        return {k: decode(v, arrays, find) for k, v in content["dict"]}
    if "type" in content:
        fields = {k: decode(v, arrays, find) for k, v in content["fields"].items()}
        return find(content["type"])(**fields)
    ((kind, items),) = content.items()
    return {"list": list, "tuple": tuple}[kind](decode(v, arrays, find) for v in items)
