"""`openmoe audit merge`: audits of shares of one text become one. Spec: AUDIT-21."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit import folder
from openmoe_tools.audit.counting.tables import Tables
from openmoe_tools.audit.folder import Audit
from openmoe_tools.data import gathering
from openmoe_tools.terminal import console, say


def merge(out: Path, paths: Sequence[Path]) -> int:
    """Write the sum of audits into a new folder; return 0. Errors: UsageError."""
    if len({one.resolve() for one in paths}) < max(len(paths), 2):
        raise UsageError("merge: name two audits at least, each once")
    if (out / folder.MANIFEST).exists():
        raise UsageError(f"{out}: holds an audit already; name a new folder")
    audits = [folder.read(one) for one in paths]
    _check(audits)
    first = audits[0]
    tables = Tables(first.tables.sizes)
    for one in audits:
        tables.merge(one.tables)
    gathering.make_folder(out)
    traces = [one.path / folder.TRACE for one in audits if (one.path / folder.TRACE).is_dir()]
    if traces:
        say(console(), "traces are left where they are: a query is of one folder")
    folder.write(
        out,
        manifest=_manifest(audits, tables),
        tables=tables,
        pairs=first.pairs,
        pieces=first.pieces,
        sample=_sample(audits),
    )
    say(console(), f"{out}: {len(audits)} audits, {_tokens(tables):,} tokens", "bold")
    return 0


def _check(audits: Sequence[Audit]) -> None:
    """Refuse audits that are not shares of one. Errors: UsageError naming what differs."""
    first = audits[0]
    told = (
        ("models (by digest)", lambda one: one.manifest["model"]["digest"]),
        ("tokenisers (by digest)", lambda one: (one.manifest["tokenizer"] or {}).get("digest")),
        ("texts (by digest)", lambda one: one.manifest["corpus"]["digest"]),
        ("recipes", lambda one: _but_share(one.manifest["recipe"])),
        ("sources", lambda one: one.manifest["source"]),
        ("sizes", lambda one: one.tables.sizes),
    )
    for other in audits[1:]:
        for name, of in told:
            if of(first) != of(other):
                raise UsageError(
                    f"{other.path}: is of other {name} than {first.path}; shares of one text are merged"
                )
    if any(one.manifest["checkpoints"] != first.manifest["checkpoints"] for one in audits):
        raise UsageError(
            "merge: the audits compare other checkpoints; give --series and --against to all or to none"
        )
    _shares(audits)


def _shares(audits: Sequence[Audit]) -> list[str]:
    """Return the shares of all audits, each once, in order. Errors: UsageError where one counts twice."""
    found: dict[tuple[int, int], Path] = {}
    for one in audits:
        told = one.manifest["recipe"].get("share")
        if told is None:
            raise UsageError(f"{one.path}: is of the whole text; a share of it would count twice")
        for share in str(told).split():
            number, parts = map(int, share.split("/"))
            other = found.setdefault((parts, number), one.path)
            if other != one.path:
                raise UsageError(
                    f"{one.path} and {other}: both have the share {share}; it would count twice"
                )
    if len({parts for parts, _ in found}) > 1:
        raise UsageError(
            "merge: the shares are of other numbers of parts; some text would count twice"
        )
    return [f"{number}/{parts}" for parts, number in sorted(found)]


def _but_share(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in recipe.items() if name != "share"}


def _manifest(audits: Sequence[Audit], tables: Tables) -> dict[str, Any]:
    first = audits[0].manifest
    shares = _shares(audits)
    whole = len(shares) == int(shares[0].partition("/")[2])
    totals = {
        "tokens": _tokens(tables),
        "documents": int(tables.arrays["documents"].sum()),
        "calls": sum(one.manifest["totals"]["calls"] for one in audits),
        "seconds": round(sum(one.manifest["totals"]["seconds"] for one in audits), 3),
    }
    return {
        **first,
        "recipe": first["recipe"] | {"share": None if whole else " ".join(shares)},
        "totals": totals,
    }


def _tokens(tables: Tables) -> int:
    return int(np.sum(tables.arrays["slice_token"]))


def _sample(audits: Sequence[Audit]) -> list[dict[str, Any]]:
    """Return one row of each slice."""
    found: dict[str, dict[str, Any]] = {}
    for one in audits:
        for row in one.sample:
            found.setdefault(row["slice"], row)
    return list(found.values())
