"""`evaluate`: its numbers again from the pictures that `generate` paints, networks of every kind, and what it refuses."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pix2pixhd_cli import images, mirror
from pix2pixhd_cli.data.dataset import Example, read_example, read_spec
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.evaluation import Evaluation, Row, read_evaluations
from pix2pixhd_cli.features import FeatureClusters
from pix2pixhd_cli.images import read_sheet
from pix2pixhd_cli.judges import read_network, read_segmenter
from pix2pixhd_cli.metrics import kernel_distance
from pix2pixhd_cli.model.perceptual import perceptual_loss
from pix2pixhd_cli.painting import Painter
from pix2pixhd_cli.perceptual_weights import read_vgg
from pix2pixhd_cli.pipeline.evaluate import evaluate
from pix2pixhd_cli.pipeline.generate import generate
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.settings import load_settings
from tests.conftest import Command, read, tree
from tests.test_images import cell
from tests.test_perceptual import weights

# What the segmenter here calls 0 to 4, by colour, and which classes these are.
PALETTE = np.array([[80, 80, 88], [190, 180, 170], [150, 110, 90], [150, 190, 230], [200, 40, 40]], np.float32)
NAMES = ("road", "sidewalk", "building", "sky", "car")


def nearest(picture: NDArray[np.uint8]) -> NDArray[np.integer]:
    """The nearest colour's number, [H, W]."""
    return np.square(picture[:, :, None].astype(float) - PALETTE).sum(-1).argmin(-1)


def segmenter_model(height: int | None = 32, width: int | None = 64) -> keras.Model:
    """The same as a network: 2 c · x - c² is largest for the nearest colour c."""
    given = keras.Input((height, width, 3))
    model = keras.Model(given, keras.layers.Conv2D(len(PALETTE), 1)(given))
    model.layers[-1].set_weights([2 * PALETTE.T[None, None], -np.square(PALETTE).sum(1)])
    return model


def feature_model() -> keras.Model:
    given = keras.Input((16, 32, 3))
    keras.utils.set_random_seed(3)
    return keras.Model(given, keras.layers.Conv2D(5, 3, activation="relu")(given))


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a segmenter, its table, a feature network and a VGG."""
    folder = tmp_path_factory.mktemp("judges")
    segmenter_model().save(folder / "segmenter.keras")
    feature_model().save(folder / "features.keras")
    np.savez(folder / "vgg.npz", **weights(16))  # type: ignore[arg-type]
    lines = [f"{number},{name}" for number, name in enumerate(NAMES)]
    (folder / "table.csv").write_text("\n".join(["number,class", *lines]))
    return folder


def chosen(judges: Path) -> list[object]:
    return [
        "--perceptual-weights", judges / "vgg.npz", "--features", judges / "features.keras", "--segmenter",
        judges / "segmenter.keras", "--segmenter-input", "0..255", "--segmenter-classes", judges / "table.csv",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def examples(dataset: Path) -> list[Example]:
    spec = read_spec(dataset)
    return [read_example(dataset, spec, "val", entry) for entry in spec.entries("val")]


@pytest.fixture
def painted(run: Path, dataset: Path, tmp_path: Path) -> Callable[..., list[NDArray[np.uint8]]]:
    """What `generate` paints of the split with flags."""

    def paint(*codes: str, seed: int = 0) -> list[NDArray[np.uint8]]:
        out = tmp_path / "-".join(["out", *codes, str(seed)])
        settings = load_settings({"generate": {"feature_code": codes, "seed": seed}}, run=run)
        return [np.asarray(read(path), np.uint8) for path in generate(run, dataset, out, settings)]

    return paint


@pytest.fixture
def evaluated(p2phd: Command, run: Path, dataset: Path, judges: Path, tmp_path: Path) -> tuple[Evaluation, str]:
    copy = shutil.copytree(run, tmp_path / "run")
    outcome = p2phd("evaluate", copy, dataset, *chosen(judges))
    assert outcome.code == 0, outcome.err
    (found,) = read_evaluations(copy)
    return found, outcome.out


def row(found: Evaluation, metric: str, codes: str) -> Row:
    (wanted,) = (one for one in found.rows if one.metric.startswith(metric) and one.codes == codes)
    return wanted


def distances(judges: Path, pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> list[float]:
    vgg = read_vgg(str(judges / "vgg.npz")).build()
    as_floats = [[tf.constant(one[None] / np.float32(127.5) - 1) for one in pair] for pair in pairs]
    return [float(perceptual_loss(vgg, a, b)) for a, b in as_floats]


def test_every_number_is_that_of_the_pictures(
    evaluated: tuple[Evaluation, str],
    painted: Callable[..., list[NDArray[np.uint8]]],
    examples: list[Example],
    judges: Path,
    run: Path,
    dataset: Path,
) -> None:
    found, printed = evaluated
    photos = [example.photo for example in examples if example.photo is not None]
    reconstructed, sampled, others = painted("*=photo"), painted(), painted(seed=1)

    # Reconstruction.
    of_each = [peak_signal_noise_ratio(*pair) for pair in zip(photos, reconstructed, strict=True)]
    assert row(found, "PSNR", "photo").value == pytest.approx(np.mean(of_each))
    assert found.examples == pytest.approx(dict(zip([e.stem for e in examples], of_each, strict=True)))
    likeness = [
        structural_similarity(*pair, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1)
        for pair in zip(photos, reconstructed, strict=True)
    ]
    assert row(found, "SSIM", "photo").value == pytest.approx(np.mean(likeness), abs=1e-5)
    expected = np.mean(distances(judges, list(zip(reconstructed, photos, strict=True))))
    assert row(found, "perceptual distance", "photo").value == pytest.approx(expected, rel=1e-5)

    # Distribution.
    def features(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.floating]:
        small = [np.asarray(Image.fromarray(p).resize((32, 16), Image.Resampling.BICUBIC)) for p in pictures]
        return np.asarray(feature_model()(np.stack(small) / np.float32(127.5) - 1)).mean((1, 2))

    for codes, pictures in (("photo", reconstructed), ("sampled", sampled)):
        estimate = kernel_distance(features(photos), features(pictures))
        distance = row(found, "kernel distance", codes)
        assert distance.value == pytest.approx(1000 * estimate.value, rel=1e-3)
        assert distance.deviation == pytest.approx(1000 * estimate.deviation, rel=1e-3)
        assert distance.protocol["network"] == "features.keras" and distance.protocol["resize"] == "16x32, bicubic"

    # Semantics, beside the photos' own.
    ids = np.array([read_spec(run).class_named(name).id for name in NAMES])  # type: ignore[union-attr]
    for codes, pictures in (("photo", reconstructed), ("sampled", sampled), ("real", photos)):
        truth = np.concatenate([example.label.ravel() for example in examples])
        seen = np.concatenate([ids[nearest(picture)].ravel() for picture in pictures])
        known = np.isin(truth, ids)
        assert row(found, "pixel accuracy", codes).value == pytest.approx(np.mean(truth[known] == seen[known]))
        iou = {
            name: np.sum((truth == i) & (seen == i)) / np.sum(known & ((truth == i) | (seen == i)))
            for name, i in zip(NAMES, ids.tolist(), strict=True)
        }
        assert row(found, "mean IoU", codes).by_class == pytest.approx(iou)
        assert row(found, "mean IoU", codes).value == pytest.approx(np.mean(list(iou.values())))
    assert {confusion.codes for confusion in found.confusions} == {"photo", "sampled", "real"}

    # Diversity and control.
    expected = np.mean(distances(judges, list(zip(sampled, others, strict=True))))
    assert row(found, "diversity", "sampled").value == pytest.approx(expected, rel=1e-5)
    own, elsewhere = control(painted, examples, run)
    assert row(found, "control: change own class", "sampled").by_class == pytest.approx(own)
    assert row(found, "control: change elsewhere", "sampled").by_class == pytest.approx(elsewhere)

    # The sheet of pictures, and what is seen in them.
    folder = run_of(printed)
    sheet = read_sheet(found.path(folder, ".png"))
    titles = ("photo", "codes: photo", "codes: sampled")
    assert sheet.places.columns == ("label", *(one for title in titles for one in (title, f"seen in {title}")))
    assert sheet.places.names == tuple(example.stem for example in examples)
    for number, of_example in enumerate(zip(photos, reconstructed, sampled, strict=True)):
        for column, picture in zip((1, 3, 5), of_example, strict=True):
            assert np.array_equal(cell(sheet, number, column), picture)
            assert len(np.unique(cell(sheet, number, column + 1).reshape(-1, 3), axis=0)) <= len(NAMES)

    # Each class in all its styles, where there is most of it.
    strips = read_sheet(found.path(folder, "-strips.png"))
    cars = strips.places.names.index("car")
    most = max(examples, key=lambda example: int((example.label == 26).sum()))
    captions = [place.caption for place in strips.places.cells[cars] if place is not None]
    styles = FeatureClusters.load(run / "clusters.npz").classes[26]
    assert captions == [most.stem, *(styles.title(n) for n in range(len(styles.centres)))] and "0 red" in captions
    (picture,) = (one for e, one in zip(examples, painted("car=1"), strict=True) if e is most)
    assert np.array_equal(cell(strips, cars, 2), images.fit_width(picture, 256))

    # What it takes to find the same again.
    assert found.arguments == (str(dataset), *map(str, chosen(judges)))

    assert found.step == 6 and found.left_out == {} and "SSIM" in printed and "left out" not in printed


def run_of(printed: str) -> Path:
    """The run that evaluations were written into."""
    line = next(line for line in printed.splitlines() if line.startswith("wrote "))
    return Path(line.removeprefix("wrote ").partition(";")[0]).parents[1]


def control(
    painted: Callable[..., list[NDArray[np.uint8]]], examples: list[Example], run: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """How far the two commonest styles of each class part, in its pixels and in all others."""
    inside, outside = {}, {}
    for identity, styles in FeatureClusters.load(Run(run).clusters).classes.items():
        name = read_spec(run).class_name(identity)
        pair = np.argsort(-styles.counts, kind="stable")[:2].tolist()
        if len(pair) < 2 or not any((example.label == identity).any() for example in examples):
            continue
        one, other = (painted(f"{identity}={n}") for n in pair)
        parts = [
            (np.abs(a.astype(float) - b).mean(-1), example.label == identity)
            for a, b, example in zip(one, other, examples, strict=True)
            if (example.label == identity).any()
        ]
        inside[name] = float(np.mean([change[own].mean() for change, own in parts]))
        outside[name] = float(np.mean([change[~own].mean() for change, own in parts]))
    return inside, outside


def test_what_has_no_judge_is_left_out(p2phd: Command, begun: Path, dataset: Path) -> None:
    outcome = p2phd("evaluate", begun, dataset, "--limit", 2)
    assert outcome.code == 0
    (found,) = read_evaluations(begun)
    assert [(one.metric, one.codes) for one in found.rows] == [("PSNR (dB)", "photo"), ("SSIM", "photo")]
    assert found.rows[0].protocol == {"size": "32x64", "pictures": "2"}
    for line in (
        "left out: sampled codes, diversity and control; `p2phd encode` and `p2phd cluster` make styles to sample from",
        "left out: perceptual distance; --perceptual-weights adds it",
        "left out: kernel and Fréchet distance; --features or --perceptual-weights adds them",
        "left out: pixel accuracy and mean IoU; --segmenter adds them",
    ):
        assert line in outcome.out


def test_too_few_pictures_and_missing_judges_are_told(run: Path, dataset: Path, judges: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    found: list[Evaluation] = []
    for chosen in ({"perceptual_weights": str(judges / "vgg.npz")}, {}):
        found += evaluate(copy, dataset, load_settings({"evaluate": {"limit": 2, **chosen}}, run=copy))
    assert found[0].left_out["kernel and Fréchet distance"] == "3 pictures and more add them"
    assert "diversity" not in found[0].left_out
    assert found[1].left_out["diversity"] == "--perceptual-weights adds it"


def test_checkpoints(p2phd: Command, begun: Path, dataset: Path) -> None:
    model = (begun / "model" / "weights.npz").read_bytes()
    outcome = p2phd("evaluate", begun, dataset, "--checkpoint", "all", "--split", "val")
    assert outcome.code == 0 and "By step (* is the best)" in outcome.out
    second, fourth = read_evaluations(begun)
    assert (second.step, fourth.step) == (2, 4) and second.rows[0].value != fourth.rows[0].value
    assert (begun / "model" / "weights.npz").read_bytes() == model
    values = {one.step: one.rows[0].value for one in (second, fourth)}
    best = max(values, key=lambda step: values[step])
    line = next(line for line in outcome.out.splitlines() if line.startswith("│ PSNR") and "*" in line)
    assert f"{values[best]:.4g} *" in line and line.count("*") == 1
    shutil.rmtree(begun / "evaluation")
    assert p2phd("evaluate", begun, dataset, "--checkpoint", "2").code == 0
    assert read_evaluations(begun)[0].rows == second.rows
    settings = load_settings({"evaluate": {"checkpoint": "best"}}, run=begun)
    (found,) = evaluate(begun, dataset, settings)
    assert f"step-{found.step:08d}" == Run(begun).best_checkpoint().name  # type: ignore[union-attr]
    painter = Painter(begun, checkpoint=begun / "checkpoints/step-00000002")
    assert painter.step == 2 and painter.mark.startswith("step 2, ")
    outcome = p2phd("evaluate", begun, dataset, "--checkpoint", "3")
    assert outcome.code == 1
    assert "--checkpoint 3: there is no such checkpoint; there are all, best, and steps 2, 4" in outcome.err


def test_styles_of_another_step_are_not_sampled(run: Path, dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    settings = load_settings({"evaluate": {"checkpoint": "all", "limit": 1}}, run=copy)
    found = evaluate(copy, dataset, settings)
    assert [any(one.codes == "sampled" for one in each.rows) for each in found] == [False, True]
    assert found[0].left_out["sampled codes, diversity and control"] == "the styles are those of step 6"


def test_a_run_at_a_url(run: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    fetched, original = [], mirror._found

    def watch(*arguments: Any) -> list[str]:
        fetched.extend(found := original(*arguments))
        return found

    monkeypatch.setattr(mirror, "_found", watch)
    evaluate(f"file://{copy}", dataset, load_settings({"evaluate": {"limit": 1}}, run=copy))
    assert [one.step for one in read_evaluations(copy)] == [6]
    assert not any("checkpoints/" in name for name in fetched), "they are large, and were not asked for"


# Networks from files.


def as_saved_model(folder: Path) -> Path:
    segmenter_model().export(folder / "saved", verbose=False)
    return folder / "saved"


def as_tflite(folder: Path) -> Path:
    path = folder / "segmenter.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(as_saved_model(folder))).convert())
    return path


def as_onnx(folder: Path) -> Path:
    """With channels before places, as PyTorch writes it."""
    kernel, bias = 2 * PALETTE[:, :, None, None], -np.square(PALETTE).sum(1)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        "segmenter",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", len(PALETTE), 32, 64])],
        [onnx.numpy_helper.from_array(kernel, "w"), onnx.numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "segmenter.onnx")
    return folder / "segmenter.onnx"


def as_keras(sides: tuple[int | None, int | None]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        segmenter_model(*sides).save(folder / "segmenter.keras")
        return folder / "segmenter.keras"

    return write


def test_a_segmenter_says_how_far_it_enlarges(
    run: Path, dataset: Path, judges: Path, evaluated: tuple[Evaluation, str], tmp_path: Path
) -> None:
    assert "beware" not in row(evaluated[0], "pixel accuracy", "real").protocol
    values = {
        "segmenter": str(as_keras((128, 40))(tmp_path)), "segmenter_input": "0..255", "limit": 1,
        "segmenter_classes": str(judges / "table.csv"),
    }  # fmt: skip
    copy = shutil.copytree(run, tmp_path / "other")
    (found,) = evaluate(copy, dataset, load_settings({"evaluate": values}, run=copy))
    beware = "it sees pictures 4.0 times enlarged, and may judge their noise"
    assert row(found, "pixel accuracy", "real").protocol["beware"] == beware


@pytest.mark.parametrize(
    "make",
    [as_saved_model, as_tflite, as_onnx, as_keras((None, None)), as_keras((32, 32)), as_keras((32, 40))],
    ids=["saved model", "tflite", "onnx", "of any size", "in two pieces", "in pieces that overlap"],
)
def test_segmenters_of_all_kinds(
    make: Callable[[Path], Path], dataset: Path, judges: Path, examples: list[Example], tmp_path: Path
) -> None:
    spec = read_spec(dataset)
    segmenter = read_segmenter(make(tmp_path), "0..255", str(judges / "table.csv"), spec)
    ids = np.array([spec.class_named(name).id for name in NAMES])  # type: ignore[union-attr]
    assert segmenter.known == sorted(ids)
    for example in examples[:2]:
        assert example.photo is not None
        assert np.array_equal(segmenter(example.photo), ids[nearest(example.photo)])


def test_a_larger_segmenter_sees_the_picture_enlarged(dataset: Path, judges: Path, tmp_path: Path) -> None:
    segmenter = read_segmenter(as_keras((96, 96))(tmp_path), "0..255", str(judges / "table.csv"), read_spec(dataset))
    picture = np.repeat(np.repeat(PALETTE[[0, 3, 4, 1]].astype(np.uint8)[None], 20, 0), 10, 1)
    seen = segmenter(picture)
    ids = [read_spec(dataset).class_named(NAMES[n]).id for n in (0, 3, 4, 1)]  # type: ignore[union-attr]
    assert seen.shape == (20, 40)
    assert [np.bincount(seen[:, 10 * n + 3 : 10 * n + 7].ravel()).argmax() for n in range(4)] == ids


@pytest.mark.parametrize(("unit", "expected"), [("-1..1", 1.0), ("0..1", 1.0), ("0..255", 255.0), ("imagenet", 2.64)])
def test_what_networks_are_fed(unit: Any, expected: float, tmp_path: Path) -> None:
    given = keras.Input((4, 4, 3))
    keras.Model(given, keras.layers.Identity()(given)).save(tmp_path / "same.keras")
    network = read_network(tmp_path / "same.keras", unit, "--features")
    assert network.apply(np.full((1, 4, 4, 3), 255, np.uint8))[..., 2] == pytest.approx(expected, abs=1e-6)


def test_cityscapes_own_numbers(dataset: Path, judges: Path) -> None:
    spec = read_spec(dataset)
    segmenter = read_segmenter(judges / "segmenter.keras", "0..255", "cityscapes", spec)
    names = [spec.class_name(identity) for _, identity in sorted(segmenter.classes.items())]
    assert len(names) == 19 and (names[0], names[10], names[13]) == ("road", "sky", "car")
    same = read_segmenter(judges / "segmenter.keras", "0..255", None, spec)
    assert same.classes == {c.id: c.id for c in spec.classes}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,road\n0,sky", "'0,sky' is no NUMBER,CLASS, or a number for the second time"),
        ("0,moon", "'0,moon' is no NUMBER,CLASS"),
        ("road", "'road' is no NUMBER,CLASS"),
        ("x,road", "'x,road' is no NUMBER,CLASS"),
        ("number,class\n", "maps nothing"),
    ],
)
def test_tables_that_map_nothing(text: str, message: str, judges: Path, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(P2PHDError, match=f"--segmenter-classes .*table.csv: {message}"):
        read_segmenter(judges / "segmenter.keras", "0..255", str(tmp_path / "table.csv"), read_spec(dataset))


def test_files_that_are_no_judges(p2phd: Command, begun: Path, dataset: Path, judges: Path, tmp_path: Path) -> None:
    (tmp_path / "rubbish.keras").write_bytes(b"rubbish")
    (tmp_path / "rubbish.tflite").write_bytes(b"rubbish")
    given = keras.Input((7,))
    keras.Model(given, keras.layers.Dense(2)(given)).save(tmp_path / "flat.keras")
    before = tree(begun)
    for flags, message in (
        (("--segmenter", "no.tflite"), "--segmenter no.tflite: no such file or folder"),
        (("--segmenter", judges / "table.csv"), "is no SavedModel's folder, and no .keras, .tflite or .onnx file"),
        (("--segmenter", tmp_path / "rubbish.keras"), "rubbish.keras: cannot be loaded"),
        (("--features", tmp_path / "rubbish.tflite"), "rubbish.tflite: cannot be loaded"),
        (("--features", tmp_path / "flat.keras"), "takes [None, 7] instead of pictures [B, H, W, 3]"),
        (("--perceptual-weights", "no.npz"), "--perceptual-weights no.npz: no such file"),
        (("--split", "test"), "there is no split 'test' here"),
    ):
        outcome = p2phd("evaluate", begun, dataset, *flags)
        assert outcome.code == 1 and message in outcome.err and "Traceback" not in outcome.err, outcome.err
    assert tree(begun) == before


def test_photos_are_needed(p2phd: Command, begun: Path, dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    spec = json.loads((copy / "dataset.json").read_text())
    spec["checksum"] = None
    spec["splits"]["val"][0]["photo"] = None
    (copy / "dataset.json").write_text(json.dumps(spec))
    outcome = p2phd("evaluate", begun, copy)
    assert outcome.code == 0 and "1 example of 'val' without a photo left out" in outcome.err
    assert read_evaluations(begun)[0].rows[0].protocol["pictures"] == "2"
    for entry in spec["splits"]["val"]:
        entry["photo"] = None
    (copy / "dataset.json").write_text(json.dumps(spec))
    outcome = p2phd("evaluate", begun, copy)
    assert outcome.code == 1 and "no example of 'val' has a photo to compare pictures with" in outcome.err
