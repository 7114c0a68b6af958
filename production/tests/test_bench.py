"""The benchmark runs and writes its page; no time is judged here."""

import pytest

from openmoe_production import bench, bench_model, bench_timing

TINY = ["--tokens", "32", "--experts", "2", "--rounds", "2", "--width", "8", "--hidden", "16"]
TINY += ["--memory", "32", "64", "--model-rounds", "1", "--head-width", "2", "--layers", "4"]
TINY += ["--vocabulary", "64", "--rows", "2", "--length", "16", "--caches", "3", "6"]
TINY += ["--batches", "1"]


def test_the_page_has_both_tables_of_the_layer(tmp_path, capsys, monkeypatch, tables):
    monkeypatch.setattr(bench_model, "section", lambda *sizes, **rounds: f"## {sizes} {rounds}\n")
    path = tmp_path / "page.md"
    bench.main([*TINY, "--output", str(path)], [lambda: "## More\n"])
    text = path.read_text(encoding="utf-8")
    assert capsys.readouterr().out == text + "\n"
    assert f"bench {' '.join(TINY)}" in text  # how to reproduce it
    size = bench_model.Size(head_width=2, layers=4, vocabulary=64, rows=2, length=16)
    assert f"## {(size, [3, 6], [1])} {{'rounds': 1, 'step_rounds': 2}}" in text
    assert "## More" in text
    times, memory = tables(text)
    programs = ["bound", "layer", "one-hot"]
    assert [(row["E"], row["pass"], row["program"]) for row in times] == [
        ("2", which, name) for which in bench.PASSES for name in programs
    ]
    assert [(row["pass"], row["program"], row["T"]) for row in memory] == [
        (which, name, size) for which in bench.PASSES for name in programs for size in ("32", "64")
    ]
    for row in times + memory:
        assert bool(row["target"]) == (row["program"] == "layer")
        assert all(value for column, value in row.items() if column != "target")


def test_nothing_is_written_when_asked_not_to(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "page", lambda *_: "the page")
    path = tmp_path / "page.md"
    bench.main(["--output", str(path), "--no-write"])
    assert not path.exists()
    assert capsys.readouterr().out == "the page\n"


@pytest.mark.parametrize(
    "wrong",
    [["--tokens", "0"], ["--rounds", "-1"], ["--experts"], ["--layers", "6"], ["--caches", "0"]],
)
def test_wrong_sizes_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        bench.main(wrong)
    assert wrong[0] in capsys.readouterr().err


def test_a_target_is_met_or_missed():
    assert bench_timing.judged(1.0, 1.1) == "<= 1.10: met"
    assert bench_timing.judged(1.2, 1.1) == "<= 1.10: missed"
