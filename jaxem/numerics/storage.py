"""Results on disk: arrays in an npz file, their structure in JSON beside them. No pickle."""

import dataclasses
import json
import zipfile
import zlib

import jax
import numpy as np

import jaxem
from jaxem.families.product import Product
from jaxem.protocol.model import adopt
from jaxem.results.result import Fit, Result

FORMAT = 1
DAMAGE = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, EOFError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError),
)


def save(result: Result, path) -> None:
    """Writes `result` to `path`; a model that is not jaxem's own is left out, params must not be.

    Raises ValueError where the params hold something other than arrays in dicts, lists, tuples and
    jaxem's own params.
    """
    arrays: list[np.ndarray] = []
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(Fit)}
    content = {name: _encode(value, arrays) for name, value in fields.items()}
    content["restarts"] = _encode(result.restarts, arrays)
    try:
        content["model"] = _encode(result.model, arrays)
    except ValueError:
        content["model"] = None
    content |= {"format": FORMAT, "data_shape": list(result.data_shape)}
    named = {f"array{i}": array for i, array in enumerate(arrays)}
    with open(path, "wb") as file:
        np.savez_compressed(file, structure=np.array(json.dumps(content)), **named)


def load(path, model=None) -> Result:
    """Reads what `Result.save` wrote. `model`: needed where it is not one of jaxem's own.

    Raises ValueError where the file is damaged, not a jaxem result, or lacks its model.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            content = json.loads(str(file["structure"]))
            arrays = [file[f"array{i}"] for i in range(len(file.files) - 1)]
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
        fields = {f.name: _decode(content[f.name], arrays) for f in dataclasses.fields(Fit)}
        restarts = _decode(content["restarts"], arrays)
        saved = _decode(content["model"], arrays)
        shape = tuple(content["data_shape"])
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or not a jaxem result: {error}") from error
    if model is None and saved is None:
        raise ValueError(f"{path} was saved from a model of your own: call load(path, model=...)")
    return Result.of(saved if model is None else adopt(model), Fit(**fields), restarts, shape)


def _encode(value, arrays):
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        arrays.append(np.asarray(value))
        return {"array": len(arrays) - 1}
    if isinstance(value, dict):
        return {"dict": [[str(k), _encode(v, arrays)] for k, v in value.items()]}
    if isinstance(value, Product):
        families = [_encode(family, arrays) for family in value.families]
        return {"product": [list(value.names), families, [list(c) for c in value.columns]]}
    name = type(value).__name__
    if dataclasses.is_dataclass(value) and getattr(jaxem, name, None) is type(value):
        fields = {
            f.name: _encode(getattr(value, f.name), arrays) for f in dataclasses.fields(value)
        }
        return {"type": name, "fields": fields}
    if type(value) in (list, tuple):
        return {name: [_encode(v, arrays) for v in value]}
    raise ValueError(f"cannot save a {name}: params may be arrays, dicts, lists and tuples")


def _decode(value, arrays):
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "dict" in value:
        return {k: _decode(v, arrays) for k, v in value["dict"]}
    if "product" in value:
        names, families, columns = value["product"]
        parts = zip(names, families, columns, strict=True)
        return Product({n: (_decode(f, arrays), c) for n, f, c in parts})
    if "type" in value:
        kind = getattr(jaxem, value["type"], None)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise ValueError(f"unknown type {value['type']!r}")
        return kind(**{k: _decode(v, arrays) for k, v in value["fields"].items()})
    ((kind, items),) = value.items()
    return {"list": list, "tuple": tuple}[kind](_decode(v, arrays) for v in items)
