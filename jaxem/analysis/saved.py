"""Finished fits on disk, several in one file, for `Selection.save` and `jaxem.load`."""

from jaxem.numerics.storage import DAMAGE, decode, encode, read, write
from jaxem.results.files import FIELDS
from jaxem.results.result import Result
from jaxem.solver.problem import Fit

KIND = "selection"
OTHERS = ("model", "restarts", "total_weight")


def save(path, values, results) -> None:
    """Writes `values`, a tree of numbers, strings and models, and a sequence of `Result`.

    Raises ValueError where a model is not one of jaxem's own.
    """
    arrays = []
    saved_results = [
        {name: encode(getattr(best, name), arrays) for name in FIELDS}
        | {name: encode(getattr(result, name), arrays) for name in OTHERS}
        | {"data_shape": list(result.data_shape)}
        for result, best in ((result, result.complete()) for result in results)
    ]
    content = {"kind": KIND, "values": encode(values, arrays), "results": saved_results}
    write(path, content, arrays)


def load(path, find):
    """(values, results) as `save` wrote them. find: the public class of a name.

    Raises ValueError where the file is damaged.
    """
    try:
        content, arrays = read(path)
        results = tuple(_result(saved, arrays, find) for saved in content["results"])
        return decode(content["values"], arrays, find), results
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or no jaxem selection: {error}") from error


def _result(saved, arrays, find) -> Result:
    fields = {name: decode(saved[name], arrays, find) for name in FIELDS}
    model, restarts, total = (decode(saved[name], arrays, find) for name in OTHERS)
    shape = tuple(saved["data_shape"])
    return Result.of(model, Fit(**fields), restarts, shape, total_weight=total)
