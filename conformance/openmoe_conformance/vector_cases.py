"""One stored vector case, the reading of its arrays, and what a kind of case is.

Whatever is wrong with a file becomes a VectorError that names file and case, never a crash.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import ml_dtypes
import numpy as np
import safetensors
from numpy import ndarray

from openmoe_conformance import model_files
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.subject import Subject

Arrays = Mapping[str, ndarray]
SCHEMA = 1
"""Version of the own layout."""


class VectorError(Exception):
    """A vector file or case that cannot be used; the message names file and case."""


@dataclass(frozen=True)
class VectorCase:
    """One stored case. `comparisons` maps what is compared to the clause it decides.

    `faults` say why it is unusable, `skip` why no version of this kit, or only a later one, can run
    it. An array stands in `file` under `keys`, or else under `<id>/<name>`. The arrays of `lender`,
    a case of the same set, are this case's too. `model` is a SentencePiece file that the
    implementation is given by its path. `chapter` is the folder that an import writes it to; empty:
    it is not imported.
    """

    set_name: str
    id: str
    kind: str
    exercises: str
    config: Mapping[str, Any]
    comparisons: Mapping[str, str]
    arrays: tuple[str, ...]
    file: Path | None
    sha256: str | None = None
    faults: tuple[str, ...] = field(default=())
    skip: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    lender: VectorCase | None = None
    chapter: str = ""
    model: Path | None = None
    model_sha256: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all its arrays, the borrowed ones first."""
        return (*(self.lender.names if self.lender else ()), *self.arrays)

    def load(self) -> dict[str, ndarray]:
        """Return the arrays, borrowed ones included. Errors: VectorError naming file and case."""
        if self.faults:
            raise VectorError(self.faults[0])
        return (self.lender.load() if self.lender else {}) | self.own()

    def own(self) -> dict[str, ndarray]:
        """Return the arrays that are not borrowed; a model must be whole too.

        Errors: VectorError naming file and case.
        """
        if self.faults:
            raise VectorError(self.faults[0])
        if self.model is not None:
            self._content(self.model, self.model_sha256)
        if self.file is None:
            return {}
        where = f"{self.file.name}, case {self.id}"
        content = self._content(self.file, self.sha256)
        found = {}
        for name in self.arrays:
            try:
                found[name] = content[self.keys.get(name, f"{self.id}/{name}")]
            except KeyError:
                raise VectorError(f"{where}: array {name} is missing") from None
            except Exception as error:
                raise VectorError(f"{where}: array {name} cannot be read ({error})") from error
        return found

    def _content(self, file: Path, sha256: str | None) -> Any:
        try:
            return _archive(str(file), sha256)
        except VectorError as error:
            raise VectorError(f"{file.name}, case {self.id}: {error}") from error


Run = Callable[[Subject, VectorCase, Arrays, Evidence], None]
"""Compares one thing of a case; raises Disagreement where it fails."""


@dataclass(frozen=True)
class Comparison:
    """One comparison, patterns of the names it is made of, each matched by an array, and its config."""

    run: Run
    arrays: tuple[str, ...] = ()
    config: tuple[str, ...] = ()

    def lacking(self, names: Iterable[str]) -> list[str]:
        """Return the patterns that none of `names` matches."""
        names = tuple(names)
        return [p for p in self.arrays if not any(re.fullmatch(p, name) for name in names)]


@dataclass(frozen=True)
class Kind:
    """What cases of one kind are compared on, by name; `arrays` and `config` all of them hold."""

    comparisons: Mapping[str, Comparison]
    arrays: tuple[str, ...] = ()
    config: tuple[str, ...] = ()


def below(arrays: Arrays, prefix: str) -> dict[str, ndarray]:
    """Return the arrays whose names begin with `prefix`, by the rest of the name."""
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}


# ---- answers -----------------------------------------------------------------------------------

_Answer = TypeVar("_Answer")
_LAST: WeakKeyDictionary[Subject, tuple[VectorCase, dict[str, Any]]] = WeakKeyDictionary()


def once(subject: Subject, case: VectorCase, call: str, ask: Callable[[], _Answer]) -> _Answer:
    """Return what `ask` answered, or raise what it raised, the first time for this case.

    Comparisons of a whole model share one call: a compiler may take seconds for each.
    """
    if subject not in _LAST or _LAST[subject][0] is not case:
        _LAST[subject] = (case, {})
    answers = _LAST[subject][1]
    if call not in answers:
        try:
            answers[call] = ask()
        except Exception as error:  # noqa: BLE001 - raised again for each comparison
            answers[call] = error
    answer: Any = answers[call]
    if isinstance(answer, Exception):
        raise answer
    return answer


# ---- files -------------------------------------------------------------------------------------

_OPEN: dict[tuple[str, str | None], Any] = {}


def _archive(path: str, sha256: str | None) -> Any:
    key = (path, sha256)
    if key not in _OPEN:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise VectorError(f"cannot be read ({error.strerror})") from error
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise VectorError("its sha256 is not the one in index.json: truncated or changed")
        form, read = _FORMS.get(Path(path).suffix, ("npz archive", _npz))
        try:
            _OPEN[key] = read(content)
        except Exception as error:
            raise VectorError(f"is no whole {form} ({error})") from error
    return _OPEN[key]


def _npz(content: bytes) -> Any:
    return np.load(io.BytesIO(content), allow_pickle=False)


_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}


def _tensors(content: bytes) -> dict[str, ndarray]:
    """Return tensors by name, in its order, as float32: bfloat16 is widened, as in the other files."""
    found = dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]
    return {
        name: np.frombuffer(found[name]["data"], _DTYPES[found[name]["dtype"]])
        .reshape(found[name]["shape"])
        .astype(np.float32)
        for name in sorted(found)
    }


_FORMS: Mapping[str, tuple[str, Callable[[bytes], Any]]] = {
    ".safetensors": ("safetensors file", _tensors),
    ".model": ("SentencePiece model", model_files.num_pieces),
}
"""What files with an ending are, and how they are read; all others are npz archives."""


def pieces_of(path: Path) -> int:
    """Return how many pieces a SentencePiece file has. Errors: VectorError saying what is wrong."""
    return int(_archive(str(path), None))


def keys_of(path: Path) -> tuple[str, ...]:
    """Return the keys of an npz or safetensors file. Errors: VectorError saying what is wrong."""
    return tuple(_archive(str(path), None))


def array_of(path: Path, key: str) -> ndarray:
    """Return one array of a file. Errors: VectorError saying what is wrong."""
    content = _archive(str(path), None)
    try:
        return np.asarray(content[key])
    except Exception as error:
        raise VectorError(f"{path.name}: array {key} cannot be read ({error})") from error
