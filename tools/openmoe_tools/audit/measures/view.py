"""The tables of an audit as the measures read them: by layer, with names for what has numbers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_reference import audit, audit_inference
from openmoe_spec.errors import RejectedError
from openmoe_tools.audit.counting.layout import FOLDS, POSITION_BINS, Sizes

PAPERS_LAYER = 2
"""The paper shows its third sparse layer where it shows one."""
KEYS = ("token id", "position", "slice")
"""What tokens are told apart by; each has a table of choices by fold."""
TABLES = {"token id": "token", "position": "position", "slice": "slice"}
NEEDED = {"token id": "documents", "position": "positions", "slice": "documents"}
"""What a source must have told for the key to be judged."""


class View:
    """An audit's tables, cut by layer; ids without a token are left out.

    manifest, arrays, pairs, sample   as the audit's folder has them
    layers, slices, experts           labels
    asked    the layer that the verdict is about, by its place: the third, or the last of fewer
    seen     int64 [n] ids that have a token, ascending; seen_tokens: how many
    """

    def __init__(self, made: Any) -> None:
        self.manifest: Mapping[str, Any] = made.manifest
        self.sizes: Sizes = made.tables.sizes
        self.arrays: Mapping[str, ndarray] = made.tables.arrays
        self.pairs: Mapping[str, ndarray] | None = made.pairs
        self.sample: Sequence[Mapping[str, Any]] = made.sample or []
        self._pieces: Sequence[str] | None = made.pieces
        self.layers = [str(one) for one in self.manifest["model"]["layers"]]
        self.slices = [str(one["name"]) for one in self.manifest["corpus"]["slices"]]
        self.experts = [str(one) for one in range(self.sizes.experts)]
        self.asked = min(PAPERS_LAYER, self.sizes.layers - 1)
        tokens = self.arrays["slice_token"].sum(axis=0)
        self.seen = np.flatnonzero(tokens)
        self.seen_tokens = tokens[self.seen]
        self._kept: dict[tuple[str | int, ...], Any] = {}

    # ---- what there is -------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Return whether the source told of something, as `drops`."""
        return name in self.manifest["recorded"]

    @property
    def fixed(self) -> bool:
        """Return whether every token has all experts, so that no spread is possible."""
        return self.sizes.choices == self.sizes.experts

    @property
    def checkpoints(self) -> Sequence[Mapping[str, Any]]:
        """Return the checkpoints that pairs compare, the audited one last; none without pairs."""
        return () if self.pairs is None else self.manifest["checkpoints"]

    def label(self, identifier: int) -> str:
        """Return the piece of an id, or the id where there is no tokeniser."""
        if self._pieces is None or not 0 <= identifier < len(self._pieces):
            return f"id {identifier}"
        return self._pieces[identifier]

    def rule(self, name: str) -> Mapping[str, Any]:
        """Return what the recipe says of a capacity rule, which may be nothing."""
        rules = self.manifest["recipe"]["rules"]
        return next((one for one in rules if one["name"] == name), {"name": name})

    # ---- counts --------------------------------------------------------------------------------

    def counts(self, key: str, layer: int) -> ndarray:
        """Return choices [keys, E, K] of a key of KEYS in a layer, all folds; ids are the seen ones."""
        return self.once(("counts", key, layer), lambda: self._cut(key, layer).sum(axis=0))

    def by_fold(self, key: str, layer: int) -> ndarray:
        """Return first choices [F, keys, E] of a key in a layer."""
        return self._cut(key, layer)[..., 0]

    def _cut(self, key: str, layer: int) -> ndarray:
        table = self.arrays[TABLES[key]]
        # The largest table is cut before it is widened.
        cut = table[:, self.seen, layer] if key == "token id" else table[:, :, layer]
        return cut.astype(np.int64)

    def whole(self, layer: int) -> ndarray:
        """Return choices [E, K] of all tokens in a layer."""
        return self.counts("slice", layer).sum(axis=0)

    def shares(self, layer: int) -> ndarray:
        """Return the shares [E] of all choices in a layer."""
        return audit.choice_shares(self.whole(layer))

    def tokens(self) -> ndarray:
        """Return the tokens [D] of each slice."""
        return self.arrays["slice_token"].sum(axis=1)

    def specialisation(self, counts: ndarray, layer: int) -> ndarray:
        """Return the specialisation of keys around a layer's shares; none where K is E."""
        if self.fixed:
            return np.full(counts.shape[:-2], np.nan)
        return audit.specialisation(counts, shares=self.shares(layer))

    # ---- what keys tell ------------------------------------------------------------------------

    def untold(self, key: str) -> str | None:
        """Return why a key cannot be judged, or nothing."""
        if not self.has(NEEDED[key]):
            return f"{NEEDED[key]} are not recorded"
        if key == "slice" and self.sizes.slices < 2:
            return "the text is of one slice"
        if key == "position" and self.sizes.length < 2:
            return "rows have one position"
        return None

    def folds(self) -> int:
        """Return the number of folds that have documents."""
        return int((self.arrays["documents"].sum(axis=1) > 0).sum())

    def gain(self, key: str, layer: int) -> audit_inference.Gain | None:
        """Return what a key adds to a guess, with its 95 % interval; none where it cannot be said."""
        return self.once(("gain", key, layer), lambda: self._gain(key, layer))

    def _gain(self, key: str, layer: int) -> audit_inference.Gain | None:
        if self.untold(key) or self.folds() < FOLDS:
            return None
        by_fold = self.by_fold(key, layer)
        if not by_fold.any(axis=(1, 2)).all():
            return None
        try:
            return audit_inference.held_out_gain(by_fold)
        except RejectedError:  # one expert has every token, but for those of a fold
            return None

    def once(self, key: tuple[str | int, ...], made: Callable[[], Any]) -> Any:
        """Return what was made for a key before, or make it."""
        if key not in self._kept:
            self._kept[key] = made()
        return self._kept[key]

    # ---- positions -----------------------------------------------------------------------------

    def bins(self) -> ndarray:
        """Return the part of the row, of POSITION_BINS, that each position [S] is in."""
        return np.arange(self.sizes.length) * POSITION_BINS // self.sizes.length

    def binned(self, table: ndarray, axis: int = 0) -> ndarray:
        """Return a table by parts of the row instead of positions, which are its `axis`."""
        moved = np.moveaxis(table, axis, 0)
        made = np.zeros((POSITION_BINS, *moved.shape[1:]), np.int64)
        np.add.at(made, self.bins(), moved)
        return np.moveaxis(made, 0, axis)

    # ---- the trace -----------------------------------------------------------------------------

    def query(self, name: str) -> str | None:
        """Return the SQL that makes a figure of the trace, or nothing.

        It is of the layer asked about, the first rule, expert 0, the most frequent id.
        """
        from openmoe_tools.audit.trace.queries import QUERIES  # noqa: PLC0415 - where it is wanted

        if name not in QUERIES:
            return None
        most = int(self.frequent(1)[0])
        told: dict[str, int | str] = {"layer": self.asked, "expert": 0, "token": most}
        if self.sizes.rules:
            told["rule"] = self.sizes.rules[0]
        asked = inspect.signature(QUERIES[name]).parameters.values()
        if any(one.default is one.empty and one.name not in told for one in asked):
            return None
        return QUERIES[name](**{one.name: told[one.name] for one in asked if one.name in told})

    def frequent(self, number: int) -> ndarray:
        """Return the ids with most tokens, most first; among equals the lower."""
        return self.seen[self.most(number)]

    def most(self, number: int) -> ndarray:
        """Return the places, among the seen ids, of those with most tokens, most first."""
        return np.argsort(-self.seen_tokens, kind="stable")[:number]
