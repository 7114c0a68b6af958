"""What the functional tier found, as numbers and lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from openmoe_tools.checkpoints.function.choosing import Routing
from openmoe_tools.checkpoints.function.measuring import (
    CAST_MULTIPLE,
    MULTIPLE,
    ULPS,
    LogitsDifference,
)
from openmoe_tools.checkpoints.function.probes import Coverage


@dataclass(frozen=True)
class Activation:
    """How far two passes are apart at one activation, in units of the first's largest value."""

    name: str
    relative_error: float
    floor: float
    allowed: float

    @property
    def over(self) -> bool:
        """Whether it is more than is allowed."""
        return not self.relative_error <= self.allowed


@dataclass(frozen=True, kw_only=True)
class Functional:
    """What the forward passes say: `holds`, `differs` or `incomplete`, and the numbers.

    first            the first operation at which they part, in the order of the forward pass
    modes            passes by how they were compared: `free`, each with its own decisions; `forced`,
                     the second with the first's, after its own choices differed; `recorded`
    tokens, judged   positions of all rows, and those that no near-tie has left open
    logits           of the passes that are judged
    logits_free      where passes were forced: of the same ones with their own decisions, not judged
    logits_floor     what rounding alone does to the first model
    """

    verdict: str
    findings: tuple[str, ...]
    first: str | None = None
    modes: Mapping[str, int] = field(default_factory=dict)
    tokens: int = 0
    judged: int = 0
    logits: LogitsDifference | None = None
    logits_free: LogitsDifference | None = None
    logits_floor: LogitsDifference | None = None
    logits_allowed: float | None = None
    activations: tuple[Activation, ...] = ()
    routing: tuple[Routing, ...] = ()
    coverage: Coverage | None = None
    probes: tuple[tuple[str, int, int], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it; a number that is not finite is null, and a finding says so."""
        made = {one.name: _plain(getattr(self, one.name)) for one in fields(self)}
        made["coverage"] = None if self.coverage is None else self.coverage.as_dict()
        made["tolerance"] = {"multiple": MULTIPLE, "cast_multiple": CAST_MULTIPLE, "ulps": ULPS}
        return made


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    return value
