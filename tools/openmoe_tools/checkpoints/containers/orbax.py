"""Orbax checkpoints, read by tensorstore alone: OCDBT or a folder a tensor, zarr 2 or 3.

The devices that a checkpoint was saved from are not asked for.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from numpy import ndarray

from openmoe_spec.places import Region
from openmoe_tools.checkpoints.containers import zarr_arrays
from openmoe_tools.checkpoints.containers.stored import Incomplete, Stored, Unreadable
from openmoe_tools.checkpoints.containers.zarr_arrays import Zarr, short

METADATA, OWN, COMMITTED = "_METADATA", "_CHECKPOINT_METADATA", "commit_success.txt"
MANIFEST = "manifest.ocdbt"
ASIDE = ".orbax-checkpoint-tmp"
ITEMS = ("parameters", "params", "items", "default", "state", "model", "model_params")
"""Names of the item of a step that holds a model, in the order in which they are looked for."""

_ROOTS = ("target/", "params/", "parameters/", "model/")
_OF_STATE = ("opt_state", "optimizer", "param_states", "step", "opt_step", "count")
_FILES = {".zarray": "zarr", "zarr.json": "zarr3"}


class Orbax:
    """One tree of arrays: a step's item, or a checkpoint that is one."""

    kind = "orbax"

    def __init__(self, path: Path) -> None:
        """Find the arrays, their shapes and their chunks. Errors: UsageError."""
        self.path = path
        self.notes: list[str] = []
        require_complete(path)
        self._arrays: dict[str, Zarr] = {}
        self.tensors: dict[str, Stored] = {}
        names = _names(path)
        found = arrays(path)
        lacking = sorted(set(names) - set(found))
        if lacking:
            raise Incomplete(f"{path}: lacks the array {lacking[0]}, which {METADATA} names")
        for key, one in found.items():
            name = names.get(key, key if "/" in key else key.replace(".", "/"))
            of_state = name.split("/")[0] in _OF_STATE
            name = next((name.removeprefix(r) for r in _ROOTS if name.startswith(r)), name)
            if name in self._arrays:
                raise Unreadable(f"{path}: has two tensors {name}")
            self._arrays[name] = one
            self.tensors[name] = Stored(name, one.shape, one.dtype, key, one.chunk, of_state)
        if not self.tensors:
            raise Unreadable(f"{path}: holds no array")

    def read(self, name: str, region: Region) -> ndarray:
        return zarr_arrays.read(self._arrays[name], region, f"{self.path}: {name}")

    def stream(self, name: str) -> Iterator[bytes] | None:
        array = self._arrays[name]
        return zarr_arrays.stream(array, self.path) if array.store["driver"] == "file" else None


def require_complete(path: Path) -> None:
    """Refuse a folder that Orbax has not finished. Errors: UsageError."""
    for one in (path, *path.absolute().parents[:3]):
        if ASIDE in one.name:
            raise Incomplete(f"{path}: is half-written: Orbax renames {one.name} when it is done")
    has_own = (path / OWN).is_file() or (path.parent / OWN).is_file()
    if (path / METADATA).is_file() and not (path / COMMITTED).is_file() and not has_own:
        raise Incomplete(f"{path}: is half-written: neither {COMMITTED} nor {OWN} is there")


def arrays(path: Path) -> dict[str, Zarr]:
    """Return every array of a folder by its path in the store. Errors: UsageError."""
    is_ocdbt = (path / MANIFEST).is_file()
    store = zarr_arrays.ocdbt_store(path) if is_ocdbt else zarr_arrays.folder_store(path)
    try:
        handle = zarr_arrays.tensorstore().KvStore.open(store).result()
        sizes = zarr_arrays.files(path)
        keys = [key.decode("utf-8") for key in handle.list().result()] if is_ocdbt else [*sizes]
        found = {}
        held: dict[str, set[str]] = defaultdict(set)
        ends = {
            key.removesuffix(f"/{name}"): (key, driver)
            for key in keys
            for name, driver in _FILES.items()
            if key.endswith(f"/{name}")
        }
        for key in keys:
            parts = key.split("/")
            for i in range(len(parts) - 1, 0, -1):
                if (array := "/".join(parts[:i])) in ends:
                    held[array].add("/".join(parts[i:]))
                    break
        for array, (key, driver) in ends.items():
            key.encode("utf-8")  # an error where it is no text
            content = bytes(handle.read(key).result().value)
            source = f"{path}: {array}"
            found[array] = zarr_arrays.parse(store, f"{array}/", content, driver, source)
    except Unreadable:
        raise
    except UnicodeError as error:
        raise Unreadable(f"{path}: a name in it is no UTF-8") from error
    except Exception as error:  # tensorstore raises of many kinds on damaged bytes
        raise Unreadable(f"{path}: cannot be read ({short(error)})") from error
    for array, one in found.items():
        own = sizes.values() if is_ocdbt else (sizes[f"{array}/{key}"] for key in held[array])
        zarr_arrays.require_chunks(one, held[array], sum(own), f"{path}: {array}")
        if not is_ocdbt:
            zarr_arrays.require_ends(one, path)
    return found


def _names(path: Path) -> dict[str, str]:
    """Return the tree's name of each array, levels joined by /, by its path in the store."""
    file = path / METADATA
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        found = []
        for one in content["tree_metadata"].values():
            keys = [str(level["key"]) for level in one["key_metadata"]]
            value = one.get("value_metadata", {})
            if not value.get("skip_deserialize", False) and value.get("value_type") != "string":
                found.append((".".join(keys), "/".join(keys)))
    except OSError as error:
        raise Unreadable(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable(f"{file}: is no metadata of Orbax ({short(error)})") from error
    names = dict(found)
    if len(names) < len(found):
        raise Unreadable(f"{file}: names an array twice")
    return names


def item_of(step: Path) -> Path | None:
    """Return the folder of a step's item that holds a model; None: there is none."""
    for name in ITEMS:
        if is_tree(step / name):
            return step / name
    return None


def is_tree(path: Path) -> bool:
    """Return whether a folder is a tree of arrays as Orbax writes them."""
    return any((path / name).is_file() for name in (METADATA, MANIFEST))
