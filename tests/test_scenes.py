"""Scenes that were saved: they come back whole, and `generate` paints them as they were."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pix2pixhd_cli.data.dataset import Example, read_example, read_spec
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.features import FeatureClusters, Styler, parse_rules
from pix2pixhd_cli.painting import Painter
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.scenes import Scene
from tests.conftest import Command

STYLES = ("road=1", "instance:26001=0.1,-0.4,0.9")


@pytest.fixture(scope="module")
def painter(run: Path) -> Painter:
    return Painter(run)


@pytest.fixture(scope="module")
def scene(painter: Painter, dataset: Path) -> Scene:
    """An example in styles of which some are chosen and the others drawn, as the studio would save it."""
    spec = read_spec(dataset)
    example = read_example(dataset, spec, "val", spec.entries("val")[0])
    clusters = FeatureClusters.load(painter.run.clusters)
    styler = Styler(
        parse_rules(STYLES, painter.spec, clusters, painter.channels), clusters, channels=painter.channels, seed=7
    )
    codes = painter.styled(example, styler).codes
    example = replace(example, photo=None, codes={i: np.asarray(code, np.float32) for i, code in codes.items()})
    return Scene(example, STYLES, locked=("instance:26001",), seed=7, mark=painter.mark)


def test_it_comes_back_as_it_was(scene: Scene, tmp_path: Path) -> None:
    scene.save(tmp_path / "a.p2phd")
    back = Scene.load(tmp_path / "a.p2phd")
    assert (back.styles, back.locked, back.seed, back.mark) == (scene.styles, scene.locked, 7, scene.mark)
    assert back.example.stem == scene.example.stem
    np.testing.assert_array_equal(back.example.label, scene.example.label)
    np.testing.assert_array_equal(back.example.instance, scene.example.instance)
    assert list(back.example.codes) == list(scene.example.codes)
    for identity, code in scene.example.codes.items():
        assert back.example.codes[identity].tobytes() == code.tobytes()
    back.save(tmp_path / "b.p2phd")
    assert (tmp_path / "a.p2phd").read_bytes() == (tmp_path / "b.p2phd").read_bytes()


def test_generate_paints_it_byte_for_byte(
    p2phd: Command, painter: Painter, run: Path, scene: Scene, tmp_path: Path
) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    scene.save(folder / "street.p2phd")
    outcome = p2phd("generate", run, folder, tmp_path / "out", "--seed", 99)
    assert outcome.code == 0 and "warning" not in outcome.err
    expected = painter.paint(scene.example.label, scene.example.instance, codes=scene.example.codes)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "street.png")), expected)


def test_it_is_what_its_texts_say(p2phd: Command, run: Path, dataset: Path, scene: Scene, tmp_path: Path) -> None:
    """The command that the studio shows paints the same picture from the maps alone."""
    scene.save(tmp_path / f"{scene.example.stem}.p2phd")
    p2phd("generate", run, tmp_path / f"{scene.example.stem}.p2phd", tmp_path / "from_scene")
    chosen = [part for text in STYLES for part in ("--feature-code", text)]
    p2phd("generate", run, dataset, tmp_path / "from_maps", "--limit", 1, "--seed", 7, *chosen)
    of_scene, of_maps = (next((tmp_path / out).glob("*.png")) for out in ("from_scene", "from_maps"))
    assert of_scene.name == of_maps.name
    assert of_scene.read_bytes() == of_maps.read_bytes()


def test_flags_win_over_a_scene(p2phd: Command, painter: Painter, run: Path, scene: Scene, tmp_path: Path) -> None:
    scene.save(tmp_path / "street.p2phd")
    p2phd("generate", run, tmp_path / "street.p2phd", tmp_path / "out", "--feature-code", "car=0.5,0.5,0.5")
    codes = dict(scene.example.codes)
    for identity, class_id in painter.instances(scene.example.label, scene.example.instance).items():
        if class_id == 26:
            codes[identity] = np.full(3, 0.5, np.float32)
    expected = painter.paint(scene.example.label, scene.example.instance, codes=codes)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "street.png")), expected)


def test_another_model_is_told_of(p2phd: Command, run: Path, scene: Scene, tmp_path: Path) -> None:
    replace(scene, mark="step 5, of another").save(tmp_path / "street.p2phd")
    outcome = p2phd("generate", run, tmp_path / "street.p2phd", tmp_path / "out")
    assert outcome.code == 0 and "saved with another model (step 5, of another" in outcome.err


def damaged(scene: Scene, name: str) -> Scene:
    """A scene with one thing wrong in it."""
    example = scene.example
    label = example.label.copy()
    label[3, 5] = 77
    changed: dict[str, Example] = {
        "an unknown id": replace(example, label=label),
        "codes of another length": replace(example, codes={i: code[:2] for i, code in example.codes.items()}),
        "another size": replace(example, instance=example.instance[:-1]),
        "no pixels": replace(example, label=label[:0], instance=example.instance[:0]),
    }
    return replace(scene, example=changed[name])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("an unknown id", "id 77 at row 3, column 5 is no class of"),
        ("codes of another length", "its codes have 2 numbers"),
        ("another size", "damaged (instance is not what it must be)"),
        ("no pixels", "is 0x"),
    ],
)
def test_what_cannot_be_painted(p2phd: Command, run: Path, scene: Scene, tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / "street.p2phd"
    damaged(scene, name).save(path)
    outcome = p2phd("generate", run, path, tmp_path / "out")
    assert outcome.code == 1 and outcome.err.startswith(f"error: {path}: ") and said in outcome.err
    assert not (tmp_path / "out").exists()


def test_sizes_are_bounded(run: Path, p2phd: Command, scene: Scene, tmp_path: Path) -> None:
    scene.save(tmp_path / "street.p2phd")
    with pytest.raises(P2PHDError, match="1 to 1,000 pixels may be painted"):
        Scene.load(tmp_path / "street.p2phd", 1000)
    outcome = p2phd("generate", run, tmp_path / "street.p2phd", tmp_path / "out", "--max-pixels", 1000)
    assert outcome.code == 1 and "1,000 pixels" in outcome.err


def test_no_scene_at_all(p2phd: Command, run: Path, tmp_path: Path) -> None:
    (tmp_path / "street.p2phd").write_text("no archive")
    assert "damaged" in p2phd("generate", run, tmp_path / "street.p2phd", tmp_path / "out").err
    (tmp_path / "street.png").write_bytes(b"")
    outcome = p2phd("generate", run, tmp_path, tmp_path / "out")
    assert outcome.code == 1 and "names must differ" in outcome.err
    outcome = p2phd("generate", run, tmp_path / "street.p2phd", tmp_path / "out", "--instance-map", tmp_path)
    assert outcome.code == 1 and "brings its own instance map" in outcome.err


def test_the_model_has_one_mark(painter: Painter, run: Path) -> None:
    assert painter.mark == Run(run).model_mark()
