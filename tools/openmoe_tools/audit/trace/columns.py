"""Which columns a trace has, and what its files say of themselves. Spec: AUDIT-02.

A row is a counted token: document, row (numbers over the whole text), position, token, slice (its name);
`l{m}_e{r}`, the expert of sparse layer m = 0.. and rank r = 0.., best first, before capacity;
`dropped_{rule}`, of which bit m K + r says that choice r of layer m found no slot (beyond 64 bits,
`dropped_{rule}__1` has bits 64.., and so on); `l{m}_margin`, the code of the margin between choices K and
K + 1. Only on request: `l{m}_order` (the code between the first and the second), `l{m}_entropy`,
`place_{rule}`, `l{m}_g{r}` (gates as float16).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from openmoe_conformance.outcome import UsageError
from openmoe_spec import SPEC_VERSION

SCHEMA = "openmoe-trace/1"
DOCUMENTS = "documents.parquet"
MORE = ("gates", "order", "entropy", "places")
"""What is written on request alone."""
BITS = 64
RULE = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*", re.ASCII)
"""Names of capacity rules, which become parts of names of columns."""

_MARGINS = (
    "code c > 0: a margin of 2^((c - 1) / 8 - 24) or more and less than the next code's; 0: less"
)
_DROPPED = "bit m * choices + r: choice r of sparse layer m found no slot"
_NUMBERS = ("experts", "choices", "vocabulary_size", "length")
_LISTS = {"layers": int, "slices": str, "rules": str, "recorded": str}
_DIGESTS = ("model_digest", "tokenizer_digest", "corpus_digest")


def part_name(number: int) -> str:
    """Return the name of a part of a trace."""
    return f"part-{number:05d}.parquet"


PART = re.compile(r"part-(\d{5,})\.parquet", re.ASCII)


@dataclass(frozen=True)
class Head:
    """What every file of a trace says: of which model, over which text, by which rules.

    layers  numbers of the sparse layers in the model; `l0_e0` is of the first of them
    slices  names in the order of their numbers
    recipe, recorded  of the audit's manifest; recorded (): it does not say what its run knew
    """

    model_digest: str | None
    tokenizer_digest: str | None
    corpus_digest: str | None
    layers: tuple[int, ...]
    experts: int
    choices: int
    vocabulary_size: int
    length: int
    slices: tuple[str, ...]
    rules: tuple[str, ...]
    recipe: Mapping[str, Any]
    recorded: tuple[str, ...] = ()
    spec_version: str = SPEC_VERSION

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Head:
        """Return what a manifest of an audit says. Errors: UsageError on names of rules."""
        model, corpus, recipe = manifest["model"], manifest["corpus"], manifest["recipe"]
        rules = tuple(str(one["name"]) for one in recipe["rules"])
        for one in rules:
            if not RULE.fullmatch(one):
                raise UsageError(
                    f"rule {one!r}: must be letters and digits, with single underscores between"
                )
        return cls(
            model_digest=model["digest"],
            tokenizer_digest=(manifest["tokenizer"] or {}).get("digest"),
            corpus_digest=corpus["digest"],
            layers=tuple(model["layers"]),
            experts=model["experts"],
            choices=model["choices"],
            vocabulary_size=model["vocabulary_size"],
            length=recipe["length"],
            slices=tuple(one["name"] for one in corpus["slices"]),
            rules=rules,
            recipe=json.loads(json.dumps(recipe)),  # as it will be read
            recorded=tuple(manifest.get("recorded", ())),
        )

    def metadata(self) -> dict[str, str]:
        """Return it as the key-value pairs of a file."""
        numbers = (*_NUMBERS, *_LISTS, "recipe")
        return (
            {"schema": SCHEMA, "spec_version": self.spec_version}
            | {name: getattr(self, name) or "" for name in _DIGESTS}
            | {name: json.dumps(getattr(self, name)) for name in numbers}
            | {"margins": _MARGINS, "dropped": _DROPPED}
        )

    @classmethod
    def read(cls, metadata: Mapping[bytes, bytes] | None, where: object) -> Head:
        """Return what a file's pairs say. Errors: UsageError."""
        found = {
            key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
            for key, value in (metadata or {}).items()
        }
        if found.get("schema") != SCHEMA:
            raise UsageError(
                f"{where}: is no file of a trace (its metadata has no schema {SCHEMA})"
            )
        try:
            numbers = {name: _number(json.loads(found[name])) for name in _NUMBERS}
            lists = {name: _list(json.loads(found[name]), of) for name, of in _LISTS.items()}
            recipe = _sound(lists, json.loads(found["recipe"]))
        except (KeyError, ValueError, TypeError) as error:
            raise UsageError(f"{where}: its metadata is not that of a trace ({error})") from error
        given: dict[str, Any] = {name: found.get(name) or None for name in _DIGESTS}
        version = found.get("spec_version", "")
        return cls(**given, **numbers, **lists, recipe=recipe, spec_version=version)

    def differs(self, other: Head) -> str | None:
        """Return what first tells it from another head, in words; None: nothing."""
        for name in self.__dataclass_fields__:
            if getattr(self, name) != getattr(other, name):
                return f"another {name.replace('_', ' ')}"
        return None


def _number(value: Any) -> Any:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r} is no number above 0")
    return value


def _list(value: Any, of: type) -> Any:
    if not isinstance(value, list) or not all(type(one) is of for one in value):
        raise ValueError(f"{value!r} is no list of {of.__name__}")
    return tuple(value)


def _sound(lists: Mapping[str, Any], recipe: Any) -> Mapping[str, Any]:
    if not lists["layers"] or not lists["slices"] or not isinstance(recipe, Mapping):
        raise ValueError("no layers, no slices, or no recipe")
    if not all(RULE.fullmatch(one) for one in lists["rules"]):
        raise ValueError("names of rules")
    return recipe


# ---- columns -----------------------------------------------------------------------------------


class Column(NamedTuple):
    """A column: its name, its dtype, and how it is written, with zstd at a level."""

    name: str
    dtype: np.dtype[Any]
    encoding: str
    level: int = 3


class Kinds(NamedTuple):
    """Which optional columns a trace has."""

    dropped: bool
    margin: bool
    order: bool
    entropy: bool
    places: bool
    gates: bool


# Bytes of a value lie apart, so that zstd sees each byte's own distribution; a dictionary's bits would
# hide it. Measured on ids by Zipf's law and skewed experts: 9.8 bytes a token, with dictionaries 11. A
# higher level pays for ids and for dropped choices alone, and takes a second for some million tokens.
_SPLIT, _STEPS = "BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED"
_HIGH = 15


def columns(head: Head, kinds: Kinds) -> Iterator[Column]:
    """Yield the columns of a trace but `slice`, in their order."""
    small = np.dtype(np.uint8)
    expert = small if head.experts <= 256 else np.dtype(np.uint16)
    position = np.dtype(np.uint16 if head.length <= 1 << 16 else np.uint32)
    yield Column("document", np.dtype(np.int32), _STEPS)
    yield Column("row", np.dtype(np.int32), _STEPS)
    yield Column("position", position, _STEPS)
    yield Column("token", np.dtype(np.uint32), _SPLIT, _HIGH)
    for m in range(len(head.layers)):
        yield from _of_layer(m, head.choices, expert, kinds)
    for rule in head.rules:
        if kinds.dropped:
            for name, bits in dropped_columns(head, rule):
                yield Column(name, _smallest(len(bits)), _SPLIT, _HIGH)
        if kinds.places:
            yield Column(f"place_{rule}", small, _SPLIT)


def _of_layer(m: int, choices: int, expert: np.dtype[Any], kinds: Kinds) -> Iterator[Column]:
    small = np.dtype(np.uint8)
    for r in range(choices):
        yield Column(f"l{m}_e{r}", expert, _SPLIT)
    for there, name in zip(kinds[1:4], ("margin", "order", "entropy"), strict=True):
        if there:
            yield Column(f"l{m}_{name}", small, _SPLIT)
    if kinds.gates:
        for r in range(choices):
            yield Column(f"l{m}_g{r}", np.dtype(np.float16), "PLAIN")


def dropped_columns(head: Head, rule: str) -> Iterator[tuple[str, range]]:
    """Yield the columns of a rule's dropped choices, and which bits of all they have."""
    bits = len(head.layers) * head.choices
    for start in range(0, bits, BITS):
        name = f"dropped_{rule}" + (f"__{start // BITS}" if start else "")
        yield name, range(start, min(start + BITS, bits))


def _smallest(bits: int) -> np.dtype[Any]:
    return np.dtype(next(f"u{size}" for size in (1, 2, 4, 8) if bits <= 8 * size))


def kinds_of(names: Collection[str], head: Head) -> Kinds:
    """Return which optional columns are among the names of a file's."""
    rule = head.rules[0] if head.rules else None
    return Kinds(
        dropped=f"dropped_{rule}" in names,
        margin="l0_margin" in names,
        order="l0_order" in names,
        entropy="l0_entropy" in names,
        places=f"place_{rule}" in names,
        gates="l0_g0" in names,
    )


def asked(more: Sequence[str]) -> frozenset[str]:
    """Return the names of what is written on request, or refuse one. Errors: UsageError."""
    for one in more:
        if one not in MORE:
            raise UsageError(f"trace: knows no {one!r}; there are {', '.join(MORE)}")
    return frozenset(more)
