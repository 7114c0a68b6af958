"""What the tests of several modules share."""

from __future__ import annotations

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # before anything is computed: meshes have eight


@pytest.fixture
def tables():
    """Return a function of a Markdown page: its tables, as lists of rows by column name."""

    def read(text):
        found = []
        for block in text.split("\n\n"):
            lines = [line for line in block.splitlines() if line.startswith("|")]
            if lines:
                cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
                found.append([dict(zip(cells[0], row, strict=True)) for row in cells[2:]])
        return found

    return read
