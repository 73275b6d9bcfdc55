"""Number for number: every case that the reference produced, in `tests/golden` or in the folder that `P2PHD_GOLDEN` names.

A case is told by what its manifest entry holds, so any folder of such cases serves, whatever their names, sizes and widths.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from pix2pixhd_cli.boundary import boundary_map
from pix2pixhd_cli.data.state_dicts import read_state_dict
from pix2pixhd_cli.model.discriminators import MultiscaleDiscriminator
from pix2pixhd_cli.model.encoder import InstanceEncoder, pool_instances
from pix2pixhd_cli.model.generators import GlobalGenerator, LocalEnhancer
from pix2pixhd_cli.model.optimizers import Adam
from pix2pixhd_cli.model.perceptual import Vgg, perceptual_loss
from pix2pixhd_cli.model.pix2pixhd import Batch, Pix2PixHD
from pix2pixhd_cli.reference import assign

GOLDEN = Path(os.environ.get("P2PHD_GOLDEN", Path(__file__).parent / "golden"))
MANIFEST: dict[str, dict[str, Any]] = json.loads((GOLDEN / "manifest.json").read_text())
VGG19_TO_RELU5_1 = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 1))

Vectors = dict[str, NDArray[Any]]


@pytest.mark.parametrize("case", MANIFEST)
def test_golden(case: str) -> None:
    config = MANIFEST[case]
    with np.load(GOLDEN / f"{case}.npz") as file:
        vectors = dict(file)
    if "netG" in config:
        check_training(case, config, vectors)
    elif "kind" in config:
        check_generator(case, config, vectors)
    elif "num_D" in config:
        check_discriminator(case, config, vectors)
    elif "nef" in config:
        check_encoder(case, config, vectors)
    elif "seed" in config:
        check_perceptual_loss(config, vectors)
    else:
        check_boundary(vectors)


def close(actual: Any, expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def check_generator(case: str, config: dict[str, Any], vectors: Vectors) -> None:
    network = generator(
        config["kind"], config["ngf"], config["nd"], config["nb"], config.get("nl", 0), config.get("nbl", 0)
    )
    network.build((None, None, None, config["in_channels"]))
    assign(network, read_state_dict(GOLDEN / f"{case}_net_G.pth"))
    close(network(vectors["x"]), vectors["y"])


def generator(kind: str, *sizes: int) -> GlobalGenerator | LocalEnhancer:
    filters, downsamplings, blocks, enhancers, local_blocks = sizes
    if kind == "global":
        return GlobalGenerator(filters=filters, downsamplings=downsamplings, blocks=blocks)
    return LocalEnhancer(
        filters=filters, downsamplings=downsamplings, blocks=blocks, enhancers=enhancers, local_blocks=local_blocks
    )


def check_encoder(case: str, config: dict[str, Any], vectors: Vectors) -> None:
    network = InstanceEncoder(filters=config["nef"], downsamplings=config["nd"], channels=config["feat_num"])
    network.build((None, None, None, 3))
    assign(network, read_state_dict(GOLDEN / f"{case}_net_E.pth"))
    raw = network(vectors["x"])
    close(raw, vectors["raw"])
    close(pool_instances(raw, vectors["inst"]), vectors["y"])


def check_discriminator(case: str, config: dict[str, Any], vectors: Vectors) -> None:
    network = MultiscaleDiscriminator(filters=config["ndf"], layers=config["n_layers"], scales=config["num_D"])
    network.build((None, None, None, config["in_channels"]))
    assign(network, read_state_dict(GOLDEN / f"{case}_net_D.pth"))
    maps = network(*tf.split(vectors["x"], [-1, 3], -1))
    assert [len(layers) for layers in maps] == [config["n_layers"] + 2] * config["num_D"]
    for scale, layers in enumerate(maps):
        for layer, value in enumerate(layers):
            close(value, vectors[f"scale{scale}_layer{layer}"])


def check_boundary(vectors: Vectors) -> None:
    expected = vectors["edge"].reshape(vectors["inst"].shape) > 0
    np.testing.assert_array_equal(boundary_map(vectors["inst"]), expected)
    np.testing.assert_array_equal(boundary_map(tf.constant(vectors["inst"]), tf.concat), expected)


def check_perceptual_loss(config: dict[str, Any], vectors: Vectors) -> None:
    rng, channels, weights = np.random.RandomState(config["seed"]), 3, []
    for width, count in VGG19_TO_RELU5_1:
        for _ in range(count):
            kernel = rng.randn(3, 3, channels, width) * np.sqrt(2 / (9 * channels))
            weights.append((kernel.astype(np.float32), (rng.randn(width) * 0.05).astype(np.float32)))
            channels = width
    vgg = Vgg(weights, convolutions=16, caffe=False)
    loss = perceptual_loss(vgg, tf.constant(vectors["a"]), tf.constant(vectors["b"]))
    assert float(loss) == pytest.approx(float(vectors["loss"]), rel=1e-5)


def check_training(case: str, config: dict[str, Any], vectors: Vectors) -> None:
    model = Pix2PixHD(
        generator=generator(
            config["netG"],
            config["ngf"],
            config["n_downsample_global"],
            config["n_blocks_global"],
            config.get("n_local_enhancers", 1),
            config.get("n_blocks_local", 3),
        ),
        encoder=InstanceEncoder(
            filters=config["nef"], downsamplings=config["n_downsample_E"], channels=config["feat_num"]
        )
        if config["instance_feat"] or config.get("label_feat", False)
        else None,
        discriminator=MultiscaleDiscriminator(
            filters=config["ndf"], layers=config["n_layers_D"], scales=config["num_D"]
        ),
        labels=config["label_nc"],
        boundary=not config.get("no_instance", False),
        pool_by_label=config.get("label_feat", False),
        gan="vanilla" if config["no_lsgan"] else "lsgan",
        feature_matching=0.0 if config["no_ganFeat_loss"] else config["lambda_feat"],
    )
    for name, network in model.networks.items():
        assign(network, read_state_dict(GOLDEN / f"{case}_net_{name[0].upper()}.pth"))
    optimizers = [Adam(config["lr"], config["beta1"]) for _ in range(2)]
    steps = range(len(vectors["losses"]))
    batches = [Batch(*(tf.constant(vectors[key][step]) for key in ("label", "inst", "image"))) for step in steps]
    close(model.reconstruct(batches[0]), vectors["initial_fake"])
    fixed = config.get("niter_fix_global", 0) > 0 and config["netG"] == "local"
    step = tf.function(lambda batch: model.train_step(batch, *optimizers, fixed_global=fixed))
    names = {"G_GAN": "g_gan", "G_GAN_Feat": "g_feat", "D_real": "d_real", "D_fake": "d_fake"}
    for batch, expected in zip(batches, vectors["losses"], strict=True):
        losses = step(batch)
        actual = [float(getattr(losses, names[str(name)])) for name in vectors["loss_names"]]
        np.testing.assert_allclose(actual, expected, rtol=1e-4)
    final = model.reconstruct(batches[0])
    assert np.abs(final - vectors["final_fake"]).mean() < 1e-3
