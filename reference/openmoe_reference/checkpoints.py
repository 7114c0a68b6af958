"""SPEC.md "Checkpoints": digests that do not depend on a container, and casts.

Small arrays, whole in memory; the tools do the same a piece at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from numpy import ndarray


def tensor_digest(tensor: ndarray) -> str:
    """Return the SHA-256 of a tensor: dtype and shape in a line, then its values, in hexadecimal.

    The line is `float32[2,3]` and a newline; the values follow in C order, little-endian.
    Spec: CKPT-01.
    """
    line = f"{tensor.dtype.name}[{','.join(map(str, tensor.shape))}]\n"
    values = np.ascontiguousarray(tensor)
    little = values.astype(values.dtype.newbyteorder("<")) if _is_big(values) else values
    return hashlib.sha256(line.encode() + little.tobytes()).hexdigest()


def _is_big(array: ndarray) -> bool:
    return array.dtype.byteorder == ">"


def model_digest(digests: Mapping[str, str]) -> str:
    """Return the Merkle root over the tensors of a model, given each one's digest by name.

    Leaves are lines `name digest` and a newline, sorted by name's bytes. Spec: CKPT-02.
    Source: RFC 6962, section 2.1.
    """
    ordered = sorted(digests, key=str.encode)
    return _root([f"{name} {digests[name]}\n".encode() for name in ordered]).hex()


def _root(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    half = 1 << (len(leaves) - 1).bit_length() - 1  # the largest power of two below their number
    return hashlib.sha256(b"\x01" + _root(leaves[:half]) + _root(leaves[half:])).digest()


def to_bfloat16(tensor: ndarray) -> ndarray:
    """Return float32 values as bfloat16, to the nearest, ties to even; NaN stays NaN.

    Spec: CKPT-03.
    """
    bits = np.ascontiguousarray(tensor, np.float32).view(np.uint32)
    odd = bits >> 16 & 1  # what decides a tie
    nearest = (bits + 0x7FFF + odd) >> 16
    quiet = bits >> 16 | 0x40
    return np.where(np.isnan(tensor), quiet, nearest).astype(np.uint16).view(ml_dtypes.bfloat16)
