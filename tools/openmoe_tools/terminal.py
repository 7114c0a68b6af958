"""Where reports are printed."""

from __future__ import annotations

from rich.console import Console


def console() -> Console:
    """Return the terminal, or a wide page where the output is a file or a pipe."""
    found = Console()
    return found if found.is_terminal else Console(width=140)


def say(to: Console, text: str = "", style: str | None = None) -> None:
    """Print a line as it is: not wrapped, without markup, without colours of its own."""
    to.print(text, style=style, highlight=False, markup=False, soft_wrap=True)
