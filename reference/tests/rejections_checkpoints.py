"""What digests and casts refuse."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rejections import LEGAL, Row, rows_of_values

TENSOR = np.arange(6, dtype=np.float32).reshape(2, 3)
DIGEST = "0" * 64

LEGAL.update(
    {
        "checkpoints.tensor_digest": {"tensor": TENSOR},
        "checkpoints.model_digest": {"digests": {"a": DIGEST}},
        "checkpoints.to_bfloat16": {"tensor": TENSOR},
    }
)


def rows() -> Iterator[Row]:
    """Yield the illegal calls."""
    none = {"none": None, "a list": [[1.0]], "a number": 1.0, "objects": TENSOR.astype(object)}
    yield from rows_of_values("checkpoints.tensor_digest", "tensor", none, "CKPT-01")
    other = none | {"float64": TENSOR.astype(np.float64), "whole numbers": TENSOR.astype(np.int32)}
    yield from rows_of_values("checkpoints.to_bfloat16", "tensor", other, "CKPT-03")
    digests = {
        "none": None,
        "no tensor": {},
        "a list": [DIGEST],
        "a short digest": {"a": DIGEST[1:]},
        "capitals": {"a": "A" * 64},
        "no text": {"a": 5},
        "a name that is none": {1: DIGEST},
    }
    yield from rows_of_values("checkpoints.model_digest", "digests", digests, "CKPT-02")


ROWS = [*rows()]
