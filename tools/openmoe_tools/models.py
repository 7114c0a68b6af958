"""Models as files: a configuration in JSON, and weights drawn afresh.

Two forms of a configuration: the published PyTorch port's `config.json`, and ours, the fields of SPEC.md
chapter 3. Weights that lie in files are `checkpoints.loading`'s. Spec: CFG-02, CFG-05, PARAM-05.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_reference.initialisation import initialise
from openmoe_spec import dialects, layouts
from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.parameters import count

CONFIG, OWN_CONFIG = "config.json", "openmoe.json"

RANDOM_LIMIT = 100_000_000
"""Elements of a model that may be drawn afresh: 0.4 GB in float32."""

PORT_FIXED: Mapping[str, Any] = {
    "hidden_act": "swiglu",
    "mlp_gated": True,
    "rms_norm_eps": 1e-6,
    "router_drop_tks": True,
    "router_noisy_policy": None,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
"""Keys of the port's `config.json` of which another value would be another kind of model."""

# ---- configurations ----------------------------------------------------------------------------


def configuration(source: str, dialect: str = "t5x") -> Configuration:
    """Return what `source` names: a published configuration, a JSON file, or a folder with one.

    A published configuration is the dialect's; a file is taken as it is. Errors: UsageError.
    """
    if source in PUBLISHED:
        return dialects.configuration(dialect, source)
    path = Path(source)
    if path.is_dir():
        own = path / OWN_CONFIG  # what a converted checkpoint has beside the port's keys
        if own.is_file():
            return _read(own, path.resolve().name)
        if not (path / CONFIG).is_file():
            raise UsageError(f"{path}: this folder holds no {CONFIG}")
        return _read(path / CONFIG, path.resolve().name)
    if not path.exists():
        raise UsageError(
            f"{source}: neither a published configuration ({', '.join(PUBLISHED)}) nor a file; "
            f"name one of these, a JSON file, or a folder with {CONFIG}"
        )
    return _read(path, path.stem)


def _read(path: Path, name: str) -> Configuration:
    content = read_json(path)
    port = is_port(content)
    taken = _from_port(path, content) if port else _own(path, content)
    theirs = {ours: key for key, ours in layouts.PORT_FIELDS.items()} if port else {}
    absent = [
        theirs.get(field.name, field.name)
        for field in fields(Configuration)
        if field.default is MISSING and field.name not in {"name", *taken}
    ]
    if absent:
        raise UsageError(f"{path}: lacks {', '.join(absent)}; add them")
    try:
        return Configuration(**{"name": name, **taken})
    except RejectedError as error:
        field = theirs.get(error.argument, error.argument)
        raise UsageError(f"{path}: {field}: {error.reason} [{error.clause}]") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file of JSON holds. Errors: UsageError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: must be a JSON object of fields, is {type(content).__name__}")
    return content


def is_port(content: Mapping[str, Any]) -> bool:
    """Tell the port's `config.json` from ours by two keys that only it has."""
    return "hidden_size" in content or "moe_layer_interval" in content


def _own(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    known = [field.name for field in fields(Configuration)]
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "SPEC.md chapter 3 lists them"
            raise UsageError(f"{path}: {name} is no field of a configuration; {hint}")
    return dict(content)


def _from_port(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    for name in sorted({field.name for field in fields(Configuration)} & content.keys()):
        if name not in layouts.PORT_FIELDS:
            raise UsageError(
                f"{path}: {name} is a field of ours among keys of the port (hidden_size, ...); "
                "write the one or the other"
            )
    for name, value in PORT_FIXED.items():
        if name in content and content[name] != value:
            raise UsageError(
                f"{path}: {name} must be {json.dumps(value)} in an OpenMoE model, "
                f"got {json.dumps(content[name])}"
            )
    taken = {ours: content[key] for key, ours in layouts.PORT_FIELDS.items() if key in content}
    layers, interval = taken.get("num_layers"), content.get("moe_layer_interval")
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        raise UsageError(
            f"{path}: moe_layer_interval: must be a whole number, 1 or more, got {interval!r} "
            "[CFG-02]"
        )
    if isinstance(layers, int) and not isinstance(layers, bool):
        if layers % interval:
            raise UsageError(
                f"{path}: moe_layer_interval: must divide num_hidden_layers ({layers}), "
                f"got {interval} [CFG-02]"
            )
        taken["num_moe_layers"] = layers // interval
    return taken


# ---- weights -----------------------------------------------------------------------------------


def draw(model: Configuration, seed: int) -> dict[str, ndarray]:
    """Return fresh weights by the initialisers of INIT-01 to INIT-04. Errors: UsageError."""
    total = count(model).total
    if total > RANDOM_LIMIT:
        raise UsageError(
            f"{model.name}: has {total:,} elements, and at most {RANDOM_LIMIT:,} are drawn; "
            "name a smaller configuration"
        )
    return initialise(model, np.random.default_rng(seed))
