"""The model in the box: it loads, it is small, it obeys, and it paints the stored picture."""

from pathlib import Path

import numpy as np
from PIL import Image

from pix2pixhd_cli.data.dataset import read_spec
from pix2pixhd_cli.features import FeatureClusters, FeatureCodes
from tests.conftest import Command, read

ROOT = Path(__file__).parents[1]
RUN, STREETS = ROOT / "examples/toy_run", ROOT / "examples/streets"
LEVELS = 2  # Other processors round otherwise.


def test_its_first_command_paints_the_stored_picture(p2phd: Command, tmp_path: Path) -> None:
    outcome = p2phd("generate", RUN, STREETS, tmp_path / "out", "--feature-code", "road=cobbles")
    assert (outcome.code, outcome.err) == (0, "")
    stems = [entry.stem for entry in read_spec(STREETS).entries("val")]
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == stems
    painted, stored = read(tmp_path / f"out/{stems[0]}.png"), read(ROOT / "tests/golden/toy_street.png")
    assert np.abs(painted.astype(int) - stored.astype(int)).max() <= LEVELS


def test_it_has_names_for_its_styles() -> None:
    spec, clusters = read_spec(RUN), FeatureClusters.load(RUN / "clusters.npz")
    names = {spec.class_name(i): set(filter(None, styles.names)) for i, styles in clusters.classes.items()}
    assert names["road"] == {"asphalt", "cobbles"}
    assert names["car"] == {"red", "blue", "white", "green"}
    assert names["building"] == {"ochre", "brick", "grey", "mint"}
    assert len(FeatureCodes.load(RUN / "features.npz").code) > 1000


def test_it_is_small_and_tells_nothing_of_where_it_was_made() -> None:
    files = [path for path in RUN.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    assert not any(b"/tmp" in path.read_bytes() or b"/home" in path.read_bytes() for path in files)


def test_it_is_shown_as_trained(p2phd: Command) -> None:
    shown = p2phd("show", RUN).out
    assert "trained: step 12000 of 12000" in shown and "next: p2phd generate" in shown


def test_the_picture_at_the_top_is_there() -> None:
    with Image.open(ROOT / "examples/three_styles.png") as picture:
        assert picture.width == 1556
    assert (ROOT / "README.md").read_text().index("examples/three_styles.png") < 600
