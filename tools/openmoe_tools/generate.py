"""`python -m openmoe_tools.generate [--check]`: files that follow from SPEC.md.

Writes `clauses.json` and `conformance/COVERAGE.md`. With --check nothing is written: whatever is
out of date, uncovered, unknown or does not recompute is printed and the exit code is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

from openmoe_spec import clauses
from openmoe_tools import coverage, prose

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str]) -> int:
    """Write or check the generated files; return the exit code."""
    check = arguments == ["--check"]
    if arguments and not check:
        print("usage: python -m openmoe_tools.generate [--check]", file=sys.stderr)
        return 3
    text = (ROOT / "SPEC.md").read_text(encoding="utf-8")
    try:
        parsed = clauses.parse(text)
    except clauses.SpecTextError as error:
        print(f"SPEC.md: {error}")
        return 1
    rows, complaints = coverage.collect(ROOT, parsed)
    complaints += prose.complaints(text, {clause.id for clause in parsed})
    generated = {
        ROOT / "reference/openmoe_spec/clauses.json": clauses.dump(parsed),
        ROOT / "conformance/COVERAGE.md": coverage.render(rows),
    }
    for path, content in generated.items():
        if check:
            now = path.read_text(encoding="utf-8") if path.exists() else ""
            if now != content:
                complaints.append(f"{path.relative_to(ROOT)} is out of date: run make generate")
        else:
            path.write_text(content, encoding="utf-8")
    for complaint in complaints:
        print(complaint)
    if not complaints:
        normative = sum(row.clause.normative for row in rows)
        print(f"{len(rows)} clauses, {normative} normative, all covered; prose recomputes")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
