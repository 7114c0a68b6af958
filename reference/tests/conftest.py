"""Shape checks of the reference, in these tests only, and the import of `naive`.

`openmoe_reference` is imported under jaxtyping's hook, so beartype checks every call of its
functions against their annotations: dtypes, ranks, and that a letter has one size in all arguments
and the result. The checks run during the tests of this folder and are off in any other test of the
same process. `test_rejections.py` switches them off for itself: there the reference must refuse.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import config, install_import_hook

# As for mypy, an int is a float (PEP 484).
_CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"

# `naive` is imported by name although importlib mode puts no test folder on the path.
sys.path.append(str(Path(__file__).parent))


def _import_under_hook() -> None:
    """Import the whole reference with checks, anew where it was imported before.

    Not by reloading: a class would then have two identities, and its annotations the older one.
    """
    for name in [name for name in sys.modules if name.partition(".")[0] == "openmoe_reference"]:
        del sys.modules[name]
    with install_import_hook("openmoe_reference", _CHECKER):
        package = importlib.import_module("openmoe_reference")
        for found in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"openmoe_reference.{found.name}")


_import_under_hook()
config.update("jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def shape_checks() -> Iterator[None]:
    """Check the annotations of the reference during one test."""
    config.update("jaxtyping_disable", False)
    yield
    config.update("jaxtyping_disable", True)
