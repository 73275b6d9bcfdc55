"""The README's first command, whole: it exits with 1 if one of its numbers falls short."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import read

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.py"


@pytest.mark.slow
def test_the_quickstart_meets_its_goals_and_goes_on_when_run_again(tmp_path: Path) -> None:
    command = [sys.executable, str(QUICKSTART), "--out", str(tmp_path / "quickstart")]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    assert first.stdout.count("\nok ") == 4
    for verb in ("prepare", "pack", "train", "encode", "cluster", "generate"):
        assert f"$ p2phd {verb} " in first.stdout
    assert read(tmp_path / "quickstart" / "contact_sheet.png").shape[2] == 3
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "is trained already" in again.stdout


def test_its_help_answers() -> None:
    printed = subprocess.run([sys.executable, str(QUICKSTART), "--help"], capture_output=True, text=True, check=True)
    assert "six verbs" in printed.stdout
