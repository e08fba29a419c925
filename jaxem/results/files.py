"""Results on disk."""

import dataclasses

from jaxem.numerics.storage import DAMAGE, decode, encode, read, write
from jaxem.results.trace import Trace
from jaxem.solver.problem import Fit
from jaxem.wrappers.adopt import adopt

FORMAT = 1
FIELDS = tuple(f.name for f in dataclasses.fields(Fit))
ENDS = ("total_weight", "n_units", "shares_model")


def save(result, path) -> None:
    """Writes `result` to `path`; a model that is not jaxem's own is left out, params must not be.

    Raises ValueError where the params hold something other than arrays in dicts, lists, tuples and
    jaxem's own params.
    """
    arrays = []
    best = result.complete()
    content = {name: encode(getattr(best, name), arrays) for name in FIELDS}
    content["restarts"] = encode(result.restarts, arrays)
    try:
        content["model"] = encode(result.model, arrays)
    except ValueError:
        content["model"] = None
    content["trace"] = None if result.trace is None else encode(vars(result.trace), arrays)
    content |= {"format": FORMAT, "data_shape": list(result.data_shape)}
    content |= {name: encode(getattr(result, name), arrays) for name in ENDS}
    write(path, content, arrays)


def load(path, model, find):
    """The arguments of `Result.of`, as `save` wrote them.

    model: needed where it is not one of jaxem's own. find: the public class of a name.

    Raises ValueError where the file is damaged, not a jaxem result, or lacks its model.
    """
    try:
        content, arrays = read(path)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
        fields = {name: decode(content[name], arrays, find) for name in FIELDS}
        restarts = decode(content["restarts"], arrays, find)
        saved = decode(content["model"], arrays, find)
        shape = tuple(content["data_shape"])
        trace = decode(content.get("trace"), arrays, find)
        ends = [decode(content[name], arrays, find) for name in ENDS]
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or not a jaxem result: {error}") from error
    if model is None and saved is None:
        raise ValueError(f"{path} was saved from a model of your own: call load(path, model=...)")
    model = saved if model is None else adopt(model)
    return model, Fit(**fields), restarts, shape, None, *ends, trace and Trace(**trace)
