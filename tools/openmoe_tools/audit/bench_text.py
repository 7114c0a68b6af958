"""Drawn routing of a model of 8B's sizes, for measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from openmoe_tools.audit.counting import queues
from openmoe_tools.audit.counting.layout import GROUP_BINS, Sizes
from openmoe_tools.audit.counting.routed import Groups, Routed

LENGTH, SLICES, IDS = 2048, 26, 20_000
SIZES = Sizes(256_384, LENGTH, SLICES, 4, 32, 2, ("t5x", "torch_port"))
SMALL = Sizes(8320, LENGTH, 8, 3, 8, 2, ("t5x", "torch_port"))
"""Those of 8B, and of the preset `small` over longer rows."""
CAPACITY = 2 * LENGTH // 32


def routed(
    seed: int, tokens: int, sizes: Sizes = SIZES
) -> tuple[Routed, Sequence[Sequence[Groups]]]:
    """Return tokens of rows of 2,048, ids as frequent as words are, each id with experts it prefers."""
    draws = np.random.default_rng(seed)
    layers, slots = sizes.layers, 2 * LENGTH // sizes.experts
    most = min(IDS, sizes.vocabulary - 1)
    ids = np.minimum((1 / draws.random(tokens)).astype(np.int64), most)
    place = np.arange(tokens)
    experts = _chosen(draws, ids, sizes)
    whole = np.resize(experts, (-(-tokens // LENGTH) * LENGTH, layers, 2)).swapaxes(0, 1)
    queue = np.ascontiguousarray(whole).reshape(-1, LENGTH, 2)
    position = queues.positions(queue, sizes.experts, "choices").reshape(whole.shape)
    late = (position >= slots).swapaxes(0, 1)[:tokens]
    groups = queues.groups_of(
        np.ascontiguousarray(whole).reshape(layers, -1, LENGTH, 2),
        position.reshape(layers, -1, LENGTH, 2),
        slots,
        sizes.experts,
    )
    row = place // LENGTH
    one = Routed(
        row=row + seed * 1000,
        position=(place % LENGTH).astype(np.int32),
        token=ids.astype(np.int32),
        slice=((row + seed) % sizes.slices).astype(np.int16),
        document=row.astype(np.int32),
        expert=experts.astype(np.uint16),
        documents=[f"{seed}-{i}" for i in range(int(row[-1]) + 1)],
        dropped=np.stack([late, late]),
        place=np.stack([(place % LENGTH * GROUP_BINS // LENGTH).astype(np.int32)] * 2),
        margin=draws.integers(120, 200, (2, tokens, layers), np.uint8),
        gate=draws.random((tokens, layers, 2), np.float32),
        entropy=draws.integers(0, 65, (tokens, layers), np.uint8),
    )
    return one, [[groups], [groups]]


def _chosen(draws: np.random.Generator, ids: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Return experts [N, L, 2]: nine times of ten those of the id, else any."""
    experts = sizes.experts
    own = (ids[:, None] * np.array([7, 11, 13, 17][: sizes.layers])) % experts
    any_of = draws.integers(0, experts, own.shape)
    first = np.where(draws.random(own.shape) < 0.9, own, any_of)
    others = experts - 1
    step = 1 + np.where(draws.random(own.shape) < 0.8, ids[:, None] % others, any_of % others)
    return np.stack([first, (first + step) % experts], axis=-1)


def manifest() -> dict[str, Any]:
    """Return what a report has to be told of them."""
    rule = {"groups": 1, "group_size": LENGTH, "capacity": CAPACITY, "formula": "drawn"}
    return {
        "schema": "openmoe-audit/1",
        "spec_version": "",
        "version": "",
        "source": "run",
        "model": {
            "name": "drawn",
            "path": "drawn",
            "step": None,
            "digest": "0" * 64,
            "layers": [5, 11, 17, 23],
            "experts": 32,
            "choices": 2,
            "vocabulary_size": SIZES.vocabulary,
            "certificate": {"status": "none", "file": None},
        },
        "tokenizer": None,
        "corpus": {
            "digest": "0" * 64,
            "slices": [
                {"name": f"slice {i}", "documents": 1, "tokens": 1, "bytes": 1, "digest": "0" * 64}
                for i in range(SLICES)
            ],
        },
        "recipe": {
            "rows": 1,
            "length": LENGTH,
            "tokens": None,
            "share": None,
            "backend": "drawn",
            "mesh": None,
            "dtype": "float32",
            "capacity": "evaluation",
            "capacity_factor": 2.0,
            "seed": 0,
            "folds": 8,
            "replicates": 100,
            "what_if": [],
            "rules": [{"name": name, **rule} for name in SIZES.rules],
        },
        "checkpoints": [],
        "recorded": [
            *("tokens", "positions", "documents", "drops", "groups", "margins", "gates"),
            "probabilities",
        ],
        "totals": {"tokens": 1, "documents": 1, "calls": 1, "seconds": 1.0},
    }
