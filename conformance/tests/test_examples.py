"""The examples work as a new user would run them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from openmoe_conformance import runner, vector_sets
from openmoe_conformance.outcome import Outcome, exit_code
from openmoe_conformance.profile import PROFILES
from openmoe_conformance.subject import Subject

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.Adapter()


def run(adapter):
    options = runner.Options("", profile=PROFILES["quick"], vectors=vector_sets.built_in())
    results, planned = runner.run(options, Subject(adapter))
    wrong = [(r.item, r.message) for r in results if r.outcome in (Outcome.FAIL, Outcome.ERROR)]
    assert not wrong
    assert exit_code(results, planned) == 0
    return {r.clause for r in results if r.outcome is Outcome.PASS}


def test_the_numpy_router_conforms_in_what_it_offers():
    executed = run(load("numpy_router"))
    assert {"ROUTE-04", "ROUTE-07", "ROUTE-09", "ROUTE-18", "ROUTE-20", "GROUP-06"} <= executed
    assert not executed & {"MOE-07", "LOSS-01", "ROUTE-12"}


def test_the_data_side_alone_conforms_in_what_it_offers():
    executed = run(load("ul2_spans"))
    assert {"OBJ-02", "OBJ-03", "OBJ-07", "OBJ-09", "BATCH-01", "BATCH-08"} <= executed
    assert not executed & {"OBJ-10", "OBJ-14", "BATCH-06", "ROUTE-04"}


def test_the_torch_layer_conforms_in_what_it_offers():
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    executed = run(load("torch_layer"))
    assert {"ROUTE-18", "ROUTE-19", "MOE-07", "MOE-09", "LOSS-06"} <= executed
