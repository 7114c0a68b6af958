"""Models as files: a configuration in JSON, and weights in safetensors beside it.

Two forms of each: the published PyTorch port's (its `config.json`, its tensor names) and ours (the
fields of SPEC.md chapter 3, the names of chapter 4). Nothing from a file is executed.
Spec: CFG-02, CFG-05, MODEL-09, PARAM-05.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - with it NumPy knows bfloat16, in which tensors may be stored
import numpy as np
from numpy import ndarray
from safetensors import SafetensorError, safe_open

from openmoe_conformance.outcome import UsageError
from openmoe_reference.initialisation import initialise
from openmoe_spec import dialects, layouts
from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.parameters import Parameter, count, parameters

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

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

_DTYPES = ("F32", "F16", "BF16")


# ---- configurations ----------------------------------------------------------------------------


def configuration(source: str, dialect: str = "t5x") -> Configuration:
    """Return what `source` names: a published configuration, a JSON file, or a folder with one.

    A published configuration is the dialect's; a file is taken as it is. Errors: UsageError.
    """
    if source in PUBLISHED:
        return dialects.configuration(dialect, source)
    path = Path(source)
    if path.is_dir():
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
    content = _json(path)
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


def _json(path: Path) -> dict[str, Any]:
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


class _Stored(NamedTuple):
    """Where a tensor lies: its name and shape there, whether it is transposed, and its file."""

    name: str
    shape: tuple[int, ...]
    transposed: bool
    handle: Any
    path: Path


def load(folder: Path) -> tuple[Configuration, dict[str, ndarray]]:
    """Return the configuration of a folder and its weights, float32, by the names of PARAM-01.

    Errors: UsageError naming the file, the tensor, and the shapes it has and must have.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; a model is one with {CONFIG} and {WEIGHTS}")
    model = configuration(str(folder))
    port = is_port(_json(folder / CONFIG))
    with ExitStack() as stack:
        stored = _stored(_files(folder), stack, port=port)
        tensors = parameters(model)
        _compare(folder, tensors, stored, port=port)
        return model, {one.name: _tensor(stored[one.name]) for one in tensors}


def _files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        raise UsageError(
            f"{folder}: holds neither {WEIGHTS} nor {INDEX}; other forms of weights are not read"
        )
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(one, str) for one in places.values()):
        raise UsageError(f"{index}: must have a weight_map from tensor to file")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UsageError(f"{index}: names {name}, which is no file of this folder")
    return [folder / name for name in names]


def _stored(paths: list[Path], stack: ExitStack, *, port: bool) -> dict[str, _Stored]:
    """Return what the files hold by our names, their headers alone read."""
    found: dict[str, _Stored] = {}
    for path in paths:
        try:
            handle = stack.enter_context(safe_open(path, framework="np"))
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{path}: is no whole safetensors file ({error})") from error
        for name in handle.keys():  # noqa: SIM118 - no mapping
            shape = tuple(handle.get_slice(name).get_shape())
            ours = layouts.name_from_port(name) if port else (name, False)
            if ours is None:
                raise UsageError(f"{path}: {name}, shape {shape}, is no tensor of an OpenMoE model")
            if ours[0] in found:
                raise UsageError(f"{path}: {name} stands in {found[ours[0]].path.name} too")
            found[ours[0]] = _Stored(name, shape, ours[1], handle, path)
    return found


def _compare(
    folder: Path, tensors: tuple[Parameter, ...], stored: Mapping[str, _Stored], *, port: bool
) -> None:
    """Refuse what the configuration does not have, what is missing, and what is misshaped."""
    wanted = {one.name: one.shape for one in tensors}
    for name, one in stored.items():
        if name not in wanted:
            raise UsageError(
                f"{one.path}: {one.name}, shape {one.shape}, is no tensor of the model that "
                f"{CONFIG} describes"
            )
    for name, shape in wanted.items():
        there = (layouts.port_name(name) if port else None) or (name, False)
        expected = shape[::-1] if there[1] else shape
        if name not in stored:
            raise UsageError(f"{folder}: lacks the tensor {there[0]}, shape {expected}")
        if stored[name].shape != expected:
            raise UsageError(
                f"{stored[name].path}: {there[0]} must have shape {expected}, "
                f"got {stored[name].shape}"
            )


def _tensor(stored: _Stored) -> ndarray:
    dtype = stored.handle.get_slice(stored.name).get_dtype()
    if dtype not in _DTYPES:
        raise UsageError(
            f"{stored.path}: {stored.name} must be one of {', '.join(_DTYPES)}, got {dtype}"
        )
    wide = stored.handle.get_tensor(stored.name).astype(np.float32)
    if not np.isfinite(wide).all():
        raise UsageError(f"{stored.path}: {stored.name} holds values that are not finite")
    return np.ascontiguousarray(wide.T) if stored.transposed else wide
