"""The perceptual loss: every kind of file, the same network in the same unit, and what is said when there is none."""

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf

from pix2pixhd_cli import perceptual_weights
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.model.perceptual import MEANS_BGR, Vgg, perceptual_loss
from pix2pixhd_cli.perceptual_weights import read_vgg
from pix2pixhd_cli.pipeline.train import train
from tests.conftest import Command, tiny_settings
from tests.test_state_dicts import Tensor, pickled, write_zip
from tests.test_training import metrics

COUNTS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


def weights(kind: int) -> dict[str, np.ndarray]:
    """Random VGG convolutions as `blockB_convC_{kernel,bias}`."""
    rng, channels, found = np.random.default_rng(0), 3, {}
    for block, (width, count) in enumerate(zip(WIDTHS, COUNTS[kind], strict=True), start=1):
        for n in range(1, count + 1):
            name = f"block{block}_conv{n}"
            found[f"{name}_kernel"] = (rng.normal(size=(3, 3, channels, width)) * np.sqrt(2 / 9 / channels)).astype(
                np.float32
            )
            found[f"{name}_bias"] = rng.normal(size=width).astype(np.float32) * 0.05
            channels = width
    return found


@pytest.fixture(scope="module", params=[16, 19])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same random weights as Keras' old and new files, as an npz and as torchvision's."""
    folder, arrays = tmp_path_factory.mktemp("vgg"), weights(request.param)
    np.savez(folder / "vgg.npz", **arrays)  # type: ignore[arg-type]
    with h5py.File(folder / "notop.h5", "w") as file:
        for name, array in arrays.items():
            layer, kind = name.rsplit("_", 1)
            file[f"{layer}/{layer}/{kind}:0"] = array
    with h5py.File(folder / "new.weights.h5", "w") as file:
        for n, array in enumerate(arrays.values()):
            layer = f"conv2d_{n // 2}" if n > 1 else "conv2d"
            file[f"layers/{layer}/vars/{n % 2}"] = array
    state, storages = {}, {}
    for n, array in enumerate(arrays.values()):
        value = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        state[f"features.{n // 2}.{'weight' if array.ndim == 4 else 'bias'}"] = Tensor(
            str(n), "FloatStorage", value.shape, value.size
        )
        storages[str(n)] = np.ascontiguousarray(value).tobytes()
    write_zip(folder / "vgg19-random.pth", pickled(state), storages)
    return {path.suffixes[0] + path.name[:3]: path for path in sorted(folder.iterdir())}


def activations(path: Path, picture: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(x) for x in read_vgg(str(path)).build()(tf.constant(picture))]


def test_every_kind_of_file_gives_its_network(files: dict[str, Path]) -> None:
    picture = np.random.default_rng(1).uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)
    npz, old, new, torchvision = (files[key] for key in (".npzvgg", ".h5not", ".weightsnew", ".pthvgg"))
    reference = activations(npz, picture)
    assert [x.shape[-1] for x in reference] == list(WIDTHS)
    for path in (old, new):
        for ours, theirs in zip(activations(path, picture), reference, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    # Caffe weights see pixels; fed pixels by hand, torchvision's reading of the same weights gives 127.5 times as much.
    pixels = (picture[..., ::-1] + 1) * 127.5 - np.array(MEANS_BGR, np.float32)
    for ours, theirs in zip(activations(torchvision, pixels), reference, strict=True):
        np.testing.assert_allclose(ours / 127.5, theirs, rtol=1e-4, atol=1e-4)


def test_caffe_activations_are_those_of_scaled_biases() -> None:
    """f(x; W, b) / s = f(x / s; W, b / s)."""
    arrays = list(weights(16).values())
    pairs = list(zip(arrays[::2], arrays[1::2], strict=True))
    picture = tf.constant(np.random.default_rng(2).uniform(-1, 1, (1, 32, 32, 3)), tf.float32)
    scaled = Vgg([(kernel, bias / 127.5) for kernel, bias in pairs], convolutions=13, caffe=False)
    small = tf.reverse(picture, [-1]) + 1 - tf.constant(MEANS_BGR) / 127.5
    for ours, theirs in zip(Vgg(pairs, convolutions=13, caffe=True)(picture), scaled(small), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_loss_is_zero_for_equal_pictures_and_its_gradient_spares_the_photo() -> None:
    arrays = list(weights(16).values())
    vgg = Vgg(list(zip(arrays[::2], arrays[1::2], strict=True)), convolutions=13, caffe=True)
    a, b = (tf.constant(np.random.default_rng(n).uniform(-1, 1, (1, 32, 32, 3)), tf.float32) for n in (1, 2))
    assert float(perceptual_loss(vgg, a, a)) == 0
    with tf.GradientTape() as tape:
        tape.watch([a, b])
        loss = perceptual_loss(vgg, a, b)
    to_fake, to_photo = tape.gradient(loss, [a, b])
    assert float(tf.reduce_max(tf.abs(to_fake))) > 0 and to_photo is None


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pix2pixhd_cli.pipeline.train.cached_imagenet", lambda: tmp_path / "none.h5")


def test_a_run_trains_with_it_and_records_the_file(packed: Path, tmp_path: Path, no_cache: None) -> None:
    del no_cache
    path = tmp_path / "vgg.npz"
    np.savez(path, **weights(16))  # type: ignore[arg-type]
    run = tmp_path / "run"
    settings = tiny_settings(train={"epochs": 1, "decay_epochs": 0, "perceptual_weights": str(path)})
    train(packed, run, settings)
    assert all(line["g_vgg"] > 0 for line in metrics(run))
    recorded = json.loads((run / "sources.json").read_text())["perceptual"]
    assert recorded == {"file": "vgg.npz", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert json.loads((run / "settings.json").read_text())["loss"]["perceptual"] == 10.0


def test_left_unset_it_is_off_and_one_line_says_how_to_have_it(
    p2phd: Command, packed: Path, tmp_path: Path, no_cache: None
) -> None:
    del no_cache
    flags = ["--generator-filters", 4, "--generator-blocks", 1, "--discriminator-filters", 4]
    outcome = p2phd("train", packed, tmp_path / "run", "--dry-run", *flags)
    assert outcome.code == 0
    assert outcome.out.count("the perceptual loss is off; --perceptual-weights imagenet") == 1


def test_left_unset_it_is_on_where_the_download_is_cached(
    p2phd: Command, packed: Path, tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pix2pixhd_cli.pipeline.train.cached_imagenet", lambda: files[".h5not"])
    flags = ["--generator-filters", 4, "--generator-blocks", 1, "--discriminator-filters", 4]
    outcome = p2phd("train", packed, tmp_path / "run", "--dry-run", *flags)
    assert outcome.code == 0 and f"the perceptual loss is on, with {files['.h5not']}" in outcome.out


def test_asked_for_without_weights_it_is_an_error(p2phd: Command, packed: Path, tmp_path: Path, no_cache: None) -> None:
    del no_cache
    outcome = p2phd("train", packed, tmp_path / "run", "--loss-perceptual", "10")
    assert outcome.code == 2 and "--loss-perceptual 10 needs --perceptual-weights" in outcome.err


def test_off_line_one_line_says_how_to_give_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    def fail(*_: object, **__: object) -> None:
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.utils, "get_file", fail)
    with pytest.raises(P2PHDError, match=r"imagenet: cannot be downloaded \(URL fetch failure\); give a file"):
        read_vgg("imagenet")
    assert perceptual_weights.cached_imagenet().name.startswith("vgg19")


def test_bad_files(tmp_path: Path) -> None:
    few = dict(list(weights(16).items())[:8])
    np.savez(tmp_path / "few.npz", **few)  # type: ignore[arg-type]
    with pytest.raises(P2PHDError, match="has 4 convolutions; VGG16 has 13 and VGG19 has 16"):
        read_vgg(str(tmp_path / "few.npz"))
    wrong = weights(16) | {"block1_conv1_kernel": np.zeros((3, 3, 4, 64), np.float32)}
    np.savez(tmp_path / "wrong.npz", **wrong)  # type: ignore[arg-type]
    with pytest.raises(P2PHDError, match=r"convolution 1 is \(3, 3, 4, 64\), not \(3, 3, 3, 64\)"):
        read_vgg(str(tmp_path / "wrong.npz"))
    (tmp_path / "junk.h5").write_bytes(b"junk")
    with h5py.File(tmp_path / "name.h5", "w") as file:
        file[b"\xff\xfe"] = np.zeros((3, 3, 3, 4), np.float32)  # A name that is no text.
    for name, message in (
        ("junk.h5", "damaged"),
        ("name.h5", "damaged"),
        ("none.h5", "no such file"),
        ("a.txt", "no such file"),
    ):
        with pytest.raises(P2PHDError, match=message):
            read_vgg(str(tmp_path / name))


REAL = Path(__file__).parents[2] / "shared" / "weights" / "vgg16_imagenet_caffe_f16.npz"


def test_real_weights_see_more_in_another_picture_than_in_noise() -> None:
    if not REAL.exists():
        pytest.skip("the real VGG16 is not here")
    vgg = read_vgg(str(REAL)).build()
    rng = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(rng.normal(size=(1, 64, 64, 3)), 1), 2)
    photo = tf.constant(smooth / np.abs(smooth).max(), tf.float32)
    noisy = photo + tf.constant(rng.normal(size=photo.shape) * 0.01, tf.float32)
    assert float(perceptual_loss(vgg, noisy, photo)) < float(perceptual_loss(vgg, photo[:, ::-1], photo))


ROOT = Path(__file__).parents[1]
NARROW: dict[str, dict[str, Any]] = {
    "generator": {"filters": 4, "blocks": 1},
    "discriminator": {"filters": 4},
    "encoder": {"filters": 4},
    "train": {"epochs": 1, "decay_epochs": 0, "fixed_global_epochs": 0},
}


@pytest.mark.slow
def test_the_papers_recipes_take_a_step(city: Path, tmp_path: Path) -> None:
    """Narrow networks on one small street, the second stage from the first, all other settings as the recipes have them."""
    from pix2pixhd_cli.pipeline.pack import pack
    from pix2pixhd_cli.pipeline.prepare import prepare
    from pix2pixhd_cli.settings import load_settings

    path = tmp_path / "vgg.npz"
    np.savez(path, **weights(16))  # type: ignore[arg-type]
    narrow = {**NARROW, "train": {**NARROW["train"], "perceptual_weights": str(path)}}
    for name, width, source in (("cityscapes_512p", 64, None), ("cityscapes_1024p", 128, tmp_path / "cityscapes_512p")):
        recipe = ROOT / "examples" / f"{name}.toml"
        if source is not None:
            narrow = {**narrow, "generator": {**narrow["generator"], "filters": 2}}
            narrow["train"] = {**narrow["train"], "fixed_global_epochs": 1}
        settings = load_settings({**narrow, "prepare": {"width": width, "limit": 1}}, recipe)
        prepare(city, tmp_path / f"{name}_ds", settings)
        pack(tmp_path / f"{name}_ds", tmp_path / f"{name}_packed")
        train(tmp_path / f"{name}_packed", tmp_path / name, settings, init_from=source)
        (line,) = metrics(tmp_path / name)
        assert line["g_vgg"] > 0 and line["g_feat"] > 0
