"""Counting of routed tokens and of groups into the tables of an audit: integers, exact, fast.

Spec: AUDIT-02, AUDIT-10, AUDIT-12 to AUDIT-14, AUDIT-16, AUDIT-17, AUDIT-21, AUDIT-25.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy import ndarray

from openmoe_tools.audit.counting.admitting import check_groups, check_routed
from openmoe_tools.audit.counting.cells import (
    Marks,
    check_room,
    check_room_for,
    drop_marks,
    increase,
    marks,
    sums,
)
from openmoe_tools.audit.counting.layout import (
    DROP_COLUMNS,
    ENTROPY_BINS,
    FIXED_POINT,
    GATE_BINS,
    GROUP_BINS,
    MARGIN_CODES,
    POSITION_BINS,
    RATIO_BINS,
    REPETITION_COLUMNS,
    Sizes,
)
from openmoe_tools.audit.counting.routed import Groups, Routed
from openmoe_tools.audit.counting.weighing import Documents

Arrays = Mapping[str, ndarray]


def count(
    arrays: Arrays, sizes: Sizes, routed: Routed, groups: Sequence[Sequence[Groups]] = ()
) -> None:
    """Add routed tokens and whole groups, by rule, to tables, or refuse them and change nothing.

    Errors: UsageError.
    """
    check_routed(sizes, routed)
    check_groups(sizes, groups)
    batch = _Batch(sizes, routed)
    # The ranks of a token's choices differ: it adds no more than 1 to any cell.
    check_room_for("token", arrays["token"], batch.by_token, len(routed.token))
    if batch.lost is not None:
        check_room("lost_gate", arrays["lost_gate"], batch.lost)
    batch.count(arrays)
    for rule, ones in enumerate(groups):
        for one in ones:
            _count_groups(arrays, rule, one)


def position_bins(position: ndarray, length: int) -> ndarray:
    """Return the part of a row that each position is in, int64."""
    return position.astype(np.int64) * POSITION_BINS // length


def mark(table: ndarray, keys: ndarray, found: Marks) -> None:
    """Count what was found of tokens in a table [keys, ..., L, C]; keys int64 [N], by token."""
    increase(table, keys[found.token] * (table.shape[-2] * table.shape[-1]) + found.cell)


class _Batch:
    """Routed tokens that are counted together, in the forms that the tables need.

    expert    int64 [L, K, N]
    dropped   bool [R, L, K, N]
    by_token  int64 [N * L * K], cells of the table `token`
    lost      int64 [R, D, L, 2], what is added to the table `lost_gate`; None: not known
    """

    def __init__(self, sizes: Sizes, routed: Routed) -> None:
        self.sizes, self.routed = sizes, routed
        self.layer = np.arange(sizes.layers)
        wide = routed.expert.astype(np.int64)  # [N, L, K]
        cell = (self.layer[:, None] * sizes.experts + wide) * sizes.choices
        cell += np.arange(sizes.choices)
        self.cell = cell.reshape(len(wide), sizes.layers * sizes.choices)  # [N, L * K]
        self.cells = sizes.layers * sizes.experts * sizes.choices
        self.expert = np.ascontiguousarray(wide.transpose(1, 2, 0))
        self.documents = Documents.of(routed, sizes.slices)
        self.slice = routed.slice.astype(np.int64)
        self.group = self.slice[:, None] * sizes.layers + self.layer  # [N, L]
        self.by_token = self._choices(routed.token, sizes.vocabulary)
        self.dropped = None
        if routed.dropped is not None:
            self.dropped = np.ascontiguousarray(routed.dropped.transpose(0, 2, 3, 1))
        self.lost = self._lost()

    def _choices(self, key: ndarray, size: int) -> ndarray:
        """Return the cells of all choices in a table [FOLDS, size, L, E, K]."""
        number = self.documents.fold * size + key
        return (number[:, None] * self.cells + self.cell).reshape(-1)

    def _lost(self) -> ndarray | None:
        """Return the sums of dropped and of all gates by rule, slice and layer. Spec: AUDIT-17."""
        if self.dropped is None or self.routed.gate is None:
            return None
        gate = fixed(np.ascontiguousarray(self.routed.gate.transpose(1, 2, 0)))  # [L, K, N]
        keys, shape = self.group.T.reshape(-1), (self.sizes.slices, self.sizes.layers)
        size = shape[0] * shape[1]
        found = np.empty((len(self.dropped), *shape, 2), np.int64)
        found[..., 1] = sums(keys, gate.sum(axis=1).reshape(-1), size).reshape(shape)
        for rule, dropped in enumerate(self.dropped):
            lost = (gate * dropped).sum(axis=1).reshape(-1)
            found[rule, ..., 0] = sums(keys, lost, size).reshape(shape)
        return found

    def count(self, arrays: Arrays) -> None:
        """Count into all tables that are made of tokens."""
        sizes, routed = self.sizes, self.routed
        increase(arrays["token"], self.by_token)
        increase(arrays["position"], self._choices(routed.position, sizes.length))
        increase(arrays["slice_token"], self.slice * sizes.vocabulary + routed.token)
        self._count_experts(arrays)
        self._count_probabilities(arrays)
        self._count_documents(arrays, self._neighbours(arrays), self._drops(arrays))

    def _count_experts(self, arrays: Arrays) -> None:
        """Count experts that the same token chose. Spec: AUDIT-10."""
        experts, ranks = self.sizes.experts, range(self.sizes.choices)
        upper = (self.layer[:, None, None] * experts + self.expert) * experts  # [L, K, N]
        for i in ranks:
            for j in ranks[i + 1 :]:
                together = np.zeros_like(arrays["coactivation"])
                increase(together, (upper[:, i] + self.expert[:, j]).reshape(-1))
                arrays["coactivation"][...] += together + together.swapaxes(1, 2)
        pairs = [(a, b) for a in self.layer for b in self.layer[a + 1 :]]
        upper = self.expert * experts
        for table, (a, b) in zip(arrays["cross_layer"], pairs, strict=True):
            for rank in ranks:
                increase(table, (upper[a] + self.expert[b, rank]).reshape(-1))

    def _neighbours(self, arrays: Arrays) -> Marks:
        """Count tokens and their next in the row; return REPETITION_COLUMNS. Spec: AUDIT-12."""
        sizes, row = self.sizes, self.routed.row
        before, after = self.expert[..., :-1], self.expert[..., 1:]
        neighbours = row[:-1] == row[1:]
        same = before[:, 0] == after[:, 0]
        meeting = np.zeros_like(same)
        for one in range(sizes.choices):
            for other in range(sizes.choices):
                meeting |= before[:, one] == after[:, other]
        cells = (self.layer[:, None] * sizes.experts + before[:, 0]) * sizes.experts + after[:, 0]
        increase(arrays["transition"], cells[:, neighbours].reshape(-1))
        every = np.broadcast_to(neighbours, same.shape)
        found = marks((every, same & neighbours, meeting & neighbours))
        mark(arrays["repetition"], self.slice, found)
        return found

    def _drops(self, arrays: Arrays) -> list[Marks]:
        """Count dropped choices; return their DROP_COLUMNS by rule. Spec: AUDIT-16."""
        if self.dropped is None:
            return []
        routed, keys = self.routed, self.slice * self.sizes.length + self.routed.position
        found = [drop_marks(dropped) for dropped in self.dropped]
        for rule, one in enumerate(found):
            mark(arrays["drop"][rule], keys, one)
            if routed.place is not None:
                mark(arrays["drop_in_group"][rule], routed.place[rule].astype(np.int64), one)
        if self.lost is not None:
            arrays["lost_gate"][...] += self.lost
        return found

    def _count_probabilities(self, arrays: Arrays) -> None:
        """Count margins, gates and entropies. Spec: AUDIT-14."""
        routed, choices = self.routed, self.sizes.choices
        if routed.margin is not None:
            for table, code in zip(arrays["margin"], routed.margin, strict=True):
                increase(table, (self.group * MARGIN_CODES + code).reshape(-1))
        if routed.gate is not None:
            part = (routed.gate * np.float32(GATE_BINS)).astype(np.int64).clip(max=GATE_BINS - 1)
            keys = self.group[..., None] * choices + np.arange(choices)
            increase(arrays["gate"], (keys * GATE_BINS + part).reshape(-1))
        if routed.entropy is not None:
            cells = self.layer * ENTROPY_BINS + routed.entropy
            increase(arrays["entropy"], cells.reshape(-1))

    def _count_documents(self, arrays: Arrays, repeated: Marks, dropped: list[Marks]) -> None:
        """Count what documents are weighted for, and the slices. Spec: AUDIT-25."""
        sizes = self.sizes
        each = np.repeat(np.arange(len(self.cell)), self.cell.shape[1])
        chosen = Marks(each, self.cell.reshape(-1))
        repeats = sizes.layers * len(REPETITION_COLUMNS)
        drops = sizes.layers * len(DROP_COLUMNS)
        part = position_bins(self.routed.position, sizes.length)
        placed = [Marks(one.token, part[one.token] * drops + one.cell) for one in dropped]
        drops *= POSITION_BINS
        for block in self.documents.blocks(max(self.cells, drops)):
            table = block.table(chosen, self.cells)
            for number, members in block.members():
                _add(arrays["slice"][:, number], block.folded(table, members))
                _add(arrays["replicate_slice"][:, number], block.replicated(table, members))
            for rule, one in enumerate(placed):
                table = block.table(one, drops)
                for number, members in block.members():
                    there = arrays["replicate_drop"][:, rule, number]
                    _add(there, block.replicated(table, members))
            table = block.table(repeated, repeats)
            _add(arrays["replicate_repetition"], block.replicated(table, slice(None)))


def _add(table: ndarray, more: ndarray) -> None:
    table += more.reshape(table.shape)


def fixed(values: ndarray) -> ndarray:
    """Return probabilities as int64 with FIXED_POINT binary places, halves to the even one."""
    return np.rint(values.astype(np.float64) * (1 << FIXED_POINT)).astype(np.int64)


# ---- groups ------------------------------------------------------------------------------------


def _count_groups(arrays: Arrays, rule: int, groups: Groups) -> None:
    """Count the loads of whole groups under a rule. Spec: AUDIT-13, AUDIT-16."""
    load = groups.load.astype(np.int64)  # [G, L, E]
    layer = np.arange(load.shape[1])
    parts = ratio_bins(load)
    increase(arrays["group_load"][rule], (layer * RATIO_BINS + parts)[parts >= 0])
    beyond = (load - groups.capacity).clip(min=0)
    use = arrays["group_use"][rule]
    use[..., 0] += len(load)
    use[..., 1] += (load - beyond).sum(axis=0)
    use[..., 2] += beyond.sum(axis=0)
    use[..., 3] += (beyond > 0).sum(axis=0)
    places = layer * (GROUP_BINS + 1) + groups.first
    increase(arrays["first_drop"][rule], places.reshape(-1))


def ratio_bins(load: ndarray) -> ndarray:
    """Return floor(8 log2 of largest over mean load), at most RATIO_BINS - 1; -1 where there is none.

    load  integers [G, L, E]; the result is int64 [G, L], exact
    """
    experts = load.shape[-1]
    largest = (load.max(axis=-1) * experts).reshape(-1).tolist()
    whole = load.sum(axis=-1).reshape(-1).tolist()
    # The eighth power's binary logarithm has the whole part that is asked for: integers alone.
    bins = [
        min((over**8 // under**8).bit_length() - 1, RATIO_BINS - 1) if under else -1
        for over, under in zip(largest, whole, strict=True)
    ]
    return np.array(bins, np.int64).reshape(load.shape[:-1])
