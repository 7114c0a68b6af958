"""SPEC.md "Checkpoints": digests that do not depend on a container, and the cast to bfloat16.

Small arrays, whole in memory; the tools do the same a piece at a time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_spec.errors import RejectedError


def tensor_digest(tensor: ndarray) -> str:
    """Return the SHA256 of a tensor: dtype and shape in a line, then its values, in hexadecimal.

    The line is `float32[2,3]` and a newline; the values follow in C order, little-endian.
    Errors: RejectedError CKPT-01 on what has no values of its own. Spec: CKPT-01.
    """
    if not isinstance(tensor, ndarray) or tensor.dtype.hasobject:
        raise RejectedError("tensor", "CKPT-01", "must be an array of numbers")
    line = f"{tensor.dtype.name}[{','.join(map(str, tensor.shape))}]\n"
    is_big = tensor.dtype.byteorder == ">"
    values = tensor.astype(tensor.dtype.newbyteorder("<")) if is_big else tensor
    return hashlib.sha256(line.encode() + values.tobytes("C")).hexdigest()


def model_digest(digests: Mapping[str, str]) -> str:
    """Return the Merkle root over the tensors of a model, given each one's digest by name.

    Leaves are lines `name digest` and a newline, sorted by name's bytes.
    Errors: RejectedError CKPT-02 on what is no digest, or where there is none. Spec: CKPT-02.
    Source: RFC 6962, section 2.1.
    """
    if not isinstance(digests, Mapping) or not digests:
        raise RejectedError("digests", "CKPT-02", "must map names of tensors to digests")
    for name, digest in digests.items():
        if not isinstance(name, str) or not re.fullmatch("[0-9a-f]{64}", str(digest)):
            raise RejectedError("digests", "CKPT-02", f"{name!r}: {digest!r} is no digest")
    ordered = sorted(digests, key=str.encode)
    return _root([f"{name} {digests[name]}\n".encode() for name in ordered]).hex()


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    half = 1 << (len(leaves) - 1).bit_length() - 1  # the largest power of two below their number
    return hashlib.sha256(b"\x01" + _root(leaves[:half]) + _root(leaves[half:])).digest()


def to_bfloat16(tensor: ndarray) -> ndarray:
    """Return float32 values as bfloat16, to the nearest, ties to even; NaN stays NaN.

    Errors: RejectedError CKPT-03 on another dtype. Spec: CKPT-03.
    """
    if not isinstance(tensor, ndarray) or tensor.dtype != np.float32:
        raise RejectedError("tensor", "CKPT-03", "must be a float32 array")
    bits = tensor.reshape(-1).copy().view(np.uint32).reshape(tensor.shape)
    odd = bits >> 16 & 1  # what decides a tie
    nearest = (bits + np.uint32(0x7FFF) + odd) >> 16
    sign = bits >> 16 & 0x8000
    found = np.where(np.isnan(tensor), sign | 0x7FC0, nearest).astype(np.uint16)  # one quiet NaN
    return found.reshape(-1).view(ml_dtypes.bfloat16).reshape(tensor.shape)
