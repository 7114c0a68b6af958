"""`openmoe bench`: what it asks of production, and the reference's own section; no time is judged."""

from __future__ import annotations

import re

from openmoe_production import bench, bench_loss, bench_mesh
from openmoe_tools import benchmarking


def test_options_go_to_production_with_the_references_section(run, monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(bench, "main", lambda *given: called.append(given))
    page = tmp_path / "page.md"
    assert run("bench", "--rounds", 3, "--tokens", 64, "--output", page).code == 0
    assert run("bench").code == 0
    written = ("--rounds", "3", "--tokens", "64", "--output", str(page))
    printed = ("--rounds", "16", "--tokens", "4096", "--no-write")
    more = [
        bench_loss.section,
        bench_mesh.section,
        benchmarking.accelerator_section,
        benchmarking.reference_section,
        benchmarking.examples_section,
        benchmarking.text_section,
    ]
    assert called == [(written, more), (printed, more)]


def test_a_page_that_cannot_be_written_is_refused_first(complains, monkeypatch):
    monkeypatch.setattr(bench, "main", lambda *_: 1 / 0)
    complains("bench", "--output", "no/where.md", words=["no/where.md", "folder"])


def test_the_references_section_says_what_was_run():
    text = benchmarking.reference_section()
    assert text.startswith("## The reference\n\n")
    assert re.search(
        r"12 layers, D = 48, E = 16, V = 512,\n2 x 64 tokens, float32: median of 5 runs "
        r"\d+\.\d\d s\. Target: below 1 s, (met|missed)\.\n$",
        text,
    )
