"""The reference's checkpoints behind the adapter's functions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy import ndarray

from openmoe_reference import checkpoints
from openmoe_spec import layouts, places
from openmoe_spec.errors import RejectedError


class ReferenceCheckpointAdapter:
    """Digests, the cast, and the names of the second port."""

    def tensor_digest(self, tensor: ndarray) -> str:
        return checkpoints.tensor_digest(tensor)

    def model_digest(self, digests: Mapping[str, str]) -> str:
        return checkpoints.model_digest(digests)

    def round_to_bfloat16(self, tensor: ndarray) -> ndarray:
        return checkpoints.to_bfloat16(tensor).astype(np.float32)

    def per_expert_parameters(self, parameters: Mapping[str, ndarray]) -> dict[str, ndarray]:
        layout, found = layouts.layout("per_expert"), {}
        for name, value in parameters.items():
            try:
                placed = places.place(layout, {name: value.shape})[name]
            except KeyError as error:
                raise RejectedError(
                    f"parameters[{name!r}]", "CKPT-04", f"has no counterpart, {value.shape}"
                ) from error
            for part in placed.parts:
                own = value if part.matrix is None else value[part.matrix]
                turned = layouts.TRANSPOSE in part.operations
                found[part.theirs] = np.ascontiguousarray(own.T if turned else own)
        return found
