"""What is read from compiled programs is what stands in them, and the layer does no work twice on a mesh."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from openmoe_production import bench_accelerator, bench_loss, bench_mesh, compiled_programs
from openmoe_production.bench_mesh import Size
from openmoe_production.sharding import make_mesh

TINY = Size(groups=8, tokens=24, width=8, hidden=16, experts=8, capacity=5)


def read(function, *shapes):
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return compiled_programs.read(jax.jit(function).lower(*given).compile().as_text())


def test_products_are_counted_in_batches_loops_and_functions():
    assert read(jnp.matmul, (5, 7), (7, 3)).flops == 2 * 5 * 7 * 3
    batched = partial(jnp.einsum, "bij,bkj->bik")
    assert read(batched, (4, 5, 7), (4, 3, 7)).flops == 2 * 4 * 5 * 7 * 3

    def loop(x, w):
        return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=6)[0]

    assert read(loop, (5, 64), (64, 64)).flops == 6 * 2 * 5 * 64 * 64


def test_what_devices_send_is_counted_by_its_results():
    mesh = make_mesh(1, 8, 1)
    spread = partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec("expert"))

    def exchange(x):
        return lax.all_to_all(x, "expert", 1, 0, tiled=True)

    found = read(spread(exchange, out_specs=PartitionSpec("expert")), (64, 16))
    assert found.bytes["all-to-all"] == 4 * 8 * 16

    def gather(x):
        return lax.all_gather(x, "expert", axis=0, tiled=True, to="invarying")

    found = read(spread(gather, out_specs=PartitionSpec()), (64, 16))
    assert found.bytes == {"all-gather": 4 * 64 * 16}
    assert found.gathered == {(64, 16)}


def test_scatters_of_numbers_are_told_from_those_of_indices():
    def scatter(x, at):
        return jnp.zeros(9, x.dtype).at[at].add(x, mode="drop")

    def lowered(dtype):
        at = jax.ShapeDtypeStruct((4,), jnp.int32)
        return jax.jit(scatter).lower(jax.ShapeDtypeStruct((4,), dtype), at).as_text()

    assert compiled_programs.float_scatters(lowered(jnp.float32)) == 1
    assert compiled_programs.float_scatters(lowered(jnp.bfloat16)) == 1
    assert compiled_programs.float_scatters(lowered(jnp.int32)) == 0


@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 8, 1), (2, 4, 1), (2, 2, 2)], ids=str)
def test_no_expert_works_twice_and_none_is_gathered(mesh):
    row = bench_mesh.row(TINY, mesh)
    found = dict(zip(bench_mesh.HEAD, row, strict=True))
    router = 1 + 3 * 2 * 8 * 24 * 8 * 8 * (mesh[2] - 1) / bench_mesh.arithmetic(TINY)
    assert float(found["FLOPs to arithmetic"]) == pytest.approx(router, abs=6e-4)
    assert found["to arithmetic"] == ("1.00" if mesh[1] > 1 else "-")
    assert (found["expert weights gathered"], found["float scatters"]) == ("no", "0")


def test_the_loss_in_chunks_is_set_beside_the_plain_one(tables):
    (rows,) = tables(bench_loss.section(bench_loss.Size(2, 64, 8, 128), rounds=1))
    assert [row["form"] for row in rows] == ["plain", "chunks"]
    assert all(bool(row["target"]) == (row["form"] == "chunks") for row in rows)


def test_the_accelerator_s_script_runs_on_a_processor(tables):
    sizes = "--groups 1 --tokens 32 --rounds 1 --product 16 --shrink 32"
    text = bench_accelerator.page(bench_accelerator.parse(sizes.split()))
    (rows,) = tables(text)
    assert [row["program"] for row in rows] == ["bound", "layer", "one-hot"] * 4
    assert {row["shape"] for row in rows} == {"base", "8b"}
    row = bench_accelerator.step_row(SMALL, 2, 16, 1e9, 1)
    assert row[0] == "small"


SMALL = bench_accelerator.Configuration(
    name="small",
    num_layers=2,
    num_moe_layers=1,
    embed_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_experts=4,
    vocabulary_size=64,
    max_length=32,
)
