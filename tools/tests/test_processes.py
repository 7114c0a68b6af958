"""`openmoe train` in two processes: one is killed, and the run goes on, on another mesh."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("grain")
pytest.importorskip("sentencepiece")
pytest.importorskip("jax")

COMMAND = (sys.executable, "-c", "from openmoe_tools.command_line import main; main()")
STEPS, KILLED_BEHIND = 24, 10
SAID = ("openmoe", "mesh ", "step ", "warning: ", "finished: ", "stopped ")


def port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def begin(config, folder, *, processes=2):
    """Start the processes of a run; their output goes to files, since a full pipe would stop them."""
    address = f"localhost:{port()}"
    begun = []
    for process in range(processes):
        told = ("--coordinator", address, "--processes", str(processes), "--process", str(process))
        with (folder.parent / f"{folder.name}.{process}.txt").open("w") as output:
            arguments = ("train", config, "--output", folder, "--cpu-devices", 8 // processes)
            command = [*COMMAND, *map(str, arguments), *(told if processes > 1 else ())]
            begun.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
    return begun


def ended(begun, folder, *, seconds=400):
    codes = [one.wait(timeout=seconds) for one in begun]
    told = [
        (folder.parent / f"{folder.name}.{i}.txt").read_text(encoding="utf-8")
        for i in range(len(begun))
    ]
    assert codes == [0] * len(begun), told
    return told


def ours(told):
    """Return the lines of the command itself: JAX and its libraries warn as they please."""
    return [line for line in told.splitlines() if line.startswith(SAID)]


def losses(folder):
    from openmoe_production import metrics_log

    return {row["step"]: row["losses"]["total"] for row in metrics_log.read(folder)}


def wait_for(folder, process, step):
    """Wait until a step is written down, or the process has ended."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if max(losses(folder), default=0) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")


@pytest.fixture
def on_mesh(tiny_run):
    """Write the settings of the tiny run for a mesh; return their file."""

    def write(data, expert, model):
        path = tiny_run(steps=STEPS, every=4).with_name(f"on_{data}{expert}{model}.toml")
        sizes = f"[mesh]\ndata = {data}\nexpert = {expert}\nmodel = {model}\n"
        path.write_text(tiny_run(steps=STEPS, every=4).read_text() + sizes)
        return path

    return write


def test_one_of_two_processes_is_killed_and_the_run_goes_on_elsewhere(on_mesh, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended(begin(on_mesh(2, 2, 2), whole, processes=1), whole)
    undisturbed = losses(whole)
    assert list(undisturbed) == list(range(1, STEPS + 1))

    first, second = begun = begin(on_mesh(2, 2, 2), killed)
    wait_for(killed, first, KILLED_BEHIND)
    second.send_signal(signal.SIGKILL)
    second.wait()
    first.kill()  # as a cluster's scheduler does; JAX itself ends it after a minute without the other
    first.wait()
    assert [one.returncode for one in begun] == [-signal.SIGKILL] * 2
    assert max(losses(killed)) < STEPS

    told, quiet = ended(begin(on_mesh(4, 2, 1), killed), killed)
    assert "goes on from step" in told
    assert ours(told)
    assert not ours(quiet)  # the first one speaks
    found = losses(killed)
    assert list(found) == list(undisturbed)
    # Sums in another order: 2e-7 was seen.
    np.testing.assert_allclose(list(found.values()), list(undisturbed.values()), rtol=1e-5)


def test_a_process_that_is_told_to_stop_stops_all_of_them(on_mesh, tmp_path):
    folder, config = tmp_path / "stopped", on_mesh(4, 1, 2)
    begun = begin(config, folder)
    wait_for(folder, begun[0], 3)
    begun[1].send_signal(signal.SIGTERM)
    told, _ = ended(begun, folder)
    step = max(losses(folder))
    assert step < STEPS
    assert f"stopped at step {step} of {STEPS}; step {step} is saved" in told


def test_a_mesh_that_leaves_a_process_out_is_refused_by_all_of_them(on_mesh, tmp_path):
    folder = tmp_path / "partly"
    begun = begin(on_mesh(2, 1, 1), folder)
    assert [one.wait(timeout=200) for one in begun] == [3, 3]
    for process in range(2):
        told = (tmp_path / f"partly.{process}.txt").read_text(encoding="utf-8")
        (line,) = ours(told)
        assert "has 2 devices, the processes 8: all must be in it [MESH-06]" in line
