"""The memory of the machine, beside that which an array takes."""

import math
import os

import jax
import jax.numpy as jnp

CHECKED = 2**28
"""Smaller arrays, in bytes, are not compared with the memory that is left."""


def require_room(value, name: str) -> None:
    """ValueError where a host array, as floating point, is larger than the memory that is left.

    Nothing is allocated. value: an array, a list of arrays, or anything else, which is not checked.
    """
    parts = value if isinstance(value, (list, tuple)) else [value]
    needed = sum(_bytes(part) for part in parts)
    if needed < CHECKED:
        return
    left, where = _bytes_left()
    if needed > left:
        raise ValueError(
            f"{name} of shape {_shape(parts[0])} take {_readable(needed)} in floating point, and "
            f"{where} has {_readable(left)} left: fit fewer rows, float32 data, an array that is "
            "sharded by rows over several devices, or one part after the other"
        )


def _bytes(part) -> int:
    """The bytes of an array on the host as floating point; 0 for arrays on a device."""
    shape, dtype = getattr(part, "shape", None), getattr(part, "dtype", None)
    if isinstance(part, jax.Array) or not isinstance(shape, tuple) or dtype is None:
        return 0
    is_wide = getattr(dtype, "itemsize", 4) >= 8 or getattr(dtype, "kind", "f") in "biu"
    width = jnp.result_type(float).itemsize if is_wide else 4
    return math.prod(shape) * width


def _shape(part):
    return tuple(getattr(part, "shape", ()))


def _bytes_left() -> tuple[float, str]:
    """The bytes that are left where a program runs, and the name of that place."""
    device = jax.config.jax_default_device
    device = device if hasattr(device, "memory_stats") else jax.local_devices(backend=device)[0]
    stats = None if device.platform == "cpu" else device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0), f"the device {device}"
    return _host_bytes_left(), "the machine"


def _host_bytes_left() -> float:
    """The bytes of the host that are available, all of its memory where only that is known."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
        return pages * os.sysconf("SC_PAGE_SIZE") if pages < math.inf else pages
    except (OSError, ValueError):
        return math.inf


def _readable(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} PiB"
