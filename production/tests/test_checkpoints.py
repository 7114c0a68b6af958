"""Checkpoints of a run: whole or passed over, exact on any mesh, and no error of more than a line."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax_checkpoint
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from openmoe_production.checkpoints import (
    CheckpointError,
    Checkpoints,
    complete_steps,
    find_step,
    read_settings,
    read_shapes,
    restored_parameters,
)
from openmoe_production.sharding import make_mesh

SETTINGS = {"model": {"num_experts": 4, "sparse": [1, 3]}, "seed": 7, "stage": [{"steps": 9}]}
AXES = {
    "token_embedder/embedding": ("model", None),
    "decoder/layers_0/mlp/wi_0/kernel": ("expert", None, None, "model"),
    "decoder/norm.scale/in bfloat16": (),
    "decoder": ("data",),
}
SHAPES = {
    "token_embedder/embedding": ((16, 12), jnp.float32),
    "decoder/layers_0/mlp/wi_0/kernel": ((4, 6, 2, 8), jnp.float32),
    "decoder/norm.scale/in bfloat16": ((5,), jnp.bfloat16),
    "decoder": ((8,), jnp.float32),
}


def bits(shape, dtype, seed):
    """Any bits at all: signs of zero, subnormal numbers, numbers that are none."""
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    return np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(shape)


def tree_of(make):
    parameters = {name: make(*SHAPES[name], AXES[name]) for name in AXES}
    unused = make((1,), jnp.float32, ())
    slots = {
        name: {"v_row": unused, "v_col": unused, "v": make(SHAPES[name][0], jnp.float32, axes)}
        for name, axes in AXES.items()
    }
    return {
        "parameters": parameters,
        "optimizer": {"step": make((), jnp.int32, ()), "slots": slots},
    }


def state_of(seed, mesh=None):
    """A run's arrays, all drawn from the seed."""
    mesh = mesh or make_mesh()
    seeds = iter(range(1000 * seed, 1000 * seed + 1000))
    return tree_of(
        lambda shape, dtype, axes: jax.device_put(
            bits(shape, dtype, next(seeds)), NamedSharding(mesh, PartitionSpec(*axes))
        )
    )


def abstract_of(mesh=None):
    mesh = mesh or make_mesh()
    return tree_of(
        lambda shape, dtype, axes: jax.ShapeDtypeStruct(
            shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes))
        )
    )


def copied(tree):
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def opened(folder, **changes):
    return Checkpoints(folder, SETTINGS, **{"warn": pytest.fail} | changes)


def filled(folder, *steps, **changes):
    with opened(folder, **changes) as run:
        for step in steps:
            run.save(step, state_of(step), {"at": step})
    return folder


def refused(match, function, *arguments, **changes):
    with pytest.raises(CheckpointError, match=match) as caught:
        function(*arguments, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_of(step):
    return sorted(one for one in step.rglob("*") if one.is_file())


# ---- what is saved is what comes back ----------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_step_comes_back_bit_for_bit_on_any_mesh(tmp_path, asynchronous):
    wanted = state_of(1, make_mesh(2, 2, 2))
    with opened(tmp_path, asynchronous=asynchronous) as run:
        run.save(5, wanted, {"pipeline": {"rows": [1, None, "ä"]}})
        assert asynchronous or run.latest() == 5
        run.wait()
        for sizes in ((2, 2, 2), (4, 2, 1), (1, 1, 8), (1, 1, 1)):
            abstract = abstract_of(make_mesh(*sizes))
            found, data = run.restore(5, abstract)
            same(found, wanted)
            assert data == {"pipeline": {"rows": [1, None, "ä"]}}
            placed = jax.tree.map(lambda leaf: leaf.sharding, found)
            assert placed == jax.tree.map(lambda leaf: leaf.sharding, abstract)


def test_arrays_may_be_donated_and_data_go_on_as_soon_as_save_returns(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    # Large enough that files are written when the next step runs; as a train step holds them.
    wide = NamedSharding(make_mesh(2, 2, 2), PartitionSpec("data", "model"))
    parameters = {name: jnp.zeros((512, 512), device=wide) for name in "abcdefgh"}
    state = {"parameters": parameters, "optimizer": {"step": jnp.int32(0)}}
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    data = {"at": 0}
    with opened(tmp_path, keep=None) as run:
        for number in range(1, 6):
            state = step(state)
            data["at"] = number
            run.save(number, state, data)
            data["at"] = -1
            before = state
            state = step(step(state))
            assert before["parameters"]["a"].is_deleted()
        run.wait()
        for number in run.steps():
            found, data = run.restore(number, abstract)
            assert data == {"at": number}
            assert int(found["optimizer"]["step"]) == 3 * number - 2
            for leaf in found["parameters"].values():
                np.testing.assert_array_equal(leaf, 3 * number - 2)


def test_parameters_come_back_alone(tmp_path):
    whole = tmp_path / "run"
    step = filled(whole / "checkpoints", 3, 4) / "4"
    damaged(next(one for one in files_of(step / "optimizer") if one.parent.name == "d"))
    abstract = abstract_of(make_mesh(4, 2, 1))["parameters"]
    for path in (whole, whole / "checkpoints", step):
        same(restored_parameters(path, None, abstract), state_of(4)["parameters"])
    same(restored_parameters(whole, 3, abstract), state_of(3)["parameters"])
    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), abstract)
    found = restored_parameters(whole, None, bare)
    assert {one.devices().pop() for one in found.values()} == {jax.devices()[0]}
    refused("step 4: optimizer/", opened(whole / "checkpoints").restore, 4, abstract_of())


def test_shapes_and_settings_are_read_without_knowing_them(tmp_path):
    filled(tmp_path / "run", 2)
    shutil.copytree(tmp_path / "run/2", tmp_path / "best")  # a step stands for itself
    for path in (tmp_path / "run", tmp_path / "best"):
        assert read_settings(path) == SETTINGS
        found = read_shapes(path)
        assert jax.tree.structure(found) == jax.tree.structure(abstract_of())
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(abstract_of()), strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)


# ---- which steps there are ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [1, 3, 6]), (2, [1, 3, 5, 6]), (None, [1, 2, 3, 4, 5, 6])]
)
def test_the_newest_stay_and_those_that_are_named(tmp_path, keep, left):
    folder = filled(tmp_path, *range(1, 7), keep=keep, keep_steps=(1, 3, 100))
    assert complete_steps(folder) == left
    assert sorted(one.name for one in folder.iterdir()) == [str(one) for one in left]
    filled(folder, 7, keep=1)
    assert complete_steps(folder) == [7]


def test_an_empty_folder_has_no_step(tmp_path):
    with opened(tmp_path / "none") as run:
        assert run.latest() is None
        assert run.steps() == []
    assert not (tmp_path / "none").exists()
    refused("holds no complete step", read_settings, tmp_path / "none")


def half_written(step):
    step.rename(step.with_name(f"{step.name}.orbax-checkpoint-tmp"))


def without(name):
    return lambda step: (step / name).unlink()


def arrays(step):
    return max(files_of(step / "parameters"), key=lambda one: one.stat().st_size)


BROKEN = {
    "half-written": half_written,
    "without Orbax's word": without("_CHECKPOINT_METADATA"),
    "without a list": without("files.json"),
    "with half a list": lambda step: (step / "files.json").write_text('{"par'),
    "without arrays": lambda step: arrays(step).unlink(),
    "with half of an array": lambda step: arrays(step).write_bytes(arrays(step).read_bytes()[:99]),
    "empty": lambda step: (shutil.rmtree(step), step.mkdir()),
}


@pytest.mark.parametrize("breaks", BROKEN.values(), ids=BROKEN)
def test_an_incomplete_step_is_passed_over_and_written_again(tmp_path, breaks):
    breaks(filled(tmp_path, 1, 2) / "2")
    told = []
    with opened(tmp_path, warn=told.append, keep=1) as run:
        assert len(told) == 1
        assert told[0].startswith(f"{tmp_path}: step 2 ")
        assert told[0].endswith("it is passed over")
        assert run.latest() == 1
        assert find_step(tmp_path, warn=told.append) == tmp_path / "1"
        assert told[1:] == told[:1]
        same(run.restore(1, abstract_of())[0], state_of(1))
        run.save(2, state_of(20), {})
        run.wait()
        assert run.steps() == [2]  # a broken one did not count among those that are kept
        same(run.restore(2, abstract_of())[0], state_of(20))
    assert [one.name for one in tmp_path.iterdir()] == ["2"]


def test_a_broken_step_takes_no_good_ones_place(tmp_path):
    (filled(tmp_path, 1, 2, 5) / "5/files.json").unlink()
    filled(tmp_path, 3, warn=len, keep=2)  # before the broken one
    assert complete_steps(tmp_path) == [2, 3]
    filled(tmp_path, 6, warn=len, keep=2)
    assert complete_steps(tmp_path) == [3, 6]
    filled(tmp_path, 7, warn=len, keep=2)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["6", "7"]


# ---- what is refused ---------------------------------------------------------------------------


def test_other_settings_are_all_named_with_both_values(tmp_path):
    filled(tmp_path, 1)
    other = {"model": {"num_experts": 8, "sparse": [1]}, "seed": "a\nb", "rate": 1.5}
    text = refused("other settings", Checkpoints, tmp_path, other | {"stage": [{"steps": 9}]})
    for part in (
        "model.num_experts: checkpoint has 4, this run 8",
        "model.sparse[1]: checkpoint has 3, this run nothing",
        'seed: checkpoint has 7, this run "a\\nb"',
        "rate: checkpoint has nothing, this run 1.5",
    ):
        assert part in text
    assert "stage" not in text
    assert text.count("this run") == 4
    Checkpoints(tmp_path, SETTINGS | {"model": {"sparse": (1, 3), "num_experts": 4}})
    (tmp_path / "1/files.json").unlink()
    Checkpoints(tmp_path, other, warn=len)  # nothing there to go on from


def damaged(file):
    """Turn one bit of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def test_one_wrong_bit_is_found_and_the_step_before_is_as_it_was(tmp_path):
    filled(tmp_path, 1, 2)
    with opened(tmp_path) as run:
        inside = [
            one
            for item in ("parameters", "optimizer", "data")
            for one in files_of(tmp_path / "2" / item)
        ]
        assert len(inside) > 12
        for file in inside:
            content = file.read_bytes()
            damaged(file)
            text = refused("step 2: .* is damaged", run.restore, 2, abstract_of())
            assert file.relative_to(tmp_path / "2").as_posix() in text
            file.write_bytes(content)
        same(run.restore(2, abstract_of())[0], state_of(2))
        damaged(file)
        same(run.restore(1, abstract_of())[0], state_of(1))
    damaged(tmp_path / "2/settings/metadata")
    refused("step 2: settings/metadata is damaged", read_settings, tmp_path)


def test_other_arrays_are_refused_by_name(tmp_path):
    run = opened(filled(tmp_path, 1))
    name = "token_embedder/embedding"
    where = rf"step 1: parameters\['{name}'\] is "
    for shape, dtype, text in (
        ((16, 13), jnp.float32, r"float32 \[16, 12\] in it, wanted is float32 \[16, 13\];"),
        ((16, 12), jnp.bfloat16, r"float32 \[16, 12\] in it, wanted is bfloat16 \[16, 12\];"),
    ):
        abstract = abstract_of()
        abstract["parameters"][name] = jax.ShapeDtypeStruct(shape, dtype)
        refused(where + text, run.restore, 1, abstract)
    abstract = abstract_of()
    abstract["parameters"]["more"] = abstract["parameters"].pop(name)
    refused(where + r".*wanted is none \(and 1 more\)", run.restore, 1, abstract)


def test_steps_that_are_there_or_not(tmp_path):
    filled(tmp_path, 1, 2)
    with opened(tmp_path) as run:
        refused("step 2 is there already", run.save, 2, state_of(3), {})
        same(run.restore(2, abstract_of())[0], state_of(2))
        refused("step 3 is not there", run.restore, 3, abstract_of())
        run.save(3, state_of(3), {})
    refused("is one step, and not step 1", find_step, tmp_path / "2", 1)
    assert find_step(tmp_path / "2", 2) == tmp_path / "2"
    refused("name a folder of checkpoints", opened, tmp_path / "3/files.json")


def test_what_goes_wrong_with_a_step_is_told_unless_something_went_wrong_before(
    tmp_path, monkeypatch
):
    def run(then):
        with opened(tmp_path) as run:
            run.save(2, state_of(2), {})
            then()

    filled(tmp_path, 1)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as broken:
        broken.setattr(Checkpoints, "_list_files", lambda _: throw(full))
        refused("step 2 cannot be saved: No space left on device; step 1 is saved", run, int)
        with pytest.raises(ZeroDivisionError):
            run(lambda: throw(ZeroDivisionError()))
    assert complete_steps(tmp_path) == [1]
    with pytest.raises(ZeroDivisionError):
        run(lambda: throw(ZeroDivisionError()))
    assert complete_steps(tmp_path) == [1, 2]


def test_what_is_no_json_is_refused_at_once(tmp_path):
    with opened(tmp_path) as run, pytest.raises(TypeError):
        run.save(1, state_of(1), {"at": object()})
    assert not tmp_path.joinpath("1").exists()


def throw(error):
    raise error


def test_nobody_but_orbax_is_kept_quiet(tmp_path):
    filled(tmp_path, 1)
    ours, orbax = __file__, orbax_checkpoint.__file__
    for name, place, told, heard in (
        ("absl", ours, "something", True),
        ("absl", orbax, "something", False),
        ("asyncio", ours, "Task exception was never retrieved", True),
        ("asyncio", ours, "Future exception was never retrieved: 2.orbax-checkpoint-tmp", False),
    ):
        record = logging.LogRecord(name, logging.ERROR, place, 1, told, (), None)
        assert bool(logging.getLogger(name).filter(record)) is heard


# ---- processes that fail, and that are killed ----------------------------------------------------

BEGIN = """
import os, resource, signal, sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 8)
sys.path.insert(0, {tests!r})
from test_checkpoints import *
folder = Path(sys.argv[1])
"""

FULL = """
def limited(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
run = Checkpoints(folder, SETTINGS)
run.save(1, state_of(1), {})
for step, size in ((2, 1500), (3, 20)):  # of files of arrays, and of all
    run.wait()
    limited(size)
    run.save(step, state_of(step), {})
    try:
        run.wait()
    except CheckpointError as error:
        print(error)
    limited(resource.RLIM_INFINITY)
    print(run.latest(), run.steps())
run.save(4, state_of(4), {})
run.wait()
limited(1500)
try:
    run.save(5, state_of(5), {}), run.save(6, state_of(6), {})
except CheckpointError as error:
    print(error)
limited(resource.RLIM_INFINITY)
run.save(6, state_of(6), {})
run.close()
for step in run.steps():
    same(run.restore(step, abstract_of())[0], state_of(step))
damaged(arrays(folder / "1"))
try:
    run.restore(1, abstract_of())
except CheckpointError as error:
    print(error)
print(sorted(one.name for one in folder.iterdir()))
"""

KILLED = """
events = 0
last = int(sys.argv[2])
def count(event, _):
    global events
    if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}:
        events += 1
        if events == last:
            os.kill(os.getpid(), signal.SIGKILL)
run = Checkpoints(folder, SETTINGS, keep=2, warn=print)
step = run.latest() or 0
if step:
    same(run.restore(step, abstract_of())[0], state_of(step))
sys.addaudithook(count)
while True:
    step += 1
    run.save(step, state_of(step), {})
    print(step, flush=True)
"""


def script(text, *arguments):
    """Run a program of its own and return how it ended and what it said."""
    begin = BEGIN.format(tests=str(Path(__file__).parent))
    return subprocess.run(
        [sys.executable, "-c", begin + text, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_what_cannot_be_written_is_one_line_and_the_run_may_go_on(tmp_path):
    ended = script(FULL, tmp_path)
    assert ended.stderr == ""  # nothing of what Orbax, asyncio and absl tell
    lines = ended.stdout.splitlines()
    says = "cannot be saved: File too large; step"
    assert lines == [
        f"{tmp_path}: step 2 {says} 1 is saved and good",
        "1 [1]",
        f"{tmp_path}: step 3 {says} 1 is saved and good",
        "1 [1]",
        f"{tmp_path}: step 5 {says} 4 is saved and good",
        lines[5],
        "['1', '4', '6']",
    ]
    assert "is damaged" in lines[5]


def test_a_process_killed_while_it_saves_leaves_complete_steps(tmp_path):
    draw = np.random.default_rng(11)
    newest = 0
    for _ in range(4):
        ended = script(KILLED, tmp_path, draw.integers(1, 500))
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert ended.stderr == ""
        steps = complete_steps(tmp_path)
        assert max(steps, default=0) >= newest
        newest = max(steps, default=0)
        for step in steps:
            found = opened(tmp_path, warn=len).restore(step, abstract_of())[0]
            same(found, state_of(step))
    assert newest > 1
    filled(tmp_path, 1000, warn=len, keep=1)
    assert [one.name for one in tmp_path.iterdir()] == ["1000"]
