"""SentencePiece model files, read without that package: is one whole, how many pieces has it.

Such a file is a protocol buffer: its pieces, each a field 1, then how it was trained (2) and how
text is normalised (3).
"""

from __future__ import annotations

from collections import Counter

_PIECE, _PARTS = 1, (1, 2, 3)
_NUMBER, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
"""Bytes of fields of a fixed size, by wire type."""


def num_pieces(content: bytes) -> int:
    """Return how many pieces a model has. Errors: ValueError when the file is not whole."""
    fields: Counter[int] = Counter()
    place = 0
    while place < len(content):
        key, place = _number(content, place)
        field, wire = key >> 3, key & 7
        if wire == _NUMBER:
            _, place = _number(content, place)
        elif wire == _BYTES:
            size, place = _number(content, place)
            place += size
        elif wire in _FIXED:
            place += _FIXED[wire]
        else:
            raise ValueError(f"byte {place} belongs to no field")
        fields[field] += 1
    if place > len(content) or not all(fields[part] for part in _PARTS):
        raise ValueError("it ends too soon")
    return fields[_PIECE]


def _number(content: bytes, place: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and the place behind it."""
    number = shift = 0
    for byte in content[place : place + 10]:
        place += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, place
    raise ValueError("it ends within a number")
