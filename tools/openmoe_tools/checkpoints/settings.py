"""The configuration and the tokeniser that lie with a checkpoint, and what goes along with a copy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from openmoe_conformance.outcome import UsageError
from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.layouts import PORT_FIELDS
from openmoe_spec.parameters import parameters
from openmoe_tools import models
from openmoe_tools.checkpoints.containers.opening import RUN_STEPS, Checkpoint

CONFIG, OWN_CONFIG = models.CONFIG, models.OWN_CONFIG
TOKENIZERS = (
    "tokenizer.model",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)
"""Files that go along as they are, where they are there."""

_SETTINGS = Path("settings") / "metadata"


def configuration(checkpoint: Checkpoint, given: str | None = None) -> Configuration | None:
    """Return the configuration of a checkpoint, by default the one that lies with it; None: none does.

    given  a published configuration, a JSON file or a folder with one
    Errors: UsageError.
    """
    if given is not None:
        return models.configuration(given)
    return _beside(checkpoint) or _published(checkpoint)


def mismatch(checkpoint: Checkpoint, model: Configuration | None) -> str | None:
    """Return how the tensors of a checkpoint are not those of a configuration; None: they are."""
    if model is None:
        return None
    wanted = {one.name: one.shape for one in parameters(model)}
    for name in (*wanted, *checkpoint.tensors):
        there = checkpoint.tensors.get(name)
        if there is None:
            return f"{name} is not there, which the configuration {model.name} has"
        if name not in wanted:
            return f"{name} is there, which the configuration {model.name} does not have"
        if there.shape != wanted[name]:
            return f"{name} has shape {list(there.shape)}, by the configuration {model.name} {list(wanted[name])}"
    return None


def unlike(one: Configuration | None, other: Configuration | None) -> list[str]:
    """Return the fields, but the name, in which two configurations differ, a line each."""
    if one is None or other is None:
        return []
    found = []
    for field in fields(Configuration):
        name = {"num_kv_heads": "key_value_heads", "expert_mlp_dim": "expert_width"}.get(field.name)
        mine, theirs = (getattr(side, name or field.name) for side in (one, other))
        if field.name != "name" and mine != theirs:
            found.append(
                f"configurations differ: {field.name} is {mine} in the source's, {theirs} in the target's"
            )
    return found


def _levels(checkpoint: Checkpoint) -> list[Path]:
    """Return the folders that may hold what goes with a checkpoint: its own, its step's, its run's."""
    path = checkpoint.reader.path.absolute()
    own = path.parent if path.is_file() else path
    runs = [one for one in own.parents[:3] if (one / RUN_STEPS) in own.parents]
    return [own, *([own.parent] if runs else []), *runs]


def _beside(checkpoint: Checkpoint) -> Configuration | None:
    """Return the configuration of a file beside the tensors, or of a run's step."""
    for folder in _levels(checkpoint)[:2]:
        if (folder / _SETTINGS).is_file():
            return _of_step(folder / _SETTINGS)
    own = _levels(checkpoint)[0]
    is_there = any((own / name).is_file() for name in (OWN_CONFIG, CONFIG))
    return models.configuration(str(own)) if is_there else None


def _of_step(file: Path) -> Configuration:
    try:
        return Configuration(**json.loads(file.read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError, RejectedError) as error:
        raise UsageError(f"{file}: has no settings of a model ({error})") from error


def _published(checkpoint: Checkpoint) -> Configuration | None:
    """Return the published configuration whose tensors are the checkpoint's."""
    shapes = {name: one.shape for name, one in checkpoint.tensors.items()}
    for one in PUBLISHED.values():
        if {tensor.name: tensor.shape for tensor in parameters(one)} == shapes:
            return one
    return None


def tokenizers(checkpoint: Checkpoint) -> list[Path]:
    """Return the tokeniser's files that lie with a checkpoint, of a run in its folder."""
    for folder in _levels(checkpoint):
        found = [folder / name for name in TOKENIZERS if (folder / name).is_file()]
        if found:
            return found
    return []


# ---- what a copy gets --------------------------------------------------------------------------


def files(
    checkpoint: Checkpoint, model: Configuration | None, to: str, dtype: str, *, given: bool = False
) -> dict[str, bytes]:
    """Return the files that go along with a conversion, by name.

    to     the container: `hf` and `per_expert` get the port's `config.json`, others ours
    dtype  the weights' dtype in the copy
    given  the configuration was named, and stands above what lies with the source
    """
    made = {path.name: path.read_bytes() for path in tokenizers(checkpoint)}
    theirs = _port_config(checkpoint)
    if theirs is not None and given and model is not None:
        theirs |= {key: value for key, value in port_config(model).items() if key not in _PROGRAM}
    if to in {"hf", "per_expert"}:
        if theirs is None and model is not None:
            theirs = port_config(model)
        if theirs is None:
            return made
        theirs = theirs | {"torch_dtype": dtype}
        if to == "per_expert":  # what they name is a program whose experts are stacked
            theirs = {key: value for key, value in theirs.items() if key not in _PROGRAM}
    if theirs is not None:
        made[CONFIG] = _json(theirs)
    elif model is not None:
        made[CONFIG] = _json(asdict(model))
    if theirs is not None and model is not None and not _is_told(model, theirs):
        made[OWN_CONFIG] = _json(asdict(model))
    return made


_PROGRAM = ("architectures", "auto_map")
"""Keys of a `config.json` that name a program."""


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _port_config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    path = _levels(checkpoint)[0] / CONFIG
    if not path.is_file():
        return None
    content = models.read_json(path)
    return content if models.is_port(content) else None


def port_config(model: Configuration) -> dict[str, Any]:
    """Return a configuration as the port's `config.json` has it. Spec: PARAM-05."""
    values = asdict(model) | {"num_kv_heads": model.key_value_heads}
    return {
        **models.PORT_FIXED,
        "architectures": ["OpenMoeForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_openmoe.OpenMoeForCausalLM"},
        "model_type": "llama",
        "bos_token_id": 0,
        "use_cache": True,
        "moe_layer_interval": model.num_layers // model.num_moe_layers,
        **{theirs: values[ours] for theirs, ours in PORT_FIELDS.items()},
    }


def _is_told(model: Configuration, theirs: Mapping[str, Any]) -> bool:
    """Return whether the port's keys say all of a configuration."""
    told = {ours: theirs[key] for key, ours in PORT_FIELDS.items() if key in theirs}
    for one in fields(Configuration):
        if one.name in {"name", "num_moe_layers"}:
            continue
        value = getattr(model, one.name)
        value = model.key_value_heads if one.name == "num_kv_heads" else value
        if value != told.get(one.name, None if one.default is MISSING else one.default):
            return False
    return True
