"""The cost model of README's "How far it goes"."""

import subprocess
import sys

import pytest
from how_far import WORKS, Site, Work, step

from tests.test_devices import ROOT

WORK = Work("any", teraflop=4.0, parameters=250.0, megabytes=2.0, pictures=10.0)


def test_readme_shows_what_it_prints() -> None:
    command = [sys.executable, str(ROOT / "examples" / "how_far.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.count("\n") == 2 + 2 * 3 * 2
    assert printed in (ROOT / "README.md").read_text(encoding="utf-8")


def test_parts_of_a_step() -> None:
    site = Site(teraflops=40.0, gpus=8, cores=4, links=100.0, network=10.0, storage=5.0)
    one = step(WORK, 64, 2, site)
    assert one.pictures == 128
    assert one.computing == pytest.approx(2 * 4 / 40)
    assert one.input == pytest.approx(2 * 8 / (4 * 10))
    assert one.storage == pytest.approx(128 * 0.002 / 5)
    assert one.reduce == pytest.approx(2 * 7 / 8 * 1.0 / 100 + 2 * 7 / 8 * 1.0 / 10)
    assert one.seconds == one.input + one.reduce and one.binds == "input"


def test_one_gpu_sums_nothing_up() -> None:
    one = step(WORK, 1, 1, Site())
    assert one.reduce == 0 and one.seconds == one.computing == 0.1


def test_each_part_can_bind() -> None:
    assert step(WORK, 512, 1, Site(storage=0.1)).binds == "file system"
    assert step(WORK, 64, 1, Site(network=1.0)).binds == "all-reduce"
    assert all(step(work, 8, 1, Site()).binds == "computing" for work in WORKS)
