"""The checkpoint tools are judged by the conformance kit, on all clauses that they can show."""

from __future__ import annotations

import json

ADAPTER = "openmoe_tools.checkpoints.adapter:Adapter"
CLAUSES = ("CKPT-01", "CKPT-02", "CKPT-03", "CKPT-04", "PARAM-05")


def test_the_tools_conform(run, tmp_path):
    wanted = [part for clause in CLAUSES for part in ("--clause", clause)]
    report = tmp_path / "report.json"
    found = run("conform", "-i", ADAPTER, *wanted, "--json", report, "--no-real-input", "--jobs", 1)
    assert found.code == 0, found.stdout
    results = json.loads(report.read_text())["results"]
    passed = {one["clause"] for one in results if one["outcome"] == "pass"}
    assert passed == set(CLAUSES)
