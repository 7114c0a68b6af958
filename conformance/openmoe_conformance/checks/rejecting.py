"""What a check of class R asks: that a call raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openmoe_conformance.outcome import Disagreement
from openmoe_conformance.subject import UnsupportedError


def must_reject(what: str, action: Callable[[], Any]) -> None:
    """Require that `action` raises; an unsupported call still means SKIPPED."""
    try:
        action()
    except UnsupportedError:
        raise
    except Exception:  # noqa: BLE001 - which exception is the implementation's own business
        return
    raise Disagreement(f"{what}: was accepted")
