"""The data pipeline's vectors: `index.json` whose `groups` name JSON and npz files beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from openmoe_conformance import upstream_ul2_noise, upstream_ul2_pipeline, upstream_ul2_text
from openmoe_conformance.upstream_rows import guarded, plain, skipped, table
from openmoe_conformance.upstream_ul2_rows import ids, integer, numbered, reading
from openmoe_conformance.vector_batching import FEATURES
from openmoe_conformance.vector_cases import VectorCase, VectorError, keys_of

Maker = Callable[[Path, str, Any], list[VectorCase]]


def cases(folder: Path, index: Mapping[str, Any]) -> list[VectorCase]:
    """Return the cases of every file; files that are not there are listed, to be SKIPPED."""
    found: list[VectorCase] = []
    names = {path.name for path in folder.iterdir() if path.suffix in (".json", ".npz")}
    for name in (n for n in _MAKERS if n in names):
        found += table(folder, name, partial(_MAKERS[name], folder, name))
    for name in sorted(names):
        found += _stored_features(folder, name)
    read = {*_MAKERS, *upstream_ul2_noise.ARRAYS, "index.json"}
    unknown = sorted(n for n in names - read if not _LENGTHS.fullmatch(n))
    found += [skipped(folder, name, f"no reader of this version reads {name}") for name in unknown]
    stems = {name.rpartition(".")[0] for name in names}
    absent = [name for name in index["groups"] if name not in stems]
    return found + [
        skipped(folder, name, "the index names this file, and it is not there") for name in absent
    ]


# ---- features of a decoder ---------------------------------------------------------------------

_CONVERTERS = ("DecoderFeatureConverter", "LMFeatureConverter", "PrefixLMFeatureConverter")
_OPTIONS = {"loss_on_targets_only": "loss_on_targets_only", "bos_id": "start"}
"""Keywords of a converter, and what they are here."""


def _features(folder: Path, file: str, content: Any) -> list[VectorCase]:
    return guarded(folder, file, numbered("features", content), partial(_converted, folder))


def _converted(folder: Path, row: Mapping[str, Any]) -> Iterator[VectorCase]:
    tag = row.get("tag") or ""
    name = f"{row['id']}_{tag}{'_packed' if row['pack'] else ''}"
    if row.get("converter", _CONVERTERS[0]) not in _CONVERTERS:
        yield skipped(folder, name, f"the converter {row['converter']} is not specified")
        return
    given = row.get("kwargs") or {}
    if unknown := sorted(set(given) - set(_OPTIONS)):
        yield skipped(folder, name, f"{', '.join(unknown)} of the converter is not specified")
        return
    names = ("targets",) if row.get("converter") == "LMFeatureConverter" else ("inputs", "targets")
    lengths = row["task_feature_lengths"]
    config: dict[str, Any] = {
        "lengths": {n: integer(lengths, n) for n in names if n in lengths},
        "pack": bool(row["pack"]),
        "examples": [{n: ids(one, n) for n in names if n in one} for one in row["examples"]],
        **{_OPTIONS[name]: value for name, value in given.items()},
    }
    make = partial(plain, folder, name, "decoder_features", chapter="batching", exercises=tag)
    if row.get("error"):
        yield make(config=config, clauses={"rejected": "BATCH-10"})
        return
    outputs = [{n: ids(one, n) for n in sorted(one)} for one in row["outputs"]]
    if len({tuple((n, len(one[n])) for n in one) for one in outputs}) != 1:
        raise VectorError("its rows do not hold the same features of one length")
    config["outputs"] = outputs
    yield make(config=config, clauses=_clauses(config, list(outputs[0]), config["examples"]))


def _clauses(
    config: Mapping[str, Any], features: list[str], examples: list[Mapping[str, Any]]
) -> dict[str, str]:
    """Return what each feature of rows decides; ids 0 and empty targets have clauses of their own."""
    alone, packed = "inputs" not in config["lengths"], config["pack"]
    clauses = {
        "decoder_target_tokens": "BATCH-05" if alone else "BATCH-01",
        "decoder_input_tokens": "BATCH-02",
        "decoder_loss_weights": "BATCH-05" if alone else "BATCH-03",
        "decoder_causal_attention": "BATCH-04",
        "decoder_segment_ids": "BATCH-07",
        "decoder_positions": "BATCH-07",
    }
    if unknown := sorted(set(features) - set(clauses)):
        raise VectorError(f"the feature {', '.join(unknown)} is not specified")
    if any(0 in part for one in examples for part in one.values()):
        clauses = dict.fromkeys(clauses, "BATCH-08")
    if not alone and any(len(one["targets"]) == 0 for one in examples):
        clauses = dict.fromkeys(clauses, "BATCH-09")
    found = {name: clauses[name] for name in FEATURES if name in features}
    found |= {"rows": "BATCH-06"} if packed else {}
    return found | ({"no_causal_attention": "BATCH-05"} if alone else {})


_LENGTHS = re.compile(r"feature_converters_(\d+)_(\d+)\.npz")
_OUTPUT = re.compile(r"pack([01])_(\d+)_(\w+)")
_EXAMPLE = re.compile(r"example_(\d+)_(inputs|targets)")


def _stored_features(folder: Path, file: str) -> list[VectorCase]:
    """Return the two cases of an archive of long examples, unpacked and packed."""
    matched = _LENGTHS.fullmatch(file)
    if not matched:
        return []
    lengths = {"inputs": int(matched[1]), "targets": int(matched[2])}

    def make(row: Mapping[str, Any]) -> Iterator[VectorCase]:
        stored = reading(keys_of, folder / file)
        examples = {f"examples/{m[1]}/{m[2]}": m[0] for m in map(_EXAMPLE.fullmatch, stored) if m}
        found = [m for m in map(_OUTPUT.fullmatch, stored) if m and int(m[1]) == row["pack"]]
        if not examples or not found:
            raise VectorError(f"{file} holds no examples or no rows of them")
        config = {"lengths": lengths, "pack": bool(row["pack"])}
        clauses = _clauses(config, sorted({m[3] for m in found}), [])
        lender = _archived(folder, file, f"{file[:-4]}_examples", examples)
        rows = {f"outputs/{m[2]}/{m[3]}": m[0] for m in found}
        case = _archived(folder, file, row["id"], rows)
        yield replace(case, config=config, comparisons=clauses, lender=lender)

    packs = [{"id": f"{file[:-4]}_pack{pack}", "pack": pack} for pack in (0, 1)]
    return guarded(folder, file, packs, make)


def _archived(folder: Path, file: str, name: str, keys: Mapping[str, str]) -> VectorCase:
    return VectorCase(
        *(folder.name, name, "decoder_features", "examples of the full lengths", {}, {}),
        tuple(keys),
        folder / file,
        keys=keys,
        chapter="batching",
    )


_MAKERS: Mapping[str, Maker] = {
    **upstream_ul2_text.MAKERS,
    **upstream_ul2_noise.MAKERS,
    **upstream_ul2_pipeline.MAKERS,
    "feature_converters.json": _features,
}
"""What makes cases of a JSON file."""
