"""One stored vector case, and the reading of its arrays.

Whatever is wrong with a file becomes a VectorError that names file and case, never a crash.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import Evidence
from openmoe_conformance.subject import Subject

Arrays = Mapping[str, ndarray]
SCHEMA = 1
"""Version of the own layout."""


class VectorError(Exception):
    """A vector file or case that cannot be used; the message names file and case."""


@dataclass(frozen=True)
class VectorCase:
    """One stored case. `comparisons` maps what is compared to the clause it decides.

    `skip` says why no version of this kit, or only a later one, can run it; `faults` why it is
    unusable.
    """

    set_name: str
    id: str
    kind: str
    exercises: str
    config: Mapping[str, Any]
    comparisons: Mapping[str, str]
    arrays: tuple[str, ...]
    file: Path | None
    sha256: str | None = None
    faults: tuple[str, ...] = field(default=())
    skip: str = ""

    def load(self) -> dict[str, ndarray]:
        """Return the arrays. Errors: VectorError naming the file and the case."""
        if self.faults:
            raise VectorError(self.faults[0])
        if self.file is None:
            return {}
        where = f"{self.file.name}, case {self.id}"
        try:
            content = _archive(str(self.file), self.sha256)
        except VectorError as error:
            raise VectorError(f"{where}: {error}") from error
        found = {}
        for name in self.arrays:
            try:
                found[name] = content[f"{self.id}/{name}"]
            except KeyError:
                raise VectorError(f"{where}: array {name} is missing") from None
            except Exception as error:
                raise VectorError(f"{where}: array {name} cannot be read ({error})") from error
        return found


Comparison = Callable[[Subject, VectorCase, Arrays, Evidence], None]
"""Compares one thing of a case; raises Disagreement where it fails."""


_OPEN: dict[tuple[str, str | None], Any] = {}


def _archive(path: str, sha256: str | None) -> Any:
    key = (path, sha256)
    if key not in _OPEN:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise VectorError(f"cannot be read ({error.strerror})") from error
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise VectorError("its sha256 is not the one in index.json: truncated or changed")
        try:
            _OPEN[key] = np.load(io.BytesIO(content), allow_pickle=False)
        except Exception as error:
            raise VectorError(f"is no whole npz archive ({error})") from error
    return _OPEN[key]
