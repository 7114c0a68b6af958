"""The checkpoint tools behind the conformance kit's functions: what they do a piece at a time.

openmoe conform --implementation openmoe_tools.checkpoints.adapter:Adapter
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy import ndarray

from openmoe_reference import checkpoints
from openmoe_spec import SPEC_VERSION
from openmoe_spec.errors import RejectedError
from openmoe_spec.layouts import layout
from openmoe_spec.places import place, stored_shapes
from openmoe_tools.checkpoints.containers.regions import apply
from openmoe_tools.checkpoints.digests import Hasher, cast

_PIECE = 5
"""Values taken in at once: as odd a number as any."""


class Adapter:
    """Digests from pieces, the cast of a conversion, and the layouts that are written."""

    name = "openmoe_tools.checkpoints"
    version = SPEC_VERSION
    rejects_invalid_input = True

    def tensor_digest(self, tensor: ndarray) -> str:
        little = tensor.dtype.newbyteorder("<") if tensor.dtype.byteorder == ">" else tensor.dtype
        values = tensor.astype(little).reshape(-1)
        hasher = Hasher(tensor.dtype.name, tensor.shape)
        for start in range(0, values.size, _PIECE):
            hasher.add(values[start : start + _PIECE])
        return hasher.digest()

    def model_digest(self, digests: Mapping[str, str]) -> str:
        return checkpoints.model_digest(digests)

    def round_to_bfloat16(self, tensor: ndarray) -> ndarray:
        return cast(tensor, "bfloat16").astype(np.float32)

    def port_parameters(self, parameters: Mapping[str, ndarray]) -> dict[str, ndarray]:
        return self._written(parameters, "port", "PARAM-05")

    def per_expert_parameters(self, parameters: Mapping[str, ndarray]) -> dict[str, ndarray]:
        return self._written(parameters, "per_expert", "CKPT-04")

    def _written(
        self, parameters: Mapping[str, ndarray], name: str, clause: str
    ) -> dict[str, ndarray]:
        shapes = {key: value.shape for key, value in parameters.items()}
        try:
            places = place(layout(name), shapes)
        except KeyError as error:
            raise RejectedError("parameters", clause, f"{error} has no counterpart") from error
        found = {theirs: np.empty(0) for theirs in stored_shapes(places)}
        for key, placed in places.items():
            for part in placed.parts:
                own = parameters[key] if part.matrix is None else parameters[key][part.matrix]
                found[part.theirs] = apply(part.operations, own)
        return found
