"""The perceptual loss: distances of VGG's activations (paper, appendix)."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pix2pixhd_cli.model.convolutions import convolve
from pix2pixhd_cli.model.losses import distance_and_gradient, mean_distance

MEANS_BGR = (103.939, 116.779, 123.68)
BLOCKS = {13: (2, 2, 3, 3, 1), 16: (2, 2, 4, 4, 1)}  # Convolutions a block, up to block5_conv1, of VGG16 and VGG19.
WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


class Vgg:
    """VGG16 or VGG19 up to relu5_1, fixed.

    Args:
        weights: kernel, float32 [3, 3, I, O], and bias, float32 [O], of every convolution in order; those after block5_conv1
            are left out of the work.
        convolutions: 13 for VGG16, 16 for VGG19, whatever is given of them.
        caffe: the weights expect BGR in 0 … 255 less the means, as Keras' own do; otherwise RGB in the pictures' [-1, 1],
            as the reference feeds torchvision's.
    """

    def __init__(
        self, weights: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]], *, convolutions: int, caffe: bool
    ) -> None:
        self.caffe = caffe
        self.recompute = False  # Keep less for the loss's gradient.
        self.blocks: list[list[tuple[tf.Variable, tf.Variable]]] = []
        rest = iter(weights)
        for count in BLOCKS[convolutions]:
            pairs = [next(rest) for _ in range(count)]
            self.blocks.append(
                [tuple(tf.Variable(a, trainable=False, dtype=tf.float32) for a in pair) for pair in pairs]
            )

    @property
    def variables(self) -> list[tf.Variable]:
        """All kernels and biases."""
        return [variable for block in self.blocks for pair in block for variable in pair]

    def __call__(self, picture: tf.Tensor) -> list[tf.Tensor]:
        """relu1_1, relu2_1, …, relu5_1 of pictures, float32 [B, H, W, 3] in [-1, 1].

        Activations of Caffe weights are divided by 127.5: a ReLU network with weights W and biases b satisfies
        f(x; W, b) / s = f(x / s; W, b / s), so this is that network seeing pixels in the reference's unit, and one weight of the
        loss means the same with either file.
        """
        found, x = [], picture
        for number in range(len(self.blocks)):
            first, x = self.block(number, x)
            found.append(first)
        return found

    def block(self, number: int, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One block's first activations, and what the next block gets, from a picture or what the block before gave."""
        if self.caffe and not number:
            x = (tf.reverse(x, [-1]) + 1.0) * 127.5 - tf.constant(MEANS_BGR)
        maps = []
        for kernel, bias in self.blocks[number]:
            x = tf.nn.relu(convolve(x, kernel.value(), padding=1) + bias)
            maps.append(x)
        last = number == len(self.blocks) - 1
        return maps[0] / 127.5 if self.caffe else maps[0], x if last else tf.nn.max_pool2d(x, 2, 2, "VALID")


def perceptual_loss(vgg: Vgg, fake: tf.Tensor, photo: tf.Tensor) -> tf.Tensor:
    """Weighted L1 distances of the activations of pictures, [B, H, W, 3] in [-1, 1]; the photo's are constants."""
    if vgg.recompute:
        return tf.custom_gradient(lambda fake: _loss_and_gradient(vgg, fake, photo))(fake)
    pairs = zip(WEIGHTS, vgg(fake), vgg(photo), strict=True)
    return tf.add_n([weight * mean_distance(a, b) for weight, a, b in pairs])


def _loss_and_gradient(
    vgg: Vgg, fake: tf.Tensor, photo: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """The loss and at once its gradient, a block at a time.

    Of a block's activations no more outlives it than what goes into the next one and, in a byte each, the signs of differences.
    """
    loss = tf.zeros([], fake.dtype)
    entered, gradients, x, y = [], [], fake, photo
    for number, weight in enumerate(WEIGHTS):
        entered.append(x)
        first, x = vgg.block(number, x)
        with tf.control_dependencies([x]):
            of_photo, y = vgg.block(number, y)
        distance, gradient = distance_and_gradient(first, of_photo)
        loss += weight * distance
        gradients.append(gradient)
    above: list[tf.Tensor] = []  # The gradient of what the block handed on: the last one handed on nothing.
    for number, weight in reversed(list(enumerate(WEIGHTS))):
        with tf.control_dependencies([loss, *above]), tf.GradientTape() as tape:
            tape.watch(entered[number])
            found = vgg.block(number, entered[number])
            dfirst, _ = gradients[number](tf.constant(weight, fake.dtype))
        above = [tape.gradient(found[: 1 + len(above)], entered[number], [dfirst, *above])]
    (dx,) = above
    with tf.control_dependencies([dx]):
        return tf.identity(loss), lambda upstream: upstream * dx
