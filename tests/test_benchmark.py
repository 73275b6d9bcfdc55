"""The benchmark runs every kind of work and prints one JSON line of figures."""

import json
import sys

import benchmark
import pytest

SMALL = ["--height=64", "--width=64", "--ngf=2", "--downs=2", "--blocks=1", "--ndf=2", "--vgg=0", "--runs=2"]


@pytest.mark.parametrize(
    "what", ["step", "memory", "reduce", "generate", "pool", "encode", "batches", "tree", "prepare"]
)
def test_one_line_of_figures(what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", what, *SMALL])
    monkeypatch.setattr(benchmark, "PER_RUN", 2)
    monkeypatch.setattr(benchmark, "NOTES", {})
    benchmark.main()
    (line,) = capsys.readouterr().out.splitlines()
    figures = json.loads(line)
    assert figures["what"] == what
    assert ("estimate_mb" in figures, "megabytes" in figures) == (what == "memory", what == "reduce")
    if what in benchmark.PACED:
        assert figures["images_per_s"] > 0
    assert 0 < figures["min_s"] <= figures["median_s"] and figures["peak_rss_mb"] > 50
