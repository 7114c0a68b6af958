"""What Orbax tells of its failures, made one line, and the rest of it kept from the terminal."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import orbax.checkpoint as ocp  # type: ignore[import-untyped, unused-ignore]

_ORBAX = str(Path(ocp.__file__).parent)


def reason(error: BaseException) -> str:
    """Return in a line why something failed: what the system said, if it stands behind the error.

    TensorStore tells it by number; a process that failed fails again while it waits for the others.
    """
    behind: BaseException | None = error
    while behind is not None:
        code = re.search(r"os_error_code='(\d+)'", str(behind))
        if code:
            return os.strerror(int(code[1]))
        if isinstance(behind, OSError) and behind.strerror:
            return behind.strerror
        behind = behind.__cause__ or behind.__context__
    if isinstance(error, TimeoutError) or "DEADLINE_EXCEEDED" in str(error):
        return "not all processes were done in time"
    return " ".join(str(error).split())[:200] or type(error).__name__


def writers() -> Iterator[Callable[[], None]]:
    """Yield what waits for the threads of a step of which another has failed."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith(ocp.__name__):
            yield thread.join


@cache
def quieten() -> None:
    """Keep from the terminal what Orbax tells beside the errors that it raises.

    Its records are many, with tracebacks; and where one array fails, those beside it end behind the loop
    that waits for them, of which each tells as of an error that nobody could raise.
    """
    logging.getLogger("absl").addFilter(lambda record: not record.pathname.startswith(_ORBAX))
    whole = logging.Formatter()
    logging.getLogger("asyncio").addFilter(
        lambda record: not re.search("orbax|tensorstore", whole.format(record))
    )
    unawaited = r"coroutine '(async_serialize|Store\.)"
    warnings.filterwarnings("ignore", unawaited, RuntimeWarning)
    before = sys.unraisablehook

    def hook(told: sys.UnraisableHookArgs) -> None:
        late = isinstance(told.exc_value, RuntimeError) and "loop is closed" in str(told.exc_value)
        code = told.object.cr_code if inspect.iscoroutine(told.object) else None
        if not late and not (code and code.co_filename.startswith(_ORBAX)):
            before(told)

    sys.unraisablehook = hook
