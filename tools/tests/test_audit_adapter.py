"""The audit's counting is judged by the conformance kit, on all clauses that it can show."""

from __future__ import annotations

import json

ADAPTER = "openmoe_tools.audit.adapter:Adapter"
CLAUSES = (
    "AUDIT-02",
    "AUDIT-10",
    "AUDIT-12",
    "AUDIT-15",
    "AUDIT-16",
    "AUDIT-18",
    "AUDIT-21",
    "AUDIT-27",
)


def test_the_counting_conforms(run, tmp_path):
    wanted = [part for clause in CLAUSES for part in ("--clause", clause)]
    report = tmp_path / "report.json"
    found = run("conform", "-i", ADAPTER, *wanted, "--json", report, "--no-real-input", "--jobs", 1)
    assert found.code == 0, found.stdout
    results = json.loads(report.read_text())["results"]
    passed = {one["clause"] for one in results if one["outcome"] == "pass"}
    assert passed == set(CLAUSES)
