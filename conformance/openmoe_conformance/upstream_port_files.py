"""What the readers of the published port's vectors share: arrays, model folders, dialects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openmoe_conformance.upstream_rows import identifier_of, inside, read_json
from openmoe_conformance.vector_cases import VectorCase, VectorError, keys_of
from openmoe_conformance.vector_kinds import KINDS
from openmoe_spec.config import Configuration
from openmoe_spec.dialects import DIALECTS
from openmoe_spec.layouts import PORT_FIELDS

CHAPTER = "dialects"
"""The folder that all of it is imported to."""

CODES: Mapping[str, Any] = {
    "my_openmoe": "torch_port",
    "upstream_dc003c304": {
        **DIALECTS["torch_port"],
        "decode_position": "position_ids_plus_one",
    },
}
"""Dialects of the port's files, by the names that cases give them."""


def keys_under(folder: Path, file: str, *, under: str = "", named: str = "") -> dict[str, str]:
    """Return the keys of a file that begin with `under`, by array names that begin with `named`."""
    try:
        keys = keys_of(inside(folder, file))
    except VectorError as error:
        raise VectorError(f"{file}: {error}") from error
    return {
        named + key[len(under) :].replace("|", "/"): key for key in keys if key.startswith(under)
    }


def stored(
    folder: Path,
    name: str,
    kind: str,
    *,
    file: str,
    keys: Mapping[str, str],
    config: Mapping[str, Any] | None = None,
    clauses: Mapping[str, str] | None = None,
    exercises: str = "",
    lender: VectorCase | None = None,
) -> VectorCase:
    """Return a case whose arrays stand in a file."""
    return VectorCase(
        folder.name,
        identifier_of(name),
        kind,
        exercises,
        config or {},
        clauses or {},
        tuple(keys),
        folder / file,
        keys=keys,
        lender=lender,
        chapter=CHAPTER,
    )


def dialect_clauses(kind: str, without: Iterable[str] = ()) -> dict[str, str]:
    """Return what cases of a kind are compared on in the dialect, but comparisons `without`."""
    hidden = tuple(without)
    names = (name for name in KINDS[kind].comparisons if not name.startswith(hidden))
    return dict.fromkeys(names, "DIAL-02")


def weights(folder: Path, directory: str) -> VectorCase:
    """Return the case that lends the tensors of a model folder."""
    file = f"{directory}/model.safetensors"
    name = f"{Path(directory).name}_parameters"
    return stored(
        folder, name, "parameters", file=file, keys=keys_under(folder, file, named="params/")
    )


def configuration(folder: Path, directory: str) -> dict[str, Any]:
    """Return the configuration that a model folder's `config.json` says."""
    return translated(read_json(folder, f"{directory}/config.json"), Path(directory).name)


def translated(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration from the port's settings."""
    fields = {ours: settings[theirs] for theirs, ours in PORT_FIELDS.items() if theirs in settings}
    fields["num_moe_layers"] = settings["num_hidden_layers"] // settings["moe_layer_interval"]
    return asdict(Configuration(name=name, **fields))


def called(
    fields: Mapping[str, Any], *, dtype: str = "float32", code: str = "my_openmoe"
) -> dict[str, Any]:
    """Return the configuration of a case that runs a model."""
    call = {"dtype": dtype, "dialect": CODES[code]}
    return {"configuration": fields, "call": call, "unused": []}
