"""Coarse to fine: what a local enhancer takes from a global run, what moves in which phase, and what does not fit."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pix2pixhd_cli.coarse_to_fine import start_from
from pix2pixhd_cli.errors import P2PHDError, SettingsError
from pix2pixhd_cli.model.build import build_model, build_optimizers
from pix2pixhd_cli.model.generators import LocalEnhancer
from pix2pixhd_cli.model.pix2pixhd import Pix2PixHD
from pix2pixhd_cli.painting import Painter
from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.settings import Settings, load_settings
from tests.conftest import tiny_settings
from tests.test_training import metrics, same_run

LOCAL = {"kind": "local", "filters": 2, "local_blocks": 1}


def local_settings(**sections: dict[str, object]) -> Settings:
    defaults: dict[str, dict[str, object]] = {
        "generator": LOCAL,
        "discriminator": {"scales": 3},
        "train": {"epochs": 2, "decay_epochs": 2, "fixed_global_epochs": 1, "batch_size": 3, "checkpoint_every": 1},
    }
    merged = {name: {**defaults.get(name, {}), **sections.get(name, {})} for name in {*defaults, *sections}}
    return tiny_settings(**merged)


def built(run: Path) -> Pix2PixHD:
    """A run's networks as its last checkpoint has them."""
    return Run(run).load_networks(load_settings(run=run))[0]


@pytest.fixture(scope="module")
def local_run(packed: Path, run: Path) -> Path:
    folder = packed.with_name("local")
    train(packed, folder, local_settings(), init_from=run)
    return folder


def test_the_global_networks_are_taken_over(run: Path) -> None:
    settings = local_settings(encoder={"enabled": True, "frozen": True})
    model = build_model(settings, labels=35, ignored=(255,), training=True)
    start_from(model, settings, run)
    given = built(run)
    assert isinstance(model.generator, LocalEnhancer)
    assert model.encoder is not None and given.encoder is not None
    assert model.discriminator is not None and given.discriminator is not None
    pairs = [
        (ours.weights, theirs.weights)
        for ours, theirs in zip(model.generator.trunk, given.generator.trunk, strict=True)
    ]
    pairs.append((model.encoder.weights, given.encoder.weights))
    ours, theirs = model.discriminator.discriminators, given.discriminator.discriminators
    pairs += [(ours[1].weights, theirs[0].weights), (ours[2].weights, theirs[1].weights)]
    for a, b in ((a, b) for own, their in pairs for a, b in zip(own, their, strict=True)):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    fresh = ours[0].weights[0].numpy()
    assert all((fresh != d.weights[0].numpy()).any() for d in theirs), "the finest one starts anew"


def test_each_phase_moves_what_it_should(packed: Path, run: Path, tmp_path: Path) -> None:
    """Epoch 1 trains the outermost enhancer alone, later ones everything but the frozen encoder."""
    fixed = tmp_path / "fixed"
    train(packed, fixed, local_settings(train={"epochs": 1, "decay_epochs": 0, "checkpoint_every": 9}), init_from=run)
    everything = tmp_path / "all"
    train(packed, everything, local_settings(train={"checkpoint_every": 99}), init_from=run)
    given, first, last = built(run), built(fixed), built(everything)

    def moved(a: object, b: object) -> list[bool]:
        kernels = [(x.numpy(), y.numpy()) for x, y in zip(a.weights, b.weights, strict=True) if x.ndim == 4]  # type: ignore[attr-defined]
        return [bool((x != y).any()) for x, y in kernels]

    for ours, theirs in zip(first.generator.trunk, given.generator.trunk, strict=True):
        assert not any(moved(ours, theirs))
    for ours, theirs in zip(last.generator.trunk, given.generator.trunk, strict=True):
        assert all(moved(ours, theirs))
    assert all(moved(first.generator.enhancers[-1], last.generator.enhancers[-1]))
    for model in (first, last):
        assert not any(moved(model.encoder, given.encoder))
        assert model.discriminator is not None and given.discriminator is not None
        assert all(moved(model.discriminator.discriminators[1], given.discriminator.discriminators[0]))
    rates = [line["learning_rate"] for line in metrics(everything)]
    assert rates == pytest.approx([2e-4] * 6 + [1e-4] * 2), "epochs 1 to 3 at the full rate, the last at half"
    assert load_settings(run=everything).encoder.frozen is True


def test_the_global_network_starts_with_fresh_moments_when_it_is_unfrozen() -> None:
    settings = local_settings(encoder={"enabled": False})
    model = build_model(settings, labels=4, ignored=(), training=True)
    optimizers = build_optimizers(settings, model)
    assert optimizers.outermost is not None and optimizers.outermost is not optimizers.generator
    assert len(optimizers.outermost.variables) < len(optimizers.generator.variables)


@pytest.mark.parametrize("at", [1, 2])
def test_resume_inside_and_across_the_phases(packed: Path, run: Path, local_run: Path, tmp_path: Path, at: int) -> None:
    """Cut the finished run back to a checkpoint and go on from there."""
    from pix2pixhd_cli.training import Trainer

    stopped, original, steps = tmp_path / "run", Trainer.step, []

    class Death(BaseException):
        pass

    def die(self: Trainer, batch: object, epoch: int) -> dict[str, float]:
        steps.append(1)
        if len(steps) == at + 1:
            raise Death
        return original(self, batch, epoch)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", die)
        with pytest.raises(Death):
            train(packed, stopped, local_settings(), init_from=run)
    train(packed, stopped, load_settings(run=stopped, resume=True), resume=True)
    same_run(stopped, local_run)


def test_a_local_run_encodes_clusters_and_paints(local_run: Path, dataset: Path, tmp_path: Path) -> None:
    from pix2pixhd_cli.pipeline.cluster import cluster
    from pix2pixhd_cli.pipeline.encode import encode
    from pix2pixhd_cli.pipeline.generate import generate

    copy = tmp_path / "run"
    shutil.copytree(local_run, copy)
    codes = encode(copy)
    assert np.isfinite(codes.code).all() and len(codes.label) == len(set(zip(codes.stem, codes.instance, strict=True)))
    cluster(copy)
    assert len(generate(copy, dataset, tmp_path / "out")) == 3
    photo = np.full((32, 64, 3), 100, np.uint8)
    assert Painter(copy).paint(np.full((32, 64), 7), gains=1.0, photo=photo).shape == (32, 64, 3)


def test_a_run_of_the_same_networks_is_taken_over_whole(packed: Path, run: Path, tmp_path: Path) -> None:
    train(packed, tmp_path / "again", tiny_settings(train={"learning_rate": 1e-12}), init_from=run)
    label = np.full((32, 64), 7)
    np.testing.assert_allclose(
        Painter(tmp_path / "again").paint_float(label), Painter(run).paint_float(label), atol=1e-4
    )


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"generator": {**LOCAL, "filters": 8}}, "--generator-filters is 8, but must be 2 to fit 4 filters"),
        ({"generator": {**LOCAL, "blocks": 2}}, "--generator-blocks is 2, which does not fit the 1"),
        ({"generator": {**LOCAL, "downsamplings": 1}}, "--generator-downsamplings is 1"),
        ({"discriminator": {"filters": 8}}, "--discriminator-filters is 8"),
        ({"discriminator": {"scales": 1}}, "--discriminator-scales is 1, fewer than the 2"),
        ({"encoder": {"channels": 4}}, "--encoder-channels is 4"),
        ({"encoder": {"enabled": False}}, "--encoder-enabled is False"),
        (
            {"generator": {"kind": "global", "filters": 4}, "train": {"fixed_global_epochs": 1}},
            "--fixed-global-epochs needs",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    packed: Path, run: Path, tmp_path: Path, sections: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        train(packed, tmp_path / "local", local_settings(**sections), init_from=run)
    assert not (tmp_path / "local").exists()


def test_a_local_run_cannot_become_a_global_one(packed: Path, local_run: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--generator-kind is global, which cannot start from the local enhancer"):
        train(packed, tmp_path / "run", tiny_settings(), init_from=local_run)


def test_data_of_other_labels_is_refused(run: Path, tmp_path: Path) -> None:
    from pix2pixhd_cli.pipeline.pack import pack
    from pix2pixhd_cli.pipeline.prepare import prepare
    from tests.conftest import save

    save(tmp_path / "src/train_label/a.png", np.zeros((32, 32), np.uint8))
    save(tmp_path / "src/train_img/a.png", np.zeros((32, 32, 3), np.uint8))
    prepare(tmp_path / "src", tmp_path / "ds", Settings(prepare={"layout": "pix2pixhd"}))
    pack(tmp_path / "ds", tmp_path / "packed")
    with pytest.raises(P2PHDError, match=r"has 1 labels, but .* was trained with 35"):
        train(tmp_path / "packed", tmp_path / "local", local_settings(), init_from=run)


def test_two_enhancers_train(packed: Path, run: Path, tmp_path: Path) -> None:
    settings = local_settings(
        generator={"filters": 1, "enhancers": 2}, train={"epochs": 2, "decay_epochs": 0, "checkpoint_every": 99}
    )
    train(packed, tmp_path / "local", settings, init_from=run)
    assert len(metrics(tmp_path / "local")) == 4


def test_a_local_run_from_scratch_trains_its_encoder_at_full_resolution(packed: Path, tmp_path: Path) -> None:
    train(packed, tmp_path / "local", local_settings(train={"fixed_global_epochs": 0, "epochs": 1, "decay_epochs": 0}))
    settings = load_settings(run=tmp_path / "local")
    assert settings.encoder.enabled and not settings.encoder.frozen
