"""The model's benchmark: its bound is the model's own products, its page has every table."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from openmoe_production import bench_bound, bench_model, initialisation, model
from openmoe_spec.config import BASE
from openmoe_spec.parameters import parameters as tree

SIZE = bench_model.Size(head_width=2, layers=8, vocabulary=64, rows=2, length=24)
C = bench_model.shrunk(SIZE)


def test_the_model_has_the_proportions_of_base():
    c = bench_model.shrunk(bench_model.Size(64, 12, 256_384, 1, 2048))
    assert c == replace(BASE, name="shrunk")


def multiplications(jaxpr, times=1):
    """Yield the multiplications of every matrix product of a program, inner programs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left = equation.invars[0].aval.shape
            contracted = equation.params["dimension_numbers"][0][0]
            inner = math.prod(left[axis] for axis in contracted)
            yield times * inner * math.prod(equation.outvars[0].aval.shape)
        again = times * equation.params.get("length", 1)  # of a scan
        for value in equation.params.values():
            for one in value if isinstance(value, tuple | list) else (value,):
                program = getattr(one, "jaxpr", one)
                if hasattr(program, "eqns"):
                    yield from multiplications(program, again)


def of_product(product):
    letters = product.form.partition("->")[0].replace(",", "")
    return math.prod(dict(zip(letters, product.left + product.right, strict=True)).values())


def ones(configuration, _):
    """Return weights without drawing them, which takes longer than the tests."""
    return {one.name: np.ones(one.shape, np.float32) for one in tree(configuration)}


@pytest.fixture(autouse=True)
def parameters(monkeypatch):
    monkeypatch.setattr(initialisation, "initialise", ones)
    return ones(C, None)


def test_the_bound_of_a_forward_pass_is_all_of_its_products(parameters):
    traced = jax.make_jaxpr(lambda p, b: model.forward(p, b, C).logits)(
        parameters, bench_model.batch_of(SIZE)
    )
    wanted = bench_bound.products(C, 2, 24, 24, training=False, dtype="float32")
    assert sorted(map(of_product, wanted)) == sorted(multiplications(traced.jaxpr))


def test_the_bound_of_gradients_has_two_more_products_for_each(parameters):
    def loss(values, batch):
        return model.loss_fn(values, batch, C, training=True)[0]

    traced = jax.make_jaxpr(jax.grad(loss))(parameters, bench_model.batch_of(SIZE))
    wanted = tuple(bench_bound.products(C, 2, 24, 24, training=True, dtype="float32"))
    # A gate's gradient is an inner product of two vectors of width D: no matrix product.
    gates = C.num_moe_layers * C.num_selected_experts * 2 * 24 * C.embed_dim
    assert sum(multiplications(traced.jaxpr)) == 3 * sum(map(of_product, wanted)) + gates
    given = bench_bound.operands(wanted)
    backward = jax.make_jaxpr(lambda g: bench_bound.bound(g, wanted, "gradients"))(given)
    assert sum(multiplications(backward.jaxpr)) == 3 * sum(map(of_product, wanted))


def test_a_step_and_its_bound_run():
    rows = bench_model.step_rows(SIZE._replace(layers=4), (6, 3), (2,), 1)
    assert [row[:2] for row in rows] == [["2", "3"], ["2", "6"]]
    assert rows[0][-1] == ""
    assert rows[1][-1].startswith("<= 2.00: ")


def test_a_forward_pass_and_its_bound_run():
    made = bench_model.programs(SIZE._replace(layers=4, length=8), "forward", "bfloat16")
    shapes = {name: run(*given) for name, (run, given) in made.items()}
    assert shapes["apart"].shape == shapes["scan"].shape == (2, 8, 64)
    assert shapes["bound"][-1].shape == (16, 64)


class Planned:
    """Stands for a compiled program: it was traced, and does nothing."""

    temp_size_in_bytes = 5_000_000

    def __init__(self, function, *operands, **_):
        jax.eval_shape(function, *operands)
        # A step hands its cache on.
        self.result = operands[-1], 0

    def __call__(self, *_):
        return self.result

    def memory_analysis(self):
        return self


def test_the_page_has_every_program(monkeypatch, capsys, tables):
    monkeypatch.setattr(bench_model, "compiled", Planned)
    text = bench_model.section(SIZE._replace(layers=4), (3, 6), (1, 2), rounds=1, step_rounds=1)
    passes, steps = tables(text)
    every = ["bound", "apart", "scan", "apart, remat", "scan, remat", "train step"]
    gradients = {"float32": every, "bfloat16": ["bound", "apart", "train step"]}
    wanted = []
    for dtype in bench_model.DTYPES_TIMED:
        wanted += [(dtype, "forward", name) for name in ("bound", "apart", "scan")]
        wanted += [(dtype, "gradients", name) for name in gradients[dtype]]
    found = [(row["dtype"], row["pass"], row["program"]) for row in passes]
    assert sorted(found) == sorted(wanted)
    assert all(all(row.values()) for row in passes)
    assert {row["temporary MB"] for row in passes} == {"5"}
    assert [(row["B"], row["L"]) for row in steps] == [
        ("1", "3"),
        ("1", "6"),
        ("2", "3"),
        ("2", "6"),
    ]
    assert [bool(row["growth"]) for row in steps] == [False, True, False, True]
    assert f"{C.embed_dim}" in text
    assert "decoding, B = 2, L = 6" in capsys.readouterr().err
