"""What an implementation offers: an object with any of the functions below, all optional.

A function that is missing, or that does not take a keyword, makes the checks that need it SKIPPED.
Arrays come in as NumPy arrays and may go out as anything `numpy.asarray` takes. Records may be
`openmoe_spec.records` dataclasses, mappings, or objects with the same attribute names.
The guide is `conformance/README.md`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from openmoe_conformance.outcome import UsageError
from openmoe_conformance.protocol import ANY, FUNCTIONS


class UnsupportedError(Exception):
    """The implementation does not offer what a check needs: the check is SKIPPED."""


def load(name: str) -> Any:
    """Return the adapter that `package.module:Attribute` names; a class is instantiated.

    `package.module:Class@text` hands it the text, which says in which of its ways it is to run.
    Errors: UsageError when the module, the attribute, the text or the form of the name is wrong, or
    when the object has none of the protocol's functions.
    """
    place, at, text = name.partition("@")
    module_name, colon, attribute = place.partition(":")
    if not colon or not module_name or not attribute:
        raise UsageError(f"--implementation {name}: write it as package.module:Adapter")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
        adapter = found if not isinstance(found, type) else found(text) if at else found()
    except (Exception, SystemExit) as error:  # whatever the stranger's module does while loading
        hint = "; write the module without .py" if module_name.endswith(".py") else ""
        raise UsageError(f"--implementation {name}: {describe(error)}{hint}") from error
    if at and adapter is found:
        raise UsageError(f"--implementation {name}: {attribute} is no class that takes {text!r}")
    if not any(callable(getattr(adapter, function, None)) for function in FUNCTIONS):
        raise UsageError(
            f"--implementation {name}: offers none of {', '.join(FUNCTIONS)}; "
            "conformance/README.md shows how an adapter looks"
        )
    return adapter


def describe(error: BaseException) -> str:
    """Return an error in one line, with the innermost place that is no library's and not the kit's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not _FOREIGN.intersection(Path(f.filename).parts)]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{f': {text}' if text else ''}{place}"


_FOREIGN = frozenset(
    ("site-packages", "openmoe_conformance", "importlib", "<frozen importlib._bootstrap>")
)


def misspelt(adapter: Any) -> list[str]:
    """Return a note for each public method or keyword that is almost one of the protocol."""
    notes = []
    for name in sorted(n for n in dir(adapter) if not n.startswith("_")):
        method = getattr(adapter, name, None)
        if not callable(method):
            continue
        if name in FUNCTIONS:
            protocol = FUNCTIONS[name]
            known = (*protocol.arguments, *protocol.required, *protocol.optional)
            notes += [
                f"{name}() takes {keyword}; did you mean {near}?"
                for keyword in _keywords(method)
                if (near := _near(keyword, known))
            ]
        elif near := _near(name, tuple(FUNCTIONS)):
            notes.append(f"{name}() is no function of the protocol; did you mean {near}()?")
    return notes


def _near(name: str, known: tuple[str, ...]) -> str:
    found = difflib.get_close_matches(name, known, 1, 0.85)
    return found[0] if found and name not in known else ""


def _keywords(method: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


class ExitedError(Exception):
    """The implementation called sys.exit: an error like any other, not the end of the run."""


def offers(adapter: Any, need: str) -> str | None:
    """Return None when `adapter` offers `need`, else the reason why not.

    `need` is a function name, or "function(keyword)".
    """
    function, _, keyword = need.rstrip(")").partition("(")
    method = getattr(adapter, function, None)
    if not callable(method):
        return f"offers no {function}()"
    if keyword and not _takes(method, keyword):
        return f"{function}() takes no {keyword}"
    return None


def call(adapter: Any, function: str, *arguments: Any, **keywords: Any) -> Any:
    """Call a function of the adapter with exactly the keywords it takes.

    Errors: UnsupportedError when it lacks the function or a keyword that is not at its default.
    """
    protocol = FUNCTIONS[function]
    if reason := offers(adapter, function):
        raise UnsupportedError(reason)
    method: Callable[..., Any] = getattr(adapter, function)
    passed = {}
    for keyword, value in keywords.items():
        if _takes(method, keyword):
            passed[keyword] = value
        elif keyword in protocol.required or not _is_default(value, protocol.optional[keyword]):
            raise UnsupportedError(f"{function}() takes no {keyword}")
    lent = [_lend(argument) for argument in arguments]
    try:
        return method(*lent, **{name: _lend(value) for name, value in passed.items()})
    except SystemExit as error:
        raise ExitedError(f"{function}() called sys.exit({error.code!r})") from error


_SMALL = 2**20
"""Bytes up to which an array is lent as a copy: what it is compared with must stay as it was."""


def _lend(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy() if value.nbytes <= _SMALL else value
    if isinstance(value, dict):
        return {name: _lend(inner) for name, inner in value.items()}
    return value


def _is_default(value: Any, default: Any) -> bool:
    if default is ANY:
        return True
    if isinstance(value, np.ndarray) or value is None or default is None:
        return value is default
    return bool(value == default)


def _takes(method: Callable[..., Any], keyword: str) -> bool:
    try:
        parameters = inspect.signature(method).parameters
    except (TypeError, ValueError):
        return True
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return anything or keyword in parameters
