"""Experts as serving engines return them for a request: [tokens, layers, choices]. Spec: AUDIT-27.

npy, npz (`routed_experts`), or JSON: objects with `routed_experts`, as nested lists, or as base64 of int32
with its `shape`, where it is not told by --layers and --choices; one object, or one a line. Each is a
request, which is a document. Engines record nothing of a request's last token.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.importing import stores
from openmoe_tools.audit.importing.recordings import Options, Recording

_NAME = "routed_experts"
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "uint8": np.dtype("u1"),
    "int16": np.dtype("<i2"),
    "uint16": np.dtype("<u2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
}


def read(paths: Sequence[Path], options: Options) -> Iterator[Recording]:
    """Yield the requests. Errors: UsageError."""
    if options.experts is None:
        raise UsageError(
            "routed experts do not tell how many experts there are, dead ones among them: give --experts E"
        )
    for path in paths:
        for where, experts in _arrays(path, options):
            yield Recording(where, experts, options.experts, request=True)


def _arrays(path: Path, options: Options) -> Iterator[tuple[str, ndarray]]:
    if path.suffix in stores.ARRAYS:
        with stores.opened(path) as store:
            yield str(path), np.asarray(stores.one_of(store, _NAME, path))
        return
    for where, found in stores.lines(path):
        told = found.get("meta_info", found)  # as one engine wraps it
        if not isinstance(told, Mapping) or _NAME not in told:
            raise UsageError(f"{where}: has no {_NAME}")
        yield where, _decoded(told, where, options)


def _decoded(told: Mapping[str, Any], where: str, options: Options) -> ndarray:
    value = told[_NAME]
    if not isinstance(value, str):
        return stores.as_array(value, f"{where}: {_NAME}")
    name = told.get("dtype", "int32")
    if not isinstance(name, str) or name not in _DTYPES:
        raise UsageError(f"{where}: dtype {name!r} is none of {', '.join(_DTYPES)}")
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{where}: {_NAME} is no base64 ({error})") from error
    shape = told.get("shape") or [-1, options.layers, options.choices]
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int for n in shape):
        raise UsageError(
            f"{where}: has no shape [tokens, layers, choices]; give --layers and --choices"
        )
    try:
        return np.frombuffer(content, _DTYPES[name]).reshape(shape)
    except ValueError as error:
        raise UsageError(
            f"{where}: {len(content)} bytes of {name} are not of shape {shape}"
        ) from error
