"""The shape checks of `conftest.py` are at work in the tests of this folder."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import SimpleNamespace

import numpy as np
import pytest
from jaxtyping import TypeCheckError

import openmoe_reference
from openmoe_reference import dtypes, grouping, routing

MODULES = [
    importlib.import_module(f"openmoe_reference.{found.name}")
    for found in pkgutil.iter_modules(openmoe_reference.__path__)
]
FUNCTIONS = {
    f"{module.__name__}.{name}": function
    for module in MODULES
    for name, function in vars(module).items()
    if inspect.isfunction(function) and function.__module__.startswith("openmoe_reference")
}
"""The functions of every module, those that it imports from another one included."""


def test_a_wrong_dtype_is_seen():
    values = np.zeros((2, 3), np.float32)
    assert routing._largest(values, 1)[1].tolist() == [[0], [0]]
    with pytest.raises(TypeCheckError, match="values"):
        routing._largest(values.astype(np.float64), 1)


def test_a_letter_with_two_sizes_is_seen():
    x, w = np.ones((1, 2, 3), np.float32), np.ones((1, 3, 4), np.float32)
    assert dtypes.matmul(x, w, np.float32).shape == (1, 2, 4)
    with pytest.raises(TypeCheckError, match="parameter 'w'"):
        dtypes.matmul(x, np.ones((1, 2, 4), np.float32), np.float32)


def test_a_wrong_result_is_seen(monkeypatch):
    logits = np.zeros((1, 2, 3), np.float32)
    assert routing.softmax(logits).shape == (1, 2, 3)
    monkeypatch.setattr(routing, "check_array", lambda *_: None)
    monkeypatch.setattr(routing, "_flushed", lambda values: values)
    monkeypatch.setattr(routing, "np", SimpleNamespace(exp=lambda _: np.ones((2, 2, 3))))
    with pytest.raises(TypeCheckError, match="return value"):
        routing.softmax(logits)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_of_the_reference_is_checked(name):
    assert "jaxtyped" in FUNCTIONS[name].__code__.co_qualname


def test_an_int_counts_as_a_float():
    factor = grouping.capacity_factor(
        training=True, train_capacity_factor=2, eval_capacity_factor=3
    )
    assert factor == 2
    with pytest.raises(TypeCheckError, match="train_capacity_factor"):
        grouping.capacity_factor(training=True, train_capacity_factor="2", eval_capacity_factor=3)
