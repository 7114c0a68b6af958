"""Planted bugs of SPEC.md "Checkpoints"."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import checkpoints
from openmoe_spec import layouts


@mutant("CKPT-01")
class ValuesAlone(ReferenceAdapter):
    """A digest of the bytes, whatever their shape and dtype."""

    def tensor_digest(self, tensor: ndarray) -> str:
        return hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest()


@mutant("CKPT-01")
class OrderOfMemory(ReferenceAdapter):
    """The bytes are taken as they lie, columns first where they lie so."""

    def tensor_digest(self, tensor: ndarray) -> str:
        line = f"{tensor.dtype.name}[{','.join(map(str, tensor.shape))}]\n"
        return hashlib.sha256(line.encode() + tensor.tobytes("A")).hexdigest()


@mutant("CKPT-01")
class BytesOfTheMachineThatWrote(ReferenceAdapter):
    """Big-endian values are digested as they are."""

    def tensor_digest(self, tensor: ndarray) -> str:
        line = f"{tensor.dtype.name}[{','.join(map(str, tensor.shape))}]\n"
        return hashlib.sha256(line.encode() + np.ascontiguousarray(tensor).tobytes()).hexdigest()


@mutant("CKPT-01")
class ShapeAsATuple(ReferenceAdapter):
    """The line is Python's own text of a shape, with blanks."""

    def tensor_digest(self, tensor: ndarray) -> str:
        line = f"{tensor.dtype.name}{list(tensor.shape)}\n"
        values = np.ascontiguousarray(tensor)
        little = (
            values.astype(values.dtype.newbyteorder("<"))
            if values.dtype.byteorder == ">"
            else values
        )
        return hashlib.sha256(line.encode() + little.tobytes()).hexdigest()


@mutant("CKPT-02")
class OrderOfTheMapping(ReferenceAdapter):
    """Leaves come as the tensors were given."""

    def model_digest(self, digests: Mapping[str, str]) -> str:
        return checkpoints._root(  # noqa: SLF001 - the tree is right, its leaves are not
            [f"{name} {one}\n".encode() for name, one in digests.items()]
        ).hex()


def _paired(level: list[bytes], *, odd: bool, node: bytes) -> bytes:
    while len(level) > 1:
        if odd and len(level) % 2:
            level = [*level, level[-1]]
        level = [
            hashlib.sha256(node + b"".join(level[i : i + 2])).digest()
            if len(level[i : i + 2]) > 1
            else level[i]
            for i in range(0, len(level), 2)
        ]
    return level[0]


def _lines(digests: Mapping[str, str]) -> list[bytes]:
    return [f"{name} {digests[name]}\n".encode() for name in sorted(digests, key=str.encode)]


@mutant("CKPT-02")
class LastLeafTwice(ReferenceAdapter):
    """An odd leaf is paired with itself."""

    def model_digest(self, digests: Mapping[str, str]) -> str:
        leaves = [hashlib.sha256(b"\x00" + line).digest() for line in _lines(digests)]
        return _paired(leaves, odd=True, node=b"\x01").hex()


@mutant("CKPT-02")
class LeavesLookLikeNodes(ReferenceAdapter):
    """No byte tells a leaf from an inner node."""

    def model_digest(self, digests: Mapping[str, str]) -> str:
        leaves = [hashlib.sha256(line).digest() for line in _lines(digests)]
        return _paired(leaves, odd=False, node=b"").hex()


@mutant("CKPT-03")
class LastBitsCutOff(ReferenceAdapter):
    """The last 16 bits are dropped."""

    def round_to_bfloat16(self, tensor: ndarray) -> ndarray:
        bits = np.ascontiguousarray(tensor, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        return np.where(np.isnan(tensor), np.nan, bits.view(np.float32)).astype(np.float32)


@mutant("CKPT-03")
class TiesUp(ReferenceAdapter):
    """A tie goes away from zero."""

    def round_to_bfloat16(self, tensor: ndarray) -> ndarray:
        bits = np.ascontiguousarray(tensor, np.float32).view(np.uint32)
        up = (bits.astype(np.uint64) + 0x8000).astype(np.uint32) & np.uint32(0xFFFF0000)
        return np.where(np.isnan(tensor), np.nan, up.view(np.float32)).astype(np.float32)


@mutant("CKPT-03")
class NotANumberBecomesInfinite(ReferenceAdapter):
    """Rounding carries a NaN of few bits into infinity."""

    def round_to_bfloat16(self, tensor: ndarray) -> ndarray:
        bits = np.ascontiguousarray(tensor, np.float32).view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        return rounded.astype(np.uint32).view(np.float32)


Tree = Mapping[str, ndarray]


@mutant("CKPT-04")
class ExpertsAsTheFirstPortHasThem(ReferenceAdapter):
    """Each expert's matrices stand apart, and are not transposed."""

    def per_expert_parameters(self, parameters: Tree) -> dict[str, ndarray]:
        found = super().per_expert_parameters(parameters)
        return {n: v.T if ".experts." in n else v for n, v in found.items()}


@mutant("CKPT-04")
class RouterKeepsItsName(ReferenceAdapter):
    """The router is called as in the first port."""

    def per_expert_parameters(self, parameters: Tree) -> dict[str, ndarray]:
        found = super().per_expert_parameters(parameters)
        return {n.replace("mlp.gate.weight", "mlp.gate_weight"): v for n, v in found.items()}


@mutant("CKPT-04")
class OthersAreLeftOut(ReferenceAdapter):
    """Tensors without a counterpart are left out in silence."""

    def per_expert_parameters(self, parameters: Tree) -> dict[str, ndarray]:
        known = {name: one for name, one in parameters.items() if layouts.port_name(name)}
        return super().per_expert_parameters(known)
