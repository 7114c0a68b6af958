"""What the tests of several commands share: the command line in this process, and JSON schemas."""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest

from openmoe_tools import command_line


class Found(NamedTuple):
    """What a command returned and printed."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `openmoe` with arguments as its console script does, in this process."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["openmoe", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            command_line.main()
        return Found(exited.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def complains(run):
    """Run `openmoe` and check that it refuses in one line that has all the words."""

    def call(*arguments, words):
        found = run(*arguments)
        assert found.code == 3, found
        assert found.stdout == ""
        assert len(found.stderr.splitlines()) == 1, found.stderr
        assert found.stderr.startswith("openmoe: ")
        for word in words:
            assert word in found.stderr

    return call


TYPES = {
    "null": type(None),
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "string": str,
    "array": list,
    "object": dict,
}
NOTES = {"$schema", "$defs", "title", "description"}


def _is(value, name):
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _named(rule):
    return [rule] if isinstance(rule, str) else rule


def _others(value, schema):
    return [one for name, one in value.items() if name not in schema.get("properties", {})]


@pytest.fixture
def valid():
    """Return whether a value obeys a schema; every keyword that the schemas use is known here."""

    def obeys(value, schema, root):
        keywords = {
            "$ref": lambda rule: obeys(value, root["$defs"][rule.rpartition("/")[2]], root),
            "type": lambda rule: any(_is(value, name) for name in _named(rule)),
            "enum": lambda rule: value in rule,
            "required": lambda rule: set(rule) <= set(value),
            "properties": lambda rule: all(
                obeys(value[name], one, root) for name, one in rule.items() if name in value
            ),
            "additionalProperties": lambda rule: all(
                rule is not False and obeys(one, rule, root) for one in _others(value, schema)
            ),
            "items": lambda rule: all(obeys(one, rule, root) for one in value),
        }
        return all(keywords[name](rule) for name, rule in schema.items() if name not in NOTES)

    return lambda value, schema: obeys(value, schema, schema)
