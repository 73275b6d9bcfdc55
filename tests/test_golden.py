"""The networks and whole training runs, number for number against vectors that the reference produced."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from pix2pixhd_cli.boundary import boundary_map
from pix2pixhd_cli.model.discriminators import MultiscaleDiscriminator
from pix2pixhd_cli.model.encoder import InstanceEncoder, pool_instances
from pix2pixhd_cli.model.generators import GlobalGenerator
from pix2pixhd_cli.model.optimizers import Adam
from pix2pixhd_cli.model.pix2pixhd import Batch, Pix2PixHD
from tests.reference_weights import assign, finest_first, read_state_dict

GOLDEN = Path(__file__).parent / "golden"
MANIFEST: dict[str, dict[str, Any]] = json.loads((GOLDEN / "manifest.json").read_text())


def load(case: str) -> dict[str, NDArray[Any]]:
    with np.load(GOLDEN / f"{case}.npz") as file:
        return dict(file)


def test_global_generator() -> None:
    config, vectors = MANIFEST["global_generator"], load("global_generator")
    network = GlobalGenerator(filters=config["ngf"], downsamplings=config["nd"], blocks=config["nb"])
    network.build((None, None, None, config["in_channels"]))
    assign(network, read_state_dict(GOLDEN / "global_generator_net_G.pth"))
    np.testing.assert_allclose(network(vectors["x"]), vectors["y"], rtol=0, atol=2e-5)


def test_encoder() -> None:
    config, vectors = MANIFEST["encoder"], load("encoder")
    network = InstanceEncoder(filters=config["nef"], downsamplings=config["nd"], channels=config["feat_num"])
    network.build((None, None, None, 3))
    assign(network, read_state_dict(GOLDEN / "encoder_net_E.pth"))
    raw = network(vectors["x"])
    np.testing.assert_allclose(raw, vectors["raw"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(pool_instances(raw, vectors["inst"]), vectors["y"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", ["discriminator_2", "discriminator_3"])
def test_discriminator_maps(case: str) -> None:
    config, vectors = MANIFEST[case], load(case)
    network = MultiscaleDiscriminator(filters=config["ndf"], layers=config["n_layers"], scales=config["num_D"])
    network.build((None, None, None, config["in_channels"]))
    assign(network, finest_first(read_state_dict(GOLDEN / f"{case}_net_D.pth")))
    maps = network(vectors["x"])
    assert len(maps) == config["num_D"]
    for scale, layers in enumerate(maps):
        assert len(layers) == config["n_layers"] + 2
        for layer, value in enumerate(layers):
            np.testing.assert_allclose(value, vectors[f"scale{scale}_layer{layer}"], rtol=0, atol=2e-5)


def test_boundary() -> None:
    vectors = load("boundary")
    np.testing.assert_array_equal(boundary_map(vectors["inst"]), vectors["edge"].reshape(vectors["inst"].shape) > 0)
    tensor = boundary_map(tf.constant(vectors["inst"]), tf.concat)
    np.testing.assert_array_equal(tensor, boundary_map(vectors["inst"]))


@pytest.mark.parametrize("case", ["train_labels_only", "train_instance_features"])
def test_training_trajectory(case: str) -> None:
    config, vectors = MANIFEST[case], load(case)
    model = Pix2PixHD(
        generator=GlobalGenerator(
            filters=config["ngf"], downsamplings=config["n_downsample_global"], blocks=config["n_blocks_global"]
        ),
        encoder=InstanceEncoder(
            filters=config["nef"], downsamplings=config["n_downsample_E"], channels=config["feat_num"]
        )
        if config["instance_feat"]
        else None,
        discriminator=MultiscaleDiscriminator(
            filters=config["ndf"], layers=config["n_layers_D"], scales=config["num_D"]
        ),
        labels=config["label_nc"],
        feature_matching=0.0 if config["no_ganFeat_loss"] else config["lambda_feat"],
    )
    for name, network in model.networks.items():
        state = read_state_dict(GOLDEN / f"{case}_net_{name[0].upper()}.pth")
        assign(network, finest_first(state) if name == "discriminator" else state)
    optimizers = [Adam(config["lr"], config["beta1"]) for _ in range(2)]
    batches = [
        Batch(*(tf.constant(vectors[key][step]) for key in ("label", "inst", "image")))
        for step in range(len(vectors["losses"]))
    ]
    np.testing.assert_allclose(model.reconstruct(batches[0]), vectors["initial_fake"], rtol=0, atol=2e-5)
    step = tf.function(lambda batch: model.train_step(batch, *optimizers))
    for batch, expected in zip(batches, vectors["losses"], strict=True):
        losses = step(batch)
        actual = [float(getattr(losses, name)) for name in ("g_gan", "g_feat", "d_real", "d_fake")]
        np.testing.assert_allclose(actual, expected, rtol=1e-4)
    final = model.reconstruct(batches[0])
    assert np.abs(final - vectors["final_fake"]).mean() < 1e-3
