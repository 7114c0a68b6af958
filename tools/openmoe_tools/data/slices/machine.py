"""The recipe `machine`: slices of what is installed beside a Python: code, data, prose, languages.

No network is used. What a machine has not, its corpus has not either, and the manifest says so.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

from openmoe_tools.data.machine_text import (
    KINDS,
    MANUALS,
    Kind,
    files_below,
    manual_text,
)
from openmoe_tools.data.slices.reading import UnreadableError, messages

TRANSLATIONS = Path("/usr/share/locale")
_LANGUAGES = ("de", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt_BR", "ru", "sv", "uk", "zh_CN")


def _files(ending: str) -> Callable[[], Mapping[str, Path | str]]:
    """Return what finds files by their ending, of packages and of Python itself."""
    wanted = re.compile(rf".*\.(?:{ending})")

    def find() -> Mapping[str, Path | str]:
        places = ("purelib", "stdlib", "include")
        return {
            name: path
            for place in places
            for name, path in files_below(Path(sysconfig.get_path(place)), wanted).items()
        }

    return find


def _as_it_is(text: str) -> str:
    return text


def _without_comment(text: str) -> str:
    """Return code of C's family without the comment at its beginning: a licence, as in every file."""
    return re.sub(r"\A\s*(/\*.*?\*/|(//[^\n]*\n)+)\s*", "", text, count=1, flags=re.DOTALL)


def _translated_pages(language: str) -> Mapping[str, Path | str]:
    wanted = re.compile(r".*\.[1-9][a-z]*(\.gz)?")
    return dict(files_below(MANUALS / language, wanted))


def _translations(language: str) -> Mapping[str, Path | str]:
    """Return what programs say in a language, sentences of some length: a document each program."""
    found: dict[str, Path | str] = {}
    for path in sorted((TRANSLATIONS / language / "LC_MESSAGES").glob("*.mo")):
        if text := "\n".join(_sentences(path)):
            found[f"{path.stem}/messages"] = text
    return found


def _sentences(path: Path) -> list[str]:
    """Return what was translated of a catalogue; nothing of what is none."""
    try:
        return list(messages(path.read_bytes()))
    except (OSError, UnreadableError):
        return []


def _language(language: str) -> Callable[[], Mapping[str, Path | str]]:
    return lambda: {**_translated_pages(language), **_translations(language)}


def _plain_page(page: str) -> str:
    """Return the text of a manual page; what is no page stays as it is."""
    return manual_text(page) if re.search(r"^\.\s*(TH|Dd)\b", page, re.MULTILINE) else page


SLICES: Mapping[str, tuple[str, Kind]] = {
    "python": ("code", KINDS["library"]),
    "python_packages": ("code", KINDS["packages"]),
    "python_stubs": ("code", Kind(1, _files("pyi"), _as_it_is)),
    "c": ("code", Kind(1, _files("c|h"), _without_comment)),
    "cpp": ("code", Kind(1, _files("cc|cpp|hpp|hh|cxx"), _without_comment)),
    "cython": ("code", Kind(1, _files("pyx|pxd"), _as_it_is)),
    "javascript": ("code", Kind(1, _files("js|mjs|ts"), _without_comment)),
    "json": ("data", Kind(1, _files("json"), _as_it_is)),
    "toml": ("data", Kind(1, _files("toml|ya?ml|cfg"), _as_it_is)),
    "markup": ("data", Kind(1, _files("html?|xml|css"), _as_it_is)),
    "documentation": ("prose", KINDS["documentation"]),
    "manuals": ("reference", KINDS["manuals"]),
    **{
        f"language_{language.lower()}": (
            "language",
            Kind(1, _language(language), _plain_page, signs=1.0),
        )
        for language in _LANGUAGES
    },
}
"""Categories and kinds of text by the names of slices, in their order: of equal texts the first one has it.

Other scripts than the Latin one have no letter of English.
"""
