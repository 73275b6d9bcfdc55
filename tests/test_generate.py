"""generate: what is painted where, sizes, seeds, codes, gains, and the Python function beside it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pix2pixhd_cli.data.dataset import read_example, read_spec
from pix2pixhd_cli.features import FeatureClusters, FeatureCodes
from pix2pixhd_cli.painting import Painter
from pix2pixhd_cli.pipeline.cluster import cluster
from pix2pixhd_cli.pipeline.generate import generate
from tests.conftest import Command, read, save

STEMS = [f"toyville_00000{n}_000019" for n in range(3)]


def painted(out: Path) -> dict[str, np.ndarray]:
    return {path.stem: read(path) for path in sorted(out.glob("*.png"))}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_data_set(p2phd: Command, run: Path, dataset: Path, tmp_path: Path) -> None:
    outcome = p2phd("generate", run, dataset, tmp_path / "out")
    assert (outcome.code, outcome.err) == (0, "")
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == [f"{stem}.png" for stem in STEMS]
    assert all(picture.shape == (32, 64, 3) for picture in painted(tmp_path / "out").values())


def test_folders_and_files_give_the_same_pictures(
    p2phd: Command, run: Path, dataset: Path, city: Path, tmp_path: Path
) -> None:
    p2phd("generate", run, dataset, tmp_path / "a", "--seed", 5)
    maps = dataset / "val"
    assert (
        p2phd("generate", run, maps / "label", tmp_path / "b", "--instance-map", maps / "instance", "--seed", 5).code
        == 0
    )
    assert same(painted(tmp_path / "a"), painted(tmp_path / "b"))
    official = city / "gtFine/val/toyville"
    assert p2phd("generate", run, official, tmp_path / "c", "--instance-map", official, "--seed", 5).code == 0
    assert same(painted(tmp_path / "a"), painted(tmp_path / "c"))
    one = [maps / "label" / f"{STEMS[1]}.png", tmp_path / "d", "--instance-map", maps / "instance" / f"{STEMS[1]}.png"]
    assert p2phd("generate", run, *one, "--seed", 5).code == 0
    np.testing.assert_array_equal(painted(tmp_path / "d")[STEMS[1]], painted(tmp_path / "a")[STEMS[1]])


def test_seeds(p2phd: Command, run: Path, dataset: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        p2phd("generate", run, dataset, tmp_path / name, "--seed", seed)
    assert same(painted(tmp_path / "a"), painted(tmp_path / "b"))
    assert not same(painted(tmp_path / "a"), painted(tmp_path / "c"))


def test_a_chosen_code_changes_its_own_class(p2phd: Command, run: Path, dataset: Path, tmp_path: Path) -> None:
    names = {}
    for choice in ("car=0", "car=red", "car=1", "26=1", "car=mean", "car=0.9,-0.9,0.9"):
        p2phd("generate", run, dataset, tmp_path / choice, "--limit", 1, "--feature-code", choice)
        names[choice] = painted(tmp_path / choice)
    assert same(names["car=0"], names["car=red"]) and same(names["car=1"], names["26=1"])
    assert not same(names["car=0"], names["car=1"]) and not same(names["car=0"], names["car=mean"])
    label = read(dataset / "val" / "label" / f"{STEMS[0]}.png")
    change = np.abs(names["car=0"][STEMS[0]].astype(int) - names["car=0.9,-0.9,0.9"][STEMS[0]]).mean(-1)
    assert change[label == 26].mean() > change[label != 26].mean()


def test_grids_and_strips_go_to_folders_of_their_own(p2phd: Command, run: Path, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    p2phd("generate", run, dataset, out, "--limit", 2, "--grid", "--all-codes", "road", "--all-codes", "car")
    assert sorted(p.name for p in out.iterdir()) == ["grids", "strips", *(f"{stem}.png" for stem in STEMS[:2])]
    assert sorted(p.name for p in (out / "grids").iterdir()) == [f"{stem}.png" for stem in STEMS[:2]]
    assert sorted(p.name for p in (out / "strips").iterdir()) == [
        f"{s}-{c}.png" for s in STEMS[:2] for c in ("car", "road")
    ]
    styles = len(FeatureClusters.load(run / "clusters.npz").classes[7].centres)
    assert read(out / "strips" / f"{STEMS[0]}-road.png").shape[1] >= (styles + 1) * 64


@pytest.mark.parametrize("size", [(32, 64), (33, 61), (5, 7), (1, 1), (50, 20)])
def test_any_size_comes_back_as_it_was(run: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    save(tmp_path / "labels" / "x.png", np.full(size, 7, np.uint8))
    (path,) = generate(run, tmp_path / "labels", tmp_path / "out")
    assert read(path).shape == (*size, 3)


def test_padding_does_not_reach_into_a_picture_that_fits(run: Path, dataset: Path) -> None:
    painter = Painter(run)
    label = read(dataset / "val" / "label" / f"{STEMS[0]}.png").astype(np.uint16)
    whole = painter.paint(label)
    assert whole.shape == (32, 64, 3)
    features = painter.features(label.astype(np.int32), {}, 0.0, None)[None]
    import tensorflow as tf

    direct = painter._generate(tf.constant(label, tf.int32)[None], tf.constant(label, tf.int32)[None], features)
    np.testing.assert_array_equal(whole, np.rint((direct[0].numpy().astype(np.float64) + 1) * 127.5).astype(np.uint8))


def test_without_clusters_the_code_is_zero_with_one_warning(
    p2phd: Command, run: Path, dataset: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "run"
    shutil.copytree(run, bare)
    (bare / "clusters.npz").unlink()
    outcome = p2phd("generate", bare, dataset, tmp_path / "out")
    assert outcome.code == 0 and outcome.err.count("warning:") == 1 and "no styles yet" in outcome.err
    zero = tmp_path / "zero"
    p2phd(
        "generate",
        bare,
        dataset,
        zero,
        *(f"--feature-code={c}=0,0,0" for c in ("road", "sidewalk", "building", "sky", "car")),
    )
    assert same(painted(tmp_path / "out"), painted(zero))


def test_the_gate(run: Path, dataset: Path) -> None:
    """feature = k · E(photo) + b, with k and b free per instance."""
    painter, spec = Painter(run), read_spec(dataset)
    example = read_example(dataset, spec, "val", spec.splits["val"][0])
    assert example.photo is not None and painter.model.encoder is not None
    ids = sorted(painter.instances(example.label, example.instance))
    rng = np.random.default_rng(0)
    codes = {i: rng.normal(size=3).astype(np.float32) for i in ids}
    gains = {i: float(rng.normal()) for i in ids}
    raw = painter.model.encoder(example.photo[None].astype(np.float32) / 127.5 - 1)[0].numpy()
    expected = np.empty_like(raw)
    for i in ids:
        own = example.instance == i
        expected[own] = gains[i] * raw[own].mean(0) + codes[i]
    features = painter.features(example.instance, codes, gains, example.photo)
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_photo_codes_are_a_gain_of_one(p2phd: Command, run: Path, dataset: Path, tmp_path: Path) -> None:
    classes = ("road", "sidewalk", "building", "sky", "car")
    p2phd("generate", run, dataset, tmp_path / "a", *(f"--feature-code={c}=photo" for c in classes))
    zeros = [f"--feature-code={c}=0,0,0" for c in classes]
    p2phd("generate", run, dataset, tmp_path / "b", "--feature-gain", "1", *zeros)
    assert same(painted(tmp_path / "a"), painted(tmp_path / "b"))
    painter, spec = Painter(run), read_spec(dataset)
    example = read_example(dataset, spec, "val", spec.splits["val"][0])
    again = painter.paint(example.label, example.instance, gains=1.0, photo=example.photo)
    np.testing.assert_array_equal(again, painted(tmp_path / "a")[STEMS[0]])


def test_hold_gives_one_style_to_a_video(run: Path, dataset: Path, tmp_path: Path) -> None:
    label = dataset / "val" / "label" / f"{STEMS[0]}.png"
    frames = tmp_path / "frames"
    for n in range(6):
        save(frames / f"{n}.png", read(label))
    from pix2pixhd_cli.settings import load_settings

    free = generate(run, frames, tmp_path / "a", load_settings({"generate": {"hold": False}}, run=run))
    held = generate(run, frames, tmp_path / "b", load_settings({"generate": {"hold": True}}, run=run))
    assert len({read(path).tobytes() for path in held}) == 1 < len({read(path).tobytes() for path in free})


def test_clustering_again_keeps_settings_and_names(p2phd: Command, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert p2phd("cluster", copy, "--clusters", 2, "--min-area", 0.001).code == 0
    assert p2phd("cluster", copy, "--name", "building:1=brick").code == 0
    clusters = FeatureClusters.load(copy / "clusters.npz")
    building = next(styles for i, styles in clusters.classes.items() if i == 11)
    assert len(building.centres) == 2 and building.names[1] == "brick"
    assert "asphalt" in clusters.classes[7].names
    assert read(copy / "clusters.png").ndim == 3
    first = (copy / "clusters.npz").read_bytes()
    cluster(copy)
    assert {k: v.names for k, v in FeatureClusters.load(copy / "clusters.npz").classes.items()} == {
        k: v.names for k, v in clusters.classes.items()
    }
    assert (copy / "clusters.npz").read_bytes() == first, "deterministic"


def test_clusters_without_the_packed_data_have_no_picture_but_a_warning(
    p2phd: Command, run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "clusters.png").unlink()
    codes = FeatureCodes.load(copy / "features.npz")
    from dataclasses import replace

    replace(codes, packed=np.array(str(tmp_path / "moved"))).save(copy / "features.npz")
    outcome = p2phd("cluster", copy)
    assert outcome.code == 0 and "no picture of the styles" in outcome.err
    assert not (copy / "clusters.png").exists()
