"""A certificate of a comparison: digests of both sides, the mapping's, versions, verdicts.

In the manner of an in-toto statement, so that tools which sign and keep those can take it. Its schema
is `certificate.schema.json`. Who has the files re-checks it without asking anyone.
Spec: CKPT-01, CKPT-02.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openmoe_conformance.outcome import UsageError
from openmoe_reference.checkpoints import model_digest
from openmoe_spec import SPEC_VERSION, __version__
from openmoe_spec.layouts import LAYOUTS
from openmoe_tools.checkpoints.containers.opening import Checkpoint
from openmoe_tools.checkpoints.digests import Digest
from openmoe_tools.checkpoints.verification.comparing import Comparison
from openmoe_tools.checkpoints.verification.findings import BITWISE, HOLDS, TIERS, VERDICTS, Verdict

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:openmoe-spec:conversion-certificate:1"
SOURCE, TARGET = "source", "target"


def mapping_digest() -> str:
    """Return the digest of the mapping, all rules of all layouts. Spec: CKPT-04."""
    rules = [
        [one.name, [[r.ours, r.theirs, list(r.operations), r.stacked] for r in one.rules]]
        for one in LAYOUTS
    ]
    return hashlib.sha256(json.dumps(rules, separators=(",", ":")).encode()).hexdigest()


def certify(found: Comparison, verdicts: list[Verdict]) -> dict[str, Any]:
    """Return the certificate of a comparison, whatever it says."""
    sides = (SOURCE, found.a, found.digests[0]), (TARGET, found.b, found.digests[1])
    described = {name: _side(one, digests) for name, one, digests in sides}
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": found.b.path.name, "digest": {"sha256": described[TARGET]["model_digest"]}}
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "spec_version": SPEC_VERSION,
            "version": __version__,
            "mapping_digest": mapping_digest(),
            "cast": found.cast,
            **described,
            "verdicts": {
                one.tier: {"verdict": one.verdict, "summary": one.summary} for one in verdicts
            },
        },
    }


def _side(one: Checkpoint, digests: Mapping[str, Digest]) -> dict[str, Any]:
    return {
        "name": one.path.name,
        "container": one.reader.kind,
        "layout": one.found.layout.name,
        "step": one.step,
        "model_digest": model_digest({name: d.digest for name, d in digests.items()}),
        "tensors": {
            name: {"dtype": d.dtype, "shape": list(d.shape), "sha256": d.digest}
            for name, d in digests.items()
        },
    }


def read(path: Path) -> dict[str, Any]:
    """Return a certificate from a file, its own numbers checked against each other.

    Errors: UsageError naming what is missing, or does not add up.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is no JSON ({error})") from error
    try:
        if content["_type"] != STATEMENT or content["predicateType"] != PREDICATE:
            raise UsageError(f"{path}: is no certificate of this kind ({PREDICATE})")
        predicate = content["predicate"]
        for side in (SOURCE, TARGET):
            tensors = {name: one["sha256"] for name, one in predicate[side]["tensors"].items()}
            for one in predicate[side]["tensors"].values():
                _ = one["dtype"], [int(n) for n in one["shape"]]
            if model_digest(tensors) != predicate[side]["model_digest"]:
                raise UsageError(
                    f"{path}: the {side}'s model digest is not that of its tensors; it was changed"
                )
        if content["subject"][0]["digest"]["sha256"] != predicate[TARGET]["model_digest"]:
            raise UsageError(f"{path}: its subject is not its target; it was changed")
        stated = predicate["verdicts"]
        if set(stated) != set(TIERS) or any(
            one["verdict"] not in VERDICTS or not isinstance(one["summary"], str)
            for one in stated.values()
        ):
            raise UsageError(f"{path}: must have one of the verdicts on each of {', '.join(TIERS)}")
        _require_agreement(path, predicate)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UsageError(f"{path}: lacks {error} of a certificate") from error
    return dict(predicate)


def _require_agreement(path: Path, predicate: Mapping[str, Any]) -> None:
    """Refuse verdicts that the digests speak against."""
    if predicate["verdicts"][BITWISE]["verdict"] != HOLDS or predicate["cast"] is not None:
        return
    source, target = (predicate[side]["tensors"] for side in (SOURCE, TARGET))
    for name in source.keys() & target.keys():
        one, other = source[name], target[name]
        if one["dtype"] == other["dtype"] and one["sha256"] != other["sha256"]:
            raise UsageError(
                f"{path}: says that all bits are the same, and digests of {name} differ"
            )


def discrepancies(
    predicate: Mapping[str, Any], side: str, one: Checkpoint, digests: Mapping[str, Digest]
) -> Iterator[tuple[str, str]]:
    """Yield tensors and what is not as a certificate says of a side."""
    told = predicate[side]["tensors"]
    for name in sorted({*told, *digests}):
        if name not in digests:
            yield name, f"{one.path} lacks it"
        elif name not in told:
            yield name, "the certificate does not know it"
        else:
            found, stated = digests[name], told[name]
            if found.dtype != stated["dtype"] or list(found.shape) != stated["shape"]:
                was = f"{stated['dtype']} {stated['shape']}"
                yield name, f"is {found.dtype} {list(found.shape)}, and was {was}"
            elif found.digest != stated["sha256"]:
                places = ", ".join(one.places(name)[:2])
                yield name, f"its values are not those that were certified (in {places})"
