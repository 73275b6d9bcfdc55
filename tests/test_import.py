"""The reference's checkpoints become runs that paint the reference's pictures."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pix2pixhd_cli.data.state_dicts import read_state_dict
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.model.generators import GlobalGenerator
from pix2pixhd_cli.painting import Painter
from pix2pixhd_cli.pipeline.import_ import import_checkpoint
from pix2pixhd_cli.reference import assign, check_names, generator_layers, infer_generator
from pix2pixhd_cli.settings import load_settings
from tests.conftest import Command, read, save, tiny_settings
from tests.test_state_dicts import Evil, write_zip

GOLDEN = Path(__file__).parent / "golden"
MANIFEST: dict[str, dict[str, Any]] = json.loads((GOLDEN / "manifest.json").read_text())
TRAINED = [case for case, config in MANIFEST.items() if "netG" in config]
CAMVID = Path(__file__).parents[2] / "shared" / "weights" / "camvid_reference"


def lay_out(case: str, folder: Path, *, options: bool = True) -> Path:
    """A golden case's files as the reference leaves them."""
    folder.mkdir(parents=True)
    for letter in "GDE":
        source = GOLDEN / f"{case}_net_{letter}.pth"
        if source.exists():
            shutil.copy(source, folder / f"latest_net_{letter}.pth")
    if options:
        lines = [f"{key}: {value}" for key, value in MANIFEST[case].items()]
        (folder / "opt.txt").write_text(
            "\n".join(["------------ Options -------------", *lines, "-------------- End ----------------"])
        )
    return folder


@pytest.fixture(params=TRAINED)
def imported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    run = tmp_path / "run"
    import_checkpoint(lay_out(request.param, tmp_path / "checkpoint"), run)
    return request.param, run


def first_step(case: str) -> dict[str, Any]:
    with np.load(GOLDEN / f"{case}.npz") as file:
        return {name: file[name][0] for name in ("label", "inst", "image")} | {"fake": file["initial_fake"]}


def test_settings_are_read_off_the_shapes(imported: tuple[str, Path]) -> None:
    case, run = imported
    config, settings = MANIFEST[case], load_settings(run=run)
    generator, discriminator = settings.generator, settings.discriminator
    assert (generator.kind, generator.filters) == (config["netG"], config["ngf"])
    assert (generator.downsamplings, generator.blocks) == (config["n_downsample_global"], config["n_blocks_global"])
    if config["netG"] == "local":
        assert (generator.enhancers, generator.local_blocks) == (config["n_local_enhancers"], config["n_blocks_local"])
    assert (discriminator.filters, discriminator.layers) == (config["ndf"], config["n_layers_D"])
    assert discriminator.scales == config["num_D"]
    assert settings.encoder.enabled is config["instance_feat"]
    assert settings.loss.gan == ("vanilla" if config["no_lsgan"] else "lsgan")
    assert settings.loss.feature_matching == (0.0 if config["no_ganFeat_loss"] else config["lambda_feat"])
    assert json.loads((run / "dataset.json").read_text())["labels"] == config["label_nc"]


def test_an_imported_run_paints_the_references_picture(imported: tuple[str, Path]) -> None:
    case, run = imported
    vectors, painter = first_step(case), Painter(run)
    for label, instance, image, fake in zip(*vectors.values(), strict=True):
        gain, photo = (1.0, image) if painter.channels else (0.0, None)
        painted = painter.paint_float(label, instance, gains=gain, photo=photo)
        np.testing.assert_allclose(painted, fake, rtol=0, atol=2e-5)


def test_the_command_paints_it_within_one_level(p2phd: Command, imported: tuple[str, Path], tmp_path: Path) -> None:
    case, run = imported
    vectors = first_step(case)
    save(tmp_path / "labels" / "a.png", vectors["label"][0].astype(np.uint8))
    save(tmp_path / "instances" / "a.png", vectors["inst"][0].astype(np.uint16))
    choices: list[object] = []
    if load_settings(run=run).encoder.enabled:
        found = Painter(run).model.raw_features(vectors["image"][:1])[0].numpy()
        for i in np.unique(vectors["inst"][0]):
            code = ",".join(f"{n:.8f}" for n in found[vectors["inst"][0] == i].mean(0))
            choices += ["--feature-code", f"instance:{i}={code}"]
    flags = ["--instance-map", tmp_path / "instances", *choices]
    outcome = p2phd("generate", run, tmp_path / "labels", tmp_path / "out", *flags)
    assert outcome.code == 0, outcome.err
    expected = np.clip((vectors["fake"][0] + 1) * 127.5, 0, 255)
    assert np.abs(read(tmp_path / "out" / "a.png") - expected).max() <= 1


def test_the_real_checkpoint_gives_its_expected_pictures(tmp_path: Path) -> None:
    if not CAMVID.exists():
        pytest.skip("the real checkpoint is not here")
    import_checkpoint(CAMVID, tmp_path / "run", ignore_id=(11,))
    painter = Painter(tmp_path / "run")
    for path in sorted((CAMVID / "expected").glob("*_label.png")):
        expected = read(path.with_name(path.name.replace("_label", "")))
        assert np.abs(painter.paint(read(path).astype(int)).astype(int) - expected).max() <= 1


def test_void_ids_of_an_imported_run_are_painted_with_a_warning(p2phd: Command, tmp_path: Path) -> None:
    """The reference knows no ignored ids: what lies past its labels is all-zero."""
    run = tmp_path / "run"
    import_checkpoint(lay_out("train_labels_only", tmp_path / "checkpoint"), run)
    save(tmp_path / "x.png", np.full((32, 48), 8, np.uint8))
    outcome = p2phd("generate", run, tmp_path / "x.png", tmp_path / "out")
    assert outcome.code == 0 and outcome.err.count("warning: ids 8 are no class of") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("label_nc: eight", "label_nc is 'eight', which is no number it can be"),
        ("lambda_feat: -1", "lambda_feat is '-1', which is no number it can be"),
        ("ngf: 64", r"opt.txt says ngf 64, but net_G.pth has 4"),
        ("netG: local", r"opt.txt says netG local, but net_G.pth has global"),
        ("num_D: 3", r"opt.txt says num_D 3, but net_D.pth has 2"),
    ],
)
def test_opt_txt_that_contradicts_the_shapes_is_refused(tmp_path: Path, line: str, message: str) -> None:
    checkpoint = lay_out("train_labels_only", tmp_path / "checkpoint", options=False)
    (checkpoint / "opt.txt").write_text(f"{line}   [default: x]\n")
    with pytest.raises(P2PHDError, match=message):
        import_checkpoint(checkpoint, tmp_path / "run")


def test_pooling_by_label_is_taken_from_opt_txt(tmp_path: Path) -> None:
    checkpoint = lay_out("train_instance_features", tmp_path / "checkpoint", options=False)
    (checkpoint / "opt.txt").write_text("label_feat: True\n")
    import_checkpoint(checkpoint, tmp_path / "run")
    assert load_settings(run=tmp_path / "run").encoder.pooling == "label"


def test_an_imported_run_can_be_trained_on_but_not_resumed(packed: Path, tmp_path: Path) -> None:
    from pix2pixhd_cli.pipeline.train import train

    given = tmp_path / "given"
    train(packed, given, tiny_settings(encoder={"enabled": False}, train={"epochs": 1, "decay_epochs": 0}))
    checkpoint = export_state_dicts(given, tmp_path / "checkpoint")
    import_checkpoint(checkpoint, tmp_path / "run")
    label = np.full((32, 64), 7)
    np.testing.assert_allclose(
        Painter(tmp_path / "run").paint_float(label), Painter(given).paint_float(label), atol=1e-6
    )
    again = tiny_settings(encoder={"enabled": None}, train={"learning_rate": 1e-12, "epochs": 1, "decay_epochs": 0})
    train(packed, tmp_path / "again", again, init_from=tmp_path / "run")
    np.testing.assert_allclose(
        Painter(tmp_path / "again").paint_float(label), Painter(given).paint_float(label), atol=1e-4
    )
    with pytest.raises(P2PHDError, match="is imported; train a new run from it with --init-from"):
        train(packed, tmp_path / "run", load_settings(run=tmp_path / "run", resume=True), resume=True)


def export_state_dicts(run: Path, folder: Path) -> Path:
    """Write a tiny global run the way the reference would: the reverse of the importer, for this test alone."""
    from tests.test_coarse_to_fine import built
    from tests.test_state_dicts import Tensor, pickled

    folder.mkdir()
    model = built(run)
    names = {"G": [1, 4, 7, "10.conv_block.1", "10.conv_block.5", 11, 14, 18]}
    assert model.discriminator is not None
    scales = len(model.discriminator.discriminators)
    layers = len(model.discriminator.discriminators[0].stages)
    names["D"] = [f"scale{scales - 1 - s}_layer{n}.0" for s in range(scales) for n in range(layers)]
    for letter, network in (("G", model.generator), ("D", model.discriminator)):
        prefix = "model." if letter == "G" else ""
        state, storages = {}, {}
        for n, weight in enumerate(network.weights):
            value = weight.numpy()
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
            name = f"{prefix}{names[letter][n // 2]}.{'bias' if n % 2 else 'weight'}"
            state[name] = Tensor(str(n), "FloatStorage", value.shape, value.size)
            storages[str(n)] = np.ascontiguousarray(value).tobytes()
        write_zip(folder / f"latest_net_{letter}.pth", pickled(state), storages)
    return folder


def test_flags_settle_what_nothing_tells(tmp_path: Path) -> None:
    checkpoint = lay_out("train_labels_only", tmp_path / "checkpoint", options=False)
    import_checkpoint(checkpoint, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "dataset.json").read_text())["labels"] == 8
    import_checkpoint(checkpoint, tmp_path / "b", boundary=False)
    assert json.loads((tmp_path / "b" / "dataset.json").read_text())["labels"] == 9
    assert Painter(tmp_path / "b").paint(np.zeros((32, 32), int)).shape == (32, 32, 3)
    with pytest.raises(P2PHDError, match="the networks take 9 channels beside features, but flags say 5 labels"):
        import_checkpoint(checkpoint, tmp_path / "c", labels=5)
    (checkpoint / "opt.txt").write_text("label_nc: 6\n")
    with pytest.raises(P2PHDError, match=r"opt.txt say 6 labels"):
        import_checkpoint(checkpoint, tmp_path / "d")


def test_the_command_to_train_on_is_printed(p2phd: Command, tmp_path: Path) -> None:
    checkpoint = lay_out("train_local_features", tmp_path / "checkpoint")
    out = p2phd("import", checkpoint, tmp_path / "run").out.splitlines()[-1]
    assert (
        f"--init-from {tmp_path / 'run'} --generator-kind local --generator-filters 2 --generator-downsamplings 2"
        in out
    )
    assert "--discriminator-scales 3" in out and "--encoder-filters 4" in out and "--encoder-enabled" not in out


def test_public_feature_files(tmp_path: Path) -> None:
    from pix2pixhd_cli.features import FeatureClusters, FeatureCodes

    checkpoint = lay_out("train_instance_features", tmp_path / "checkpoint")
    codes = {2: np.array([[0.1, 0.2, 0.3, 4.0], [0.5, 0.6, 0.7, 8.0]]), 5: np.zeros((0, 4))}
    np.save(checkpoint / "features.npy", np.array(codes, object), allow_pickle=True)
    centres = {2: np.array([[0.3, 0.4, 0.5]])}
    np.save(checkpoint / "features_clustered_010.npy", np.array(centres, object), allow_pickle=True)
    import_checkpoint(checkpoint, tmp_path / "run")
    found = FeatureCodes.load(tmp_path / "run" / "features.npz")
    np.testing.assert_allclose(found.code, codes[2][:, :3])
    np.testing.assert_allclose(found.share, [4 / 32, 8 / 32])
    styles = FeatureClusters.load(tmp_path / "run" / "clusters.npz").classes[2]
    np.testing.assert_allclose(styles.centres, centres[2])
    np.testing.assert_allclose(styles.mean, [0.3, 0.4, 0.5])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"latest_net_G.pth: no such file"),
        ("truncated", r"latest_net_G.pth: (refused|truncated)"),
        ("malicious", r"latest_net_G.pth: refused: it asks for posix.system"),
        ("encoder", "takes 3 feature channels, but there is no net_E.pth beside it"),
        ("swapped", "net_G: holds no such network"),
    ],
)
def test_bad_checkpoints_are_refused(p2phd: Command, tmp_path: Path, damage: str, message: str) -> None:
    checkpoint = lay_out("train_instance_features", tmp_path / "checkpoint")
    generator, mark = checkpoint / "latest_net_G.pth", tmp_path / "owned"
    if damage == "missing":
        generator.unlink()
    elif damage == "truncated":
        generator.write_bytes(generator.read_bytes()[:2000])
    elif damage == "malicious":
        write_zip(generator, pickle.dumps({"model.1.weight": Evil(mark)}, 2), {})
    elif damage == "encoder":
        (checkpoint / "latest_net_E.pth").unlink()
    else:
        shutil.copy(checkpoint / "latest_net_D.pth", generator)
    outcome = p2phd("import", checkpoint, tmp_path / "run")
    assert outcome.code == 1
    import re

    assert re.search(message, outcome.err.splitlines()[-1]), outcome.err
    assert not (tmp_path / "run").exists() and not mark.exists()


def rewritten(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the names in a state dict's pickle, each to one of the same length."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("case", TRAINED)
@pytest.mark.parametrize("letter", ["G", "D", "E"])
def test_a_renamed_layer_is_missing_and_unexpected(tmp_path: Path, case: str, letter: str) -> None:
    checkpoint = lay_out(case, tmp_path / "checkpoint")
    path = checkpoint / f"latest_net_{letter}.pth"
    if not path.exists():
        pytest.skip(f"{case} has no net_{letter}")
    last = list(read_state_dict(path))[-1].encode()
    stranger = last.replace(b"bias", b"gain")
    rewritten(path, lambda data: data.replace(last, stranger))
    with pytest.raises(
        P2PHDError, match=rf"net_{letter}.pth: missing layer {last.decode()} and unexpected layer {stranger.decode()}"
    ):
        import_checkpoint(checkpoint, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_misshapen_layers_are_named() -> None:
    state = read_state_dict(GOLDEN / "global_generator_net_G.pth")
    network = GlobalGenerator(filters=6, downsamplings=2, blocks=2)
    network.build((None, None, None, 6))
    misshapen = {name: value[:1] if name == "model.4.weight" else value for name, value in state.items()}
    with pytest.raises(P2PHDError, match=r"layer model.4.weight has shape \(1, 6, 3, 3\), which fits no"):
        assign(network, misshapen)


def test_instance_norm_of_old_kept_statistics_that_are_left_out() -> None:
    state = read_state_dict(GOLDEN / "global_generator_net_G.pth")
    old = {**state, "model.2.running_mean": np.zeros(6), "model.2.running_var": np.ones(6)}
    layers = generator_layers(kind="global", downsamplings=2, blocks=2)
    assert list(check_names(old, layers)) == list(state)
    assert infer_generator(old)["filters"] == 6
    with pytest.raises(P2PHDError, match=r"model.2.running_mean belongs to a batch normalisation"):
        infer_generator({**old, "model.2.weight": np.ones(6)})
    block = {name: value for name, value in state.items() if not name.startswith("model.11.")}
    with pytest.raises(P2PHDError, match=r"missing layer model.11.weight and unexpected layer model.12"):
        found = infer_generator(block)
        check_names(block, generator_layers(**found))
