"""The functional tier: both models' forward passes on the same ids, and where they part first.

How far they may be apart is measured, not chosen: from what rounding does to the first model.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_reference import dialects, grouping, model, routing
from openmoe_spec.config import Configuration
from openmoe_spec.dialects import choices
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Decision
from openmoe_tools.checkpoints import digests
from openmoe_tools.checkpoints.findings import DIFFERS, HOLDS, INCOMPLETE
from openmoe_tools.checkpoints.probes import (
    BUDGET,
    SEED,
    Coverage,
    Probe,
    cover,
    extend,
    grouped,
    groups_of,
    probes,
    real_tokens,
)

MULTIPLE = 8.0
"""How many times the noise floor two passes may differ by: another order of sums makes another error."""

CAST_MULTIPLE = 2.0
"""How many times the effect of a declared cast: the same cast has the same effect."""

ULPS = 4.0
"""Units in the last place of the largest value, where the floor is 0."""

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7}
"""From 1 to the next number, in each arithmetic that a model is run in."""

ROUTER = "/router/router_weights"
LOGITS = "logits"
TOP = (1, 5, 10)
MARGINS = (1e-6, 1e-4, 1e-2)
"""Bounds of the histogram of margins."""

_BLOCK, _PIECE = 1 << 25, 1 << 19
"""Elements of logits that are made at once, and of those that are measured at once, in the cache.

With a vocabulary of 256,384 a row of full length has 2 GB of them.
"""


# ---- the two sides -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Side:
    """A model that can be run.

    weights         by the names of PARAM-01, of any float dtype; they are widened to float32
    implementation  `reference`, or `production`, which speaks t5x alone
    dtype           of activations
    """

    weights: Mapping[str, ndarray]
    dialect: str = "t5x"
    implementation: str = "reference"
    dtype: str = "float32"


@dataclass(frozen=True, eq=False)
class Recording:
    """What a model printed: ids [B, L], logits [B, L, V], and maybe hidden states [n + 1, B, L, D].

    Hidden states are the embedding, then what each layer but the last gives on, then the last norm.
    """

    ids: ndarray
    logits: ndarray
    hidden_states: ndarray | None = None


@dataclass(frozen=True, eq=False)
class Recorded:
    """A model that cannot be run here, by its recordings; `dtype` is that of its activations."""

    recordings: tuple[Recording, ...]
    dtype: str = "float32"


def read_recorded(path: Path, dtype: str = "float32") -> Recorded:
    """Return the recordings of an .npz: `input_ids`, `logits`, `hidden_states`, or each with _0, _1, ...

    Errors: UsageError on a file that is none, or arrays that are missing or do not fit each other.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: is no archive of NumPy arrays ({error})") from error
    suffixes = [name.removeprefix("input_ids") for name in arrays if name.startswith("input_ids")]
    if not suffixes:
        raise UsageError(f"{path}: must hold input_ids [B, L] and logits [B, L, V]")
    made = []
    for suffix in sorted(suffixes, key=lambda one: (len(one), one)):
        ids, logits = arrays[f"input_ids{suffix}"], arrays.get(f"logits{suffix}")
        hidden = arrays.get(f"hidden_states{suffix}")
        if ids.dtype.kind not in "iu" or ids.ndim != 2 or not ids.size:
            got = f"{ids.dtype} {list(ids.shape)}"
            raise UsageError(f"{path}: input_ids{suffix} must be integers [B, L], got {got}")
        if logits is None or logits.dtype.kind != "f" or logits.shape[:2] != ids.shape:
            got = "nothing" if logits is None else f"{logits.dtype} {list(logits.shape)}"
            wanted = f"floats [{ids.shape[0]}, {ids.shape[1]}, V]"
            raise UsageError(f"{path}: logits{suffix} must be {wanted}, got {got}")
        if hidden is not None and hidden.dtype.kind != "f":
            raise UsageError(f"{path}: hidden_states{suffix} must be floats, got {hidden.dtype}")
        made.append(Recording(ids, logits, hidden))
    return Recorded(tuple(made), dtype)


def _check_recorded(one: Recording, c: Configuration) -> None:
    if one.ids.min() < 0 or one.ids.max() >= c.vocabulary_size:
        raise UsageError(f"the recorded input_ids must lie in 0..{c.vocabulary_size - 1}")
    if one.ids.shape[1] > c.max_length:
        raise UsageError(f"the recorded rows must not be longer than {c.max_length}")
    if one.logits.shape[2:] != (c.vocabulary_size,):
        raise UsageError(f"the recorded logits must have {c.vocabulary_size} columns")
    shape = (c.num_layers + 1, *one.ids.shape, c.embed_dim)
    if one.hidden_states is not None and one.hidden_states.shape != shape:
        raise UsageError(f"the recorded hidden_states must have shape {list(shape)}")


class RefusedError(UsageError):
    """A pass that was refused, in a line."""


@dataclass(frozen=True, eq=False)
class _Pass:
    """One pass over ids [B, L].

    logits       made when they are asked for: of one row's positions, [n, V]
    activations  by name, those of a router as [B, L, E]
    decisions    as they are forced on another pass
    chosen       by sparse layer: experts [B, L, K] and which choices are kept
    """

    logits: Callable[[int, slice], ndarray]
    activations: Mapping[str, ndarray]
    decisions: Mapping[int, Decision] = field(default_factory=dict)
    chosen: Mapping[int, tuple[ndarray, ndarray]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Model:
    """A side with its configuration: runs ids."""

    label: str
    side: Side
    configuration: Configuration

    @staticmethod
    def of(label: str, side: Side, configuration: Configuration) -> _Model:
        """Return the side with float32 weights."""
        wide = {
            name: np.asarray(value).astype(np.float32, copy=False)
            for name, value in side.weights.items()
        }
        return _Model(label, replace(side, weights=wide), configuration)

    def run(
        self,
        ids: ndarray,
        *,
        dtype: str | None = None,
        decisions: Mapping[int, Decision] | None = None,
    ) -> _Pass:
        """Return a pass, with decisions forced on it where they are given."""
        real = real_tokens(ids)
        batch = {"decoder_input_tokens": ids, "decoder_target_tokens": real.astype(np.int32)}
        if not real.all():
            batch["attention_mask"] = real.astype(np.int32)
        run = {"reference": self._reference, "production": self._production}.get(
            self.side.implementation
        )
        if run is None:
            raise UsageError(f"implementation {self.side.implementation}: reference or production")
        try:
            found, logits = run(batch, dtype or self.side.dtype, decisions or {})
        except RejectedError as error:
            raise RefusedError(f"the forward pass of {self.label} is refused: {error}") from error
        activations = {
            name: self._by_token(np.asarray(one), ids.shape)
            if name.endswith(ROUTER)
            else np.asarray(one)
            for name, one in found.activations.items()
        }
        chosen = {
            layer: (
                self._by_token(one.expert_index, ids.shape),
                self._by_token(one.kept, ids.shape),
            )
            for layer, one in found.decisions.items()
        }
        return _Pass(logits, activations, found.decisions, chosen)

    def _reference(
        self, batch: Mapping[str, ndarray], dtype: str, decisions: Mapping[int, Decision]
    ) -> tuple[Any, Callable[[int, slice], ndarray]]:
        rules = dialects.rules(self.side.dialect)

        def later(
            x: ndarray, kernel: ndarray, *, mask: ndarray, dtype: str
        ) -> Any:  # not an array yet: of a whole row there may be gigabytes
            def some(row: int, at: slice) -> ndarray:
                part = x[row : row + 1, at], mask[row : row + 1, at]
                return rules.output_logits(part[0], kernel, mask=part[1], dtype=dtype)[0]

            return some

        found = model.forward(
            self.side.weights,
            batch,
            self.configuration,
            call=model.Call(dtype=dtype, decisions=decisions),
            rules=replace(rules, output_logits=later),
        )
        return found, found.logits

    def _production(
        self, batch: Mapping[str, ndarray], dtype: str, decisions: Mapping[int, Decision]
    ) -> tuple[Any, Callable[[int, slice], ndarray]]:
        from openmoe_tools import conforming  # noqa: PLC0415 - only production needs JAX

        if self.side.dialect != "t5x":
            raise UsageError(f"{self.label}: production speaks t5x, not {self.side.dialect}")
        conforming.require_jax("implementation production (reference needs none)")
        from openmoe_production.adapter import Adapter  # noqa: PLC0415

        found = Adapter().forward(
            self.side.weights,
            batch,
            configuration=asdict(self.configuration),
            dtype=dtype,
            decisions=decisions or None,
        )
        logits = np.asarray(found.logits)
        return found, lambda row, at: logits[row, at]

    def _by_token(self, grouped_values: ndarray, shape: tuple[int, ...]) -> ndarray:
        """Return [G, T, n] as [B, L, n], so that dialects with other groups can be compared."""
        both = (shape[0], shape[1])
        padded, _ = groups_of(both, self.configuration, self.side.dialect)
        return grouping.from_groups(grouped_values, padded=padded, shape=both)

    def decide(self, layer: int, found: _Pass, like: _Pass) -> tuple[ndarray, ndarray]:
        """Return what a router of a forced pass would have chosen itself, by token."""
        c, own = self.configuration, found.activations[f"decoder/layers_{layer}/mlp{ROUTER}"]
        padded, groups = groups_of((own.shape[0], own.shape[1]), c, self.side.dialect)
        logits = grouping.to_groups(own, padded=padded, num_groups=groups)
        try:
            made = dialects.steps(self.side.dialect).decide(
                routing.softmax(logits).astype(np.float32),
                k=c.num_selected_experts,
                capacity=like.decisions[layer].capacity,
                padding_mask=(logits != 0).any(axis=-1) if c.ignore_padding_tokens else None,
                batch_prioritized=c.batch_prioritized_routing,
                logits=logits,
            )
        except RejectedError as error:
            raise RefusedError(f"layer {layer} of {self.label} cannot route: {error}") from error
        return self._by_token(made.expert_index, own.shape), self._by_token(made.kept, own.shape)


def _recorded_pass(one: Recording) -> _Pass:
    hidden = () if one.hidden_states is None else one.hidden_states
    named = {f"hidden_states[{i}]": state for i, state in enumerate(hidden)}
    return _Pass(lambda row, at: one.logits[row, at], named)


def _with_hidden(found: _Pass, c: Configuration) -> dict[str, ndarray]:
    """Return activations and, after them, the hidden states that a recording may hold."""
    shown, states = dict(found.activations), [found.activations["token_embedder"]]
    for i in range(c.num_layers - 1):
        name = f"decoder/layers_{i}"
        extra = shown.get(f"{name}/extra_mlp")
        states.append(shown[name] if extra is None else shown[name] + extra)
    states.append(shown["decoder/decoder_norm"])
    return shown | {f"hidden_states[{i}]": state for i, state in enumerate(states)}


# ---- measuring -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogitsDifference:
    """How far two models' logits are apart, over all compared tokens.

    maximum, mean, p99     of the absolute difference of single logits
    kl_forward, kl_back    nats a token, of the second from the first and the reverse: mean, largest
    top                    by k: share of the first's k best that are among the second's
    quarters               of the longest row, first to last: largest and mean absolute difference;
                           None where no token stands
    not_finite             tokens with a logit that is no finite number; they are not in the rest
    """

    tokens: int
    not_finite: int
    maximum: float
    mean: float
    p99: float
    kl_forward: tuple[float, float]
    kl_back: tuple[float, float]
    top: Mapping[int, float]
    quarters: tuple[tuple[float, float] | None, ...]
    largest: float


class _Meter:
    """Logits come a block at a time; none are kept."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.not_finite = 0
        self.largest = 0.0
        self.bins = np.zeros(1 << 15, np.int64)
        self.rows: list[ndarray] = []  # of each token: place, largest, mean, two KL, top shares

    def add(self, a: ndarray, b: ndarray, places: ndarray) -> None:
        """Take in logits [n, V] of two models at places [n] of their row."""
        step = max(1, _PIECE // a.shape[-1])
        for start in range(0, len(a), step):
            at = slice(start, start + step)
            self._add(a[at], b[at], places[at])

    def _add(self, a: ndarray, b: ndarray, places: ndarray) -> None:
        finite = _finite(a, b)
        if not finite.any():
            return
        a, b, places = a[finite].astype(np.float64), b[finite].astype(np.float64), places[finite]
        apart = np.abs(a - b)
        self.largest = max(self.largest, float(np.abs(a).max()))
        # Floats above 0 are ordered as their bits are: 7 bits of the mantissa are within 1 %.
        bits = apart.astype(np.float32).view(np.uint32) >> np.uint32(16)
        self.bins += np.bincount(bits.reshape(-1), minlength=len(self.bins))
        p, q = _log_softmax(a), _log_softmax(b)
        forward = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0)
        back = np.maximum((np.exp(q) * (q - p)).sum(axis=-1), 0)
        tops = [_shared(a, b, k) for k in TOP if k <= a.shape[-1]]
        self.rows.append(
            np.stack([places, apart.max(axis=-1), apart.mean(axis=-1), forward, back, *tops])
        )

    def close(self) -> LogitsDifference | None:
        """Return the numbers; None where nothing finite came."""
        if not self.rows:
            return None
        places, largest, mean, forward, back, *tops = np.concatenate(self.rows, axis=1)
        quarter = (places * 4 // self.longest).astype(int)
        reached = np.searchsorted(self.bins.cumsum(), 0.99 * self.bins.sum())
        edge = np.array((int(reached) + 1) << 16, np.uint32).view(np.float32)
        return LogitsDifference(
            len(places),
            self.not_finite,
            float(largest.max()),
            float(mean.mean()),
            min(float(edge), float(largest.max())) if reached else 0.0,
            (float(forward.mean()), float(forward.max())),
            (float(back.mean()), float(back.max())),
            {k: float(share.mean()) for k, share in zip(TOP, tops, strict=False)},
            tuple(
                (float(largest[at].max()), float(mean[at].mean())) if at.any() else None
                for at in (quarter == i for i in range(4))
            ),
            self.largest,
        )


def _finite(a: ndarray, b: ndarray) -> ndarray:
    return np.isfinite(a).all(axis=-1) & np.isfinite(b).all(axis=-1)


def _log_softmax(x: ndarray) -> ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _shared(a: ndarray, b: ndarray, k: int) -> ndarray:
    best = [np.argpartition(-x, k - 1, axis=-1)[:, :k] for x in (a, b)]
    return (best[0][:, :, None] == best[1][:, None, :]).any(axis=-1).mean(axis=-1)


def _blocks(shape: tuple[int, ...], vocabulary_size: int) -> Iterator[tuple[int, slice]]:
    step = max(1, _BLOCK // vocabulary_size)
    for row in range(shape[0]):
        for start in range(0, shape[1], step):
            yield row, slice(start, min(start + step, shape[1]))


@dataclass
class _Apart:
    """The largest absolute difference of each activation and router, and the largest value."""

    differences: dict[str, float] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)

    def add(self, a: Mapping[str, ndarray], b: Mapping[str, ndarray], judged: ndarray) -> None:
        """Take in activations of two passes at the tokens [B, L] that are judged."""
        if not judged.any():
            return
        for name in a.keys() & b.keys():
            self._add(name, a[name][judged].astype(np.float64), b[name][judged].astype(np.float64))
            if name.endswith(ROUTER):
                pair = (np.exp(_log_softmax(x[name][judged].astype(np.float64))) for x in (a, b))
                self._add(_probabilities(name), *pair)

    def _add(self, name: str, a: ndarray, b: ndarray) -> None:
        found = float(np.abs(a - b).max())
        found = found if math.isfinite(found) else math.inf
        self.differences[name] = max(self.differences.get(name, 0.0), found)
        self.scales[name] = max(self.scales.get(name, 0.0), float(np.abs(a).max()))


def _probabilities(name: str) -> str:
    return f"{name}/probabilities"


@dataclass(frozen=True)
class _Floor:
    """What rounding does to the first model, and what a declared cast does to it."""

    arithmetic: _Apart
    cast: _Apart
    logits: LogitsDifference | None
    logits_of_cast: LogitsDifference | None
    epsilon: float

    def allowed(self, name: str) -> float:
        """Return how far two passes may be apart at an activation."""
        return (
            MULTIPLE * self.arithmetic.differences.get(name, 0.0)
            + CAST_MULTIPLE * self.cast.differences.get(name, 0.0)
            + ULPS * self.epsilon * self.arithmetic.scales.get(name, 0.0)
        )

    def of(self, name: str) -> float:
        """Return the measured floor at an activation, a cast's effect included."""
        return max(self.arithmetic.differences.get(name, 0.0), self.cast.differences.get(name, 0.0))

    @property
    def allowed_logits(self) -> float:
        """Return how far two logits may be apart."""
        if self.logits is None:
            return 0.0
        cast = 0.0 if self.logits_of_cast is None else self.logits_of_cast.maximum
        own = MULTIPLE * self.logits.maximum + ULPS * self.epsilon * self.logits.largest
        return own + CAST_MULTIPLE * cast


# ---- routing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Routing:
    """How two routers of one layer agree.

    choices      compared: K of each token
    equal        share of choices that are the same expert in the same place
    equal_kept   share of choices that are both kept or both dropped
    margins      choices that differ, by how far apart the two experts' probabilities are
    allowed      margin up to which a choice may differ
    forbidden    choices that differ and have a larger one
    kept_apart   choices kept by one model alone though all choices of the pass are equal
    """

    layer: int
    choices: int
    equal: float
    equal_kept: float
    margins: Mapping[str, int]
    allowed: float
    forbidden: int
    kept_apart: int


_BUCKETS = (*(f"below {bound:g}" for bound in MARGINS), "more")


@dataclass
class _Choices:
    """What `Routing` is made of, over several passes."""

    allowed: float
    choices: int = 0
    equal: int = 0
    kept: int = 0
    forbidden: int = 0
    kept_apart: int = 0
    margins: Counter[str] = field(default_factory=Counter)

    def add(
        self,
        a: tuple[ndarray, ndarray],
        b: tuple[ndarray, ndarray],
        probabilities: ndarray,
        judged: ndarray,
    ) -> None:
        """Take in experts and keeping [B, L, K] of both, and the first's probabilities [B, L, E]."""
        (mine, my_kept), (theirs, their_kept) = ([x[judged] for x in one] for one in (a, b))
        equal, kept = mine == theirs, my_kept == their_kept
        self.choices += equal.size
        self.equal += int(equal.sum())
        self.kept += int(kept.sum())
        if equal.all():
            self.kept_apart += int((~kept).sum())
        p = probabilities[judged]
        of_mine, of_theirs = (np.take_along_axis(p, x.clip(0), -1) for x in (mine, theirs))
        margin = np.abs(of_mine - of_theirs)[~equal]
        self.margins.update(_BUCKETS[i] for i in np.searchsorted(MARGINS, margin, side="right"))
        self.forbidden += int((margin > self.allowed).sum())

    def close(self, layer: int) -> Routing:
        """Return the shares."""
        whole = max(1, self.choices)
        return Routing(
            layer,
            self.choices,
            self.equal / whole,
            self.kept / whole,
            {name: self.margins[name] for name in _BUCKETS},
            self.allowed,
            self.forbidden,
            self.kept_apart,
        )


def _router(layer: int) -> str:
    return f"decoder/layers_{layer}/mlp{ROUTER}"


def _unsettled(found: _Pass, side: Side, c: Configuration, floor: _Floor) -> ndarray:
    """Return tokens [B, L] that a legitimate other choice at a near-tie may have moved.

    Later tokens of its row see it, and so do tokens of its group where an expert is full: their
    slots may move. Exact zeros are padding, whose tie index order decides for everybody.
    """
    first = next(iter(found.activations.values()))
    both = (first.shape[0], first.shape[1])
    padded, _ = groups_of(both, c, side.dialect)
    moved: ndarray = np.zeros(both, bool)
    for layer, decision in found.decisions.items():
        logits = found.activations[_router(layer)].astype(np.float64)
        best = -np.sort(-np.exp(_log_softmax(logits)), axis=-1)[..., : c.num_selected_experts + 1]
        close = -np.diff(best, axis=-1).max(axis=-1, initial=-np.inf)
        limit = 2 * floor.allowed(_probabilities(_router(layer)))
        moved |= (close <= limit) & (logits != 0).any(axis=-1)
        in_groups = grouped(moved, c, side.dialect)
        full = (decision.position >= decision.capacity - 1).any(axis=(1, 2))
        in_groups = in_groups | (in_groups.any(axis=1) & full)[:, None]
        moved = grouping.from_groups(in_groups[..., None], padded=padded, shape=both)[..., 0]
        moved = np.logical_or.accumulate(moved, axis=1)
    return moved


# ---- the comparison ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activation:
    """How far two passes are apart at one activation, in units of the first's largest value."""

    name: str
    relative_error: float
    floor: float
    allowed: float

    @property
    def over(self) -> bool:
        """Whether it is more than is allowed."""
        return not self.relative_error <= self.allowed


@dataclass(frozen=True, kw_only=True)
class Functional:
    """What the forward passes say: `holds`, `differs` or `incomplete`, and the numbers.

    first            the first operation at which they part, in the order of the forward pass
    modes            passes by how they were compared: `free`, each with its own decisions; `forced`,
                     the second with the first's, after its own choices differed; `recorded`
    tokens, judged   positions of all rows, and those that no near-tie has left open
    logits           of the passes that are judged
    logits_free      where passes were forced: of the same ones with their own decisions, not judged
    logits_floor     what rounding alone does to the first model
    """

    verdict: str
    findings: tuple[str, ...]
    first: str | None = None
    modes: Mapping[str, int] = field(default_factory=dict)
    tokens: int = 0
    judged: int = 0
    logits: LogitsDifference | None = None
    logits_free: LogitsDifference | None = None
    logits_floor: LogitsDifference | None = None
    logits_allowed: float | None = None
    activations: tuple[Activation, ...] = ()
    routing: tuple[Routing, ...] = ()
    coverage: Coverage | None = None
    probes: tuple[tuple[str, int, int], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it; a number that is not finite is null, and a finding says so."""
        made = {one.name: _plain(getattr(self, one.name)) for one in fields(self)}
        made["coverage"] = None if self.coverage is None else self.coverage.as_dict()
        made["tolerance"] = {"multiple": MULTIPLE, "cast_multiple": CAST_MULTIPLE, "ulps": ULPS}
        return made


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return _plain(asdict(value)) if hasattr(value, "__dataclass_fields__") else value


def prepare(
    a: Side,
    configuration: Configuration,
    *,
    seed: int = SEED,
    budget: int = BUDGET,
) -> tuple[Probe, ...]:
    """Return the rows to compare with: those of `probes`, and random ones until A's experts are reached.

    Errors: UsageError on an unknown implementation, and on weights that do not fit.
    """
    one = _Model.of("A", a, configuration)
    with np.errstate(over="ignore", invalid="ignore"):
        return extend(
            probes(configuration, seed),
            lambda ids: one.run(ids).decisions,
            configuration,
            dialect=a.dialect,
            seed=seed,
            budget=budget,
        )


def compare(
    a: Side,
    b: Side | Recorded,
    configuration: Configuration,
    probes: tuple[Probe, ...] | None = None,
    *,
    cast: str | Mapping[str, str] | None = None,
    same_weights: bool = False,
    seed: int = SEED,
    budget: int = BUDGET,
) -> Functional:
    """Return whether B computes what A does, as far as rounding and a declared cast let it.

    probes        rows of ids; None: those of `prepare`, or those of a recording
    cast          dtype of B's weights, of all or by name, after which they may differ from A's
    same_weights  they are known to be equal, bit by bit or after the cast
    Errors: UsageError on recordings that do not fit the configuration, an unknown implementation.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite becomes a finding
        try:
            if isinstance(b, Recorded):
                for one in b.recordings:
                    _check_recorded(one, configuration)
                recorded = (one.ids.astype(np.int32) for one in b.recordings)
                asked = tuple(Probe(ids, "recorded") for ids in recorded)
            else:
                asked = (
                    prepare(a, configuration, seed=seed, budget=budget)
                    if probes is None
                    else probes
                )
            found = _Comparison(a, b, configuration, asked, cast)
            return found.result(same_weights=same_weights)
        except RefusedError as error:
            return Functional(verdict=DIFFERS, findings=(str(error),))


class _Comparison:
    """All passes of both models, and what they say together."""

    def __init__(
        self,
        a: Side,
        b: Side | Recorded,
        configuration: Configuration,
        asked: tuple[Probe, ...],
        cast: str | Mapping[str, str] | None,
    ) -> None:
        """Run the first model, and it again in other arithmetics."""
        for name, one in (("A", a), ("B", b)):
            if one.dtype not in EPSILON:
                raise UsageError(f"dtype of {name}: must be one of {', '.join(EPSILON)}")
        c, self.configuration, self.asked = configuration, configuration, asked
        self.a, self.b = _Model.of("A", a, c), b
        self.other = None if isinstance(b, Recorded) else _Model.of("B", b, c)
        self.forcible = self.other is not None and all(
            choices(a.dialect)[point] == choices(self.other.side.dialect)[point]
            for point in ("groups", "capacity")
        )
        self.longest = max(one.ids.shape[1] for one in asked)
        self.passes = [self.a.run(one.ids) for one in asked]
        self.order: list[str] = []
        self.floor = self._floor(cast)
        self.meter, self.free, self.apart = _Meter(self.longest), _Meter(self.longest), _Apart()
        self.modes = Counter[str]()
        self.tokens = self.judged = self.at_the_end = 0
        self.layers = {
            layer: _Choices(2 * self.floor.allowed(_probabilities(_router(layer))))
            for layer in self.passes[0].decisions
        }

    def _floor(self, cast: str | Mapping[str, str] | None) -> _Floor:
        """Return what other arithmetics do to A on its own decisions, and what the cast does."""
        c, (arithmetic, of_cast) = self.configuration, (_Apart(), _Apart())
        meters = _Meter(self.longest), _Meter(self.longest)
        # The reference's, whoever runs A: a defect of A's must not widen its own floor.
        reference = replace(self.a, side=replace(self.a.side, implementation="reference"))
        other = reference if cast is None else replace(reference, side=_cast(reference.side, cast))
        dtypes = {self.a.side.dtype: None, self.b.dtype: None}
        for probe, base in zip(self.asked, self.passes, strict=True):
            given: dict[str, Any] = {"decisions": base.decisions}
            wide = reference.run(probe.ids, dtype="float64", **given)
            narrow = [
                base
                if dtype == self.a.side.dtype and self.a.side.implementation == "reference"
                else reference.run(probe.ids, dtype=dtype, **given)
                for dtype in dtypes
            ]
            compared = [(wide, one, arithmetic, meters[0]) for one in narrow]
            if cast is not None:
                compared.append((narrow[0], other.run(probe.ids, **given), of_cast, meters[1]))
            real = real_tokens(probe.ids)
            self.order = list(_with_hidden(wide, c))
            for one, another, apart, _ in compared:
                apart.add(_with_hidden(one, c), _with_hidden(another, c), real)
            for row, at in _blocks(probe.ids.shape, c.vocabulary_size):
                here, places = real[row, at], np.arange(at.start, at.stop)
                for one, another, _, meter in compared:
                    pair = one.logits(row, at)[here], another.logits(row, at)[here]
                    meter.add(*pair, places[here])
        epsilon = max(EPSILON[dtype] for dtype in dtypes)
        return _Floor(arithmetic, of_cast, meters[0].close(), meters[1].close(), epsilon)

    def _ask(self, number: int) -> tuple[_Pass, _Pass | None, Chosen, str]:
        """Return B's pass to compare, its free one where that is another, its choices, the mode."""
        base, ids = self.passes[number], self.asked[number].ids
        if isinstance(self.b, Recorded):
            return _recorded_pass(self.b.recordings[number]), None, {}, "recorded"
        assert self.other is not None
        free = self.other.run(ids)
        real = real_tokens(ids)
        parting = [
            layer
            for layer, (experts, _) in base.chosen.items()
            if (free.chosen[layer][0] != experts)[real].any()
        ]
        if not parting or not self.forcible:
            return free, None, free.chosen, "free"
        # What another choice changes behind it says nothing: B goes on from A's decisions, and is
        # asked what it would have chosen.
        forced = self.other.run(ids, decisions=base.decisions)
        chosen = {
            layer: free.chosen[layer]
            if layer <= parting[0]
            else self.other.decide(layer, forced, base)
            for layer in base.chosen
        }
        return forced, free, chosen, "forced"

    def compare(self, number: int) -> None:
        """Run B on one batch and take in how far it is from A."""
        c, base, ids = self.configuration, self.passes[number], self.asked[number].ids
        found, free, chosen, mode = self._ask(number)
        self.modes[mode] += 1
        real = judged = real_tokens(ids)
        if not self.forcible:
            judged = real & ~_unsettled(base, self.a.side, c, self.floor)
        self.tokens += int(real.sum())
        self.judged += int(judged.sum())
        self.at_the_end += int(judged[:, 3 * self.longest // 4 :].sum())
        self.apart.add(_with_hidden(base, c), found.activations, judged)
        for layer, both in chosen.items():
            logits = base.activations[_router(layer)].astype(np.float64)
            self.layers[layer].add(base.chosen[layer], both, np.exp(_log_softmax(logits)), judged)
        for row, at in _blocks(ids.shape, c.vocabulary_size):
            mine, theirs = base.logits(row, at), found.logits(row, at)
            places, here = np.arange(ids.shape[1]), judged[row, at]
            self.meter.not_finite += int((~_finite(mine, theirs) & real[row, at]).sum())
            self.meter.add(mine[here], theirs[here], places[at][here])
            if free is not None:
                here = real[row, at]
                self.free.add(mine[here], free.logits(row, at)[here], places[at][here])

    def result(self, *, same_weights: bool) -> Functional:
        """Return what all passes say."""
        for number in range(len(self.asked)):
            self.compare(number)
        passes = ((x.ids, y.decisions) for x, y in zip(self.asked, self.passes, strict=True))
        coverage = cover(passes, self.configuration, self.a.side.dialect)
        logits, floor = self.meter.close(), self.floor
        activations = [self._activation(name) for name in self.order if name in self.apart.scales]
        routers = {layer: one.close(layer) for layer, one in self.layers.items() if one.choices}
        differences = _differences(activations, routers)
        if self.meter.not_finite:
            differences["not finite"] = (
                f"the logits of {self.meter.not_finite} of {self.tokens} tokens are no finite numbers"
            )
        if logits is not None and logits.maximum > floor.allowed_logits:
            differences[LOGITS] = (
                f"logits differ by up to {logits.maximum:.3g}, and {floor.allowed_logits:.3g} is "
                f"allowed; the best id is the same at {logits.top[1]:.1%} of {logits.tokens} tokens"
            )
        lacking = coverage.lacking()
        if self.judged < self.tokens and not self.at_the_end:
            lacking.append("no token of the last quarter of a row could be compared")
        first = next(iter(differences), None)
        first = LOGITS if first == "not finite" else first
        findings = [*differences.values(), *self._notes(), *lacking]
        if first is not None and same_weights:
            findings.insert(0, f"the weights are right and the forward differs, first at {first}")
        elif first is not None:
            findings.insert(0, f"the forward passes part first at {first}")
        return Functional(
            verdict=DIFFERS if differences else INCOMPLETE if lacking else HOLDS,
            findings=tuple(findings),
            first=first,
            modes=dict(self.modes),
            tokens=self.tokens,
            judged=self.judged,
            logits=logits,
            logits_free=self.free.close(),
            logits_floor=floor.logits,
            logits_allowed=floor.allowed_logits,
            activations=tuple(activations),
            routing=tuple(routers.values()),
            coverage=coverage,
            probes=tuple((one.what, len(one.ids), one.ids.shape[1]) for one in self.asked),
        )

    def _activation(self, name: str) -> Activation:
        scale = self.apart.scales[name] or 1.0
        numbers = self.apart.differences[name], self.floor.of(name), self.floor.allowed(name)
        return Activation(name, *(number / scale for number in numbers))

    def _notes(self) -> list[str]:
        """Return what a reader has to know of how it was compared."""
        notes = []
        if self.judged < self.tokens:
            notes.append(
                f"{self.judged} of {self.tokens} tokens are compared: behind near-ties of A's "
                "routers, where rounding may choose another expert, other numbers are right too"
            )
        if self.modes["forced"]:
            notes.append(
                f"on {self.modes['forced']} of {len(self.asked)} batches B chose other experts and "
                "was run again with A's decisions: activations and logits are those of that pass"
            )
        return notes


Chosen = Mapping[int, tuple[ndarray, ndarray]]
"""By sparse layer: experts [B, L, K] and which choices are kept."""


def _cast(side: Side, cast: str | Mapping[str, str]) -> Side:
    """Return a side whose weights went through a cast, and are float32 again."""
    to = cast if isinstance(cast, Mapping) else dict.fromkeys(side.weights, cast)
    weights = {
        name: digests.cast(value, to.get(name, "float32")).astype(np.float32)
        for name, value in side.weights.items()
    }
    return replace(side, weights=weights)


def _differences(activations: list[Activation], routers: Mapping[int, Routing]) -> dict[str, str]:
    """Return a line by operation that is over its tolerance, in the order of the forward pass.

    Of activations the first alone: what is behind it differs because of it, as a rule.
    """
    lines: dict[str, str] = {}
    over = [one for one in activations if one.over]
    for one in activations:
        if over and one is over[0]:
            much = f"differs by {one.relative_error:.3g} of its largest value"
            much = much if math.isfinite(one.relative_error) else "holds values that are not finite"
            later = f"; {len(over) - 1} behind it do too" if over[1:] else ""
            lines[one.name] = f"{one.name} {much}, more than the {one.allowed:.3g} allowed{later}"
        match = re.fullmatch(rf"decoder/layers_(\d+)/mlp{ROUTER}", one.name)
        router = routers.get(int(match[1])) if match else None
        if router is None:
            continue
        name = one.name.removesuffix("/router_weights")
        if router.forbidden:
            lines[name] = (
                f"layer {router.layer}: {router.forbidden} of {router.choices} choices are of "
                "another expert, and the two are further apart than rounding explains"
            )
        elif router.kept_apart:
            lines[name] = (
                f"layer {router.layer}: {router.kept_apart} of {router.choices} choices are kept "
                "by one model and dropped by the other"
            )
    return lines
