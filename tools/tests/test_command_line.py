"""The command line as a user meets it: exit codes, one line for a mistake, files written whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from openmoe_conformance import vector_sets
from openmoe_spec import SPEC_VERSION
from openmoe_tools import conforming

OPENMOE = Path(sys.executable).with_name("openmoe")
REFERENCE = ("--implementation", "reference", "--profile", "quick", "--jobs", "1")


def openmoe(*arguments, cwd, environment=None):
    return subprocess.run(
        [OPENMOE, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", **(environment or {})},
        check=False,
    )


def assert_one_line(found, *words):
    assert found.returncode == 3, found.stderr
    assert "Traceback" not in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1, found.stderr
    assert found.stderr.startswith("openmoe: ")
    for word in words:
        assert word in found.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("conform", "--profile", "thorough"),
            ("--profile thorough", "quick, standard, exhaustive"),
        ),
        (("conform", "--clause", "ROUTE-99"), ("ROUTE-99", "no such clause")),
        (("conform", "--no-such-option"), ("--no-such-option",)),
        (("conform", "-i", "nothing"), ("nothing", "package.module:Adapter")),
        (("conform", "-i", "no_such_module:A"), ("no_such_module",)),
        (("conform", "-i", "json:dumps"), ("offers none of",)),
        (("conform", "-i", "reference", "--vectors", "nowhere"), ("nowhere", "no such folder")),
        (("conform", "-i", "reference", "--json", "no/where.json"), ("no/where.json", "folder")),
        (("conform", "-i", "reference", "--expected-failures", "no.txt"), ("no.txt",)),
        (("conform", "-i", "reference", "--seed", "x"), ("seed",)),
        (("conform", "-i", "reference", "--seed", "-1"), ("seed",)),
        (("conform", "-i", "reference", "--jobs", "-1"), ("jobs",)),
        (("conform", "-i", "reference", "--json", "."), ("folder",)),
        (("conform", "-i", "reference", "--json", ""), ("folder",)),
        (("conform", "-i", "reference", "--json", "a", "--html", "a"), ("one file",)),
        (("conform", "-i", "reference", "--clause", "JUDGE-01"), ("informative",)),
        (("conform", "-i", "mine.py:A"), ("without .py",)),
        (("conform", "--mutants", "-i", "reference"), ("--mutants",)),
        (("conform", "--mutants", "--clause", "ROUTE-07"), ("--mutants",)),
        (("replay", "nowhere.npz", "--json", "."), ("folder",)),
        (("vectors", "list", "--json", "."), ("folder",)),
        (("replay", "nowhere.npz", "-i", "reference"), ("nowhere.npz",)),
        (("vectors", "list", "nowhere"), ("nowhere",)),
        (("vectors", "import", "nowhere", "here"), ("nowhere",)),
        (("vectors", "export", "no/where"), ("no such folder",)),
        (("bench", "--rounds", "0"), ("rounds",)),
        (("nonsense",), ("nonsense",)),
        ((), ("--help",)),
        (("vectors",), ("--help",)),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_exit_code_3(tmp_path, arguments, words):
    assert_one_line(openmoe(*arguments, cwd=tmp_path), *words)
    assert not list(tmp_path.iterdir())


def test_help_names_every_command(tmp_path):
    found = openmoe("--help", cwd=tmp_path)
    assert found.returncode == 0
    for command in ("conform", "replay", "vectors", "bench", "version"):
        assert command in found.stdout
    assert "0 holds, 1 does not hold, 2 incomplete" in " ".join(found.stdout.split())


def test_version(tmp_path):
    found = openmoe("version", cwd=tmp_path)
    assert found.returncode == 0
    assert f"specification {SPEC_VERSION}" in found.stdout


def test_a_run_that_holds_writes_all_three_reports(tmp_path):
    files = ("--json", "r.json", "--junit", "r.xml", "--html", "r.html")
    clauses = ("--clause", "ROUTE-04", "--clause", "GROUP-06")
    found = openmoe("conform", *REFERENCE, *clauses, *files, cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "HOLDS: openmoe_reference" in found.stdout
    assert "Ledger: " in found.stdout
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert report["schema"] == "openmoe-conformance-report/1"
    assert report["verdict"]["exit_code"] == 0
    assert {r["clause"] for r in report["results"]} == {"ROUTE-04", "GROUP-06"}
    ET.parse(tmp_path / "r.xml")  # noqa: S314 - written a moment ago by this project
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not list(tmp_path.glob("*.part"))


def test_a_run_that_does_not_hold_saves_a_failure_that_replays(tmp_path):
    mutant = "openmoe_conformance.mutants.routing:DropsAboveTheCapacity"
    found = openmoe(
        *("conform", "-i", mutant, "--profile", "quick", "--jobs", "1", "--clause", "ROUTE-09"),
        cwd=tmp_path,
    )
    assert found.returncode == 1
    assert "DOES NOT HOLD" in found.stdout
    assert "A choice MUST be kept exactly when" in found.stdout
    line = next(line for line in found.stdout.splitlines() if "openmoe replay" in line)
    again = openmoe(*line.split()[1:], cwd=tmp_path)
    assert again.returncode == 1
    saved = line.split()[2]
    assert openmoe("replay", saved, "-i", "reference", cwd=tmp_path).returncode == 0


def test_expected_failures_turn_a_known_defect_into_exit_code_0(tmp_path):
    mutant = "openmoe_conformance.mutants.grouping:CapacityHalvesGoUp"
    (tmp_path / "known.txt").write_text("GROUP-06  https://issues.example/1  # halves\n")
    arguments = (
        "conform",
        "-i",
        mutant,
        "--profile",
        "quick",
        "--jobs",
        "1",
        "--clause",
        "GROUP-06",
    )
    assert openmoe(*arguments, cwd=tmp_path).returncode == 1
    listed = openmoe(*arguments, "--expected-failures", "known.txt", cwd=tmp_path)
    assert listed.returncode == 0, listed.stdout
    assert "https://issues.example/1" in listed.stdout
    stale = openmoe(
        "conform",
        *REFERENCE,
        "--clause",
        "GROUP-06",
        "--expected-failures",
        "known.txt",
        cwd=tmp_path,
    )
    assert stale.returncode == 1
    assert "UNEXPECTED PASS" in stale.stdout


def test_a_line_that_matches_nothing_is_bad_usage(tmp_path):
    (tmp_path / "known.txt").write_text("check:moe.ghost  https://issues.example/1\n")
    found = openmoe(
        *("conform", *REFERENCE, "--clause", "GROUP-06", "--expected-failures", "known.txt"),
        cwd=tmp_path,
    )
    assert found.returncode == 3
    assert "known.txt:1: check:moe.ghost matches nothing" in found.stderr
    assert "HOLDS" in found.stdout  # the report comes all the same


def test_vectors_can_be_exported_listed_and_run(tmp_path):
    assert openmoe("vectors", "export", "own", cwd=tmp_path).returncode == 0
    listed = openmoe("vectors", "list", "own", "--json", "own.json", cwd=tmp_path)
    assert listed.returncode == 0
    rows = json.loads((tmp_path / "own.json").read_text(encoding="utf-8"))
    assert len(rows) == len(vector_sets.open_set(vector_sets.built_in())) > 300
    run = openmoe("conform", *REFERENCE, "--vectors", "own/grouping", cwd=tmp_path)
    assert run.returncode == 0
    assert_one_line(openmoe("vectors", "export", "own", cwd=tmp_path), "exists already")


def test_a_broken_vector_file_is_named_and_the_exit_code_is_2(tmp_path):
    openmoe("vectors", "export", "own", cwd=tmp_path)
    path = tmp_path / "own/routing/router_scatter.npz"
    path.write_bytes(path.read_bytes()[:1000])
    run = openmoe("conform", *REFERENCE, "--vectors", "own/routing", cwd=tmp_path)
    assert run.returncode == 2
    assert "router_scatter.npz, case scatter_" in run.stdout
    assert "INCOMPLETE" in run.stdout


ADAPTER = """
import numpy as np

class Adapter:
    name = "mine"

    def expert_capacity(self, tokens_per_group, *, num_experts, capacity_factor):
        return max(int(capacity_factor * tokens_per_group / num_experts), 4)
"""


def test_an_adapter_in_the_current_folder_is_found(tmp_path):
    (tmp_path / "mine.py").write_text(ADAPTER, encoding="utf-8")
    found = openmoe(
        *("conform", "-i", "mine:Adapter", "--profile", "quick", "--no-real-input"), cwd=tmp_path
    )
    assert found.returncode == 1
    assert "clauses GROUP-06" in found.stdout
    assert "skipped" in found.stdout


@pytest.mark.parametrize("statement", ["sys.exit(0)", "os._exit(0)"])
def test_an_adapter_that_ends_the_process_is_never_green(tmp_path, statement):
    text = ADAPTER.replace("        return max", f"        {statement}\n        return max")
    (tmp_path / "mine.py").write_text("import os, sys\n" + text, encoding="utf-8")
    found = openmoe(
        *("conform", "-i", "mine:Adapter", "--profile", "quick", "--no-real-input"),
        *("--jobs", "1", "--clause", "GROUP-06"),
        cwd=tmp_path,
    )
    assert found.returncode == 1
    assert "DOES NOT HOLD" in found.stdout


def test_a_module_that_exits_while_it_is_imported_is_bad_usage(tmp_path):
    (tmp_path / "mine.py").write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    assert_one_line(
        openmoe("conform", "-i", "mine:Adapter", cwd=tmp_path), "SystemExit", "mine.py:2"
    )


WITHOUT_JAX = """
import sys
for name in ("jax", "jaxlib", "torch", "tensorflow"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv.pop(1))
from openmoe_tools.command_line import main
main()
"""


def test_the_kit_runs_an_adapter_where_jax_is_not_installed(tmp_path):
    examples = Path(__file__).parents[2] / "conformance/examples"
    arguments = ("conform", "-i", "numpy_router:Adapter", "--profile", "quick", "--no-real-input")
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, examples, *arguments, "--jobs", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "HOLDS" in found.stdout


def test_production_without_jax_is_one_line_that_names_the_extra(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, str(tmp_path), "conform"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert_one_line(found, "JAX", "openmoe-spec[production]")


def test_the_real_input_pass_without_sentencepiece_is_skipped_with_its_reason(monkeypatch, capsys):
    from openmoe_tools.data import tokenizer

    def missing(*_):
        raise tokenizer.MissingExtraError("the package sentencepiece is missing")

    monkeypatch.setattr(tokenizer, "real_token_ids", missing)
    request = conforming.Request(
        implementation="reference",
        profile="quick",
        vectors=None,
        clauses=("ROUTE-19", "ROUTE-10"),
        real_input=True,
        expected_failures=None,
        failures=None,
        json=None,
        junit=None,
        html=None,
        seed=1,
        jobs=1,
    )
    assert conforming.conform(request) == 0
    shown = capsys.readouterr().out
    assert "skipped 4: the package sentencepiece is missing" in shown
    assert "balanced" in shown
