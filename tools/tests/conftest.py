"""What the tests of several commands share: the command line in this process, and JSON schemas.

Modules that several tests of this folder share are found beside them.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from openmoe_tools import command_line

sys.path.append(str(Path(__file__).parent))

if importlib.util.find_spec("jax") is not None:
    import jax

    jax.config.update("jax_num_cpu_devices", 8)  # before anything is computed: meshes have eight


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

    def call(*arguments, words, code=3):
        found = run(*arguments)
        assert found.code == code, found
        assert found.stdout == ""
        assert len(found.stderr.splitlines()) == 1, found.stderr
        assert found.stderr.startswith("openmoe: ")
        for word in words:
            assert word in found.stderr

    return call


TINY = {
    "num_layers = 6": "num_layers = 2",
    "num_moe_layers = 3": "num_moe_layers = 1",
    "embed_dim = 128": "embed_dim = 32",
    "head_dim = 32": "head_dim = 8",
    "mlp_dim = 256": "mlp_dim = 32",
    "vocabulary_size = 8320": "vocabulary_size = 2400",
    "inputs_length = 128": "inputs_length = 32",
    "targets_length = 128": "targets_length = 32",
    "targets_length = 256": "targets_length = 64",
    "early = [1, 2, 5, 10, 20, 50, 100]": "early = [1]",
}
"""What makes a run of the preset `small` one of seconds."""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with the preset `small` for a little text, made as `openmoe prepare` does."""
    from openmoe_tools.runs import preparing

    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(preparing, "PIECES", 2000)
        request = preparing.Request("small", folder, (), 0.4, None)
        assert preparing.prepare(request) == 0
    return folder


@pytest.fixture(scope="session")
def tiny_run(prepared):
    """`write_tiny` for the prepared text."""
    return partial(write_tiny, prepared)


def write_tiny(prepared, *, steps, every):
    """Write settings of so many steps, half of each stage, beside the text; return their file."""
    text = (prepared / "run.toml").read_text(encoding="utf-8")
    more = {
        "steps = 700": f"steps = {steps // 2}",
        "steps = 500": f"steps = {steps - steps // 2}",
        "every = 200": f"every = {every}",
    }
    for old, new in (TINY | more).items():
        assert old in text, old
        text = text.replace(old, new)
    path = prepared / f"run_{zlib.crc32(text.encode())}.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(prepared, tiny_run, tmp_path_factory):
    """A folder with a tiny run that has ended: 6 steps of ul2, 6 of full_lm, saved at 1, 4, 8, 12."""
    from openmoe_tools.runs import training

    config = tiny_run(steps=12, every=4)
    folder = tmp_path_factory.mktemp("trained")
    for name in ("tokenizer.model", "train.jsonl", "held_out.jsonl"):
        shutil.copyfile(prepared / name, folder / name)
    shutil.copyfile(config, folder / "run.toml")
    asked = training.devices.Devices()
    request = training.Request(folder / "run.toml", None, asked, folder / "report.json")
    assert training.train(request) == 0
    return folder


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
        of_objects = {"required", "properties", "additionalProperties"}
        passed = NOTES | (set() if isinstance(value, dict) else of_objects)
        passed |= set() if isinstance(value, list) else {"items"}
        return all(keywords[name](rule) for name, rule in schema.items() if name not in passed)

    return lambda value, schema: obeys(value, schema, schema)
