"""Adam as its paper and the reference have it, the loss scale that float16 needs, and an average of weights."""

from collections.abc import Sequence

import keras
import tensorflow as tf

NO_NUMBER = "a loss or gradient is no number"  # What the errors say that end a training.


class Adam(keras.optimizers.Adam):
    """Adam whose epsilon of 1e-8 is added after the bias correction, in one pass over each variable.

    Keras adds it before, which makes it thirty times larger at the first step: enough to part from the reference's losses
    by one in a thousand within four steps. Source: Kingma and Ba (2015), algorithm 1.
    """

    def __init__(self, learning_rate: float = 2e-4, beta_1: float = 0.5, beta_2: float = 0.999) -> None:
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=1e-8)

    def _backend_update_step(
        self, gradients: list[tf.Tensor], variables: list[keras.Variable], learning_rate: tf.Tensor
    ) -> None:
        # Once for all variables, in float64: 1 - 0.999 in float32 is off by 6e-5 of itself. The kernel corrects nothing when
        # told powers of zero, and epsilon times the correction of the velocity is what it must add to an uncorrected root.
        step = tf.cast(self.iterations.value + 1, tf.float64)
        correction = tf.sqrt(1.0 - self.beta_2**step)
        rate = tf.cast(learning_rate, tf.float64) * correction / (1.0 - self.beta_1**step)
        corrected = tf.cast(rate, tf.float32), tf.cast(self.epsilon * correction, tf.float32)
        for gradient, variable in zip(gradients, variables, strict=True):
            self.update_step(gradient, variable, corrected)

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tuple[tf.Tensor, tf.Tensor]
    ) -> None:
        """Move one variable against its gradient; `learning_rate` is the corrected one, with the corrected epsilon."""
        index = self._get_variable_index(variable)
        rate, epsilon = learning_rate
        tf.raw_ops.ResourceApplyAdam(
            var=variable.value.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=0.0,
            beta2_power=0.0,
            lr=rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=epsilon,
            grad=gradient,
        )


class LossScale(tf.Module):
    """By what losses are multiplied so that float16 holds their gradients, and gradients divided again.

    Gradients that overflow are not applied, and the scale is halved, down to `FLOOR`; after `PATIENCE` steps in a row without
    one it is doubled. Source: Micikevicius et al., "Mixed Precision Training" (2018), 3.2.
    """

    START, FLOOR, CEILING = 2.0**15, 1.0, 2.0**24
    PATIENCE = 1000

    def __init__(self) -> None:
        super().__init__()
        self.value = tf.Variable(self.START, trainable=False)
        self.good = tf.Variable(0, trainable=False, dtype=tf.int64)  # Steps in a row that were applied.
        self.skipped = tf.Variable(0, trainable=False, dtype=tf.int64)

    def follow(self, finite: tf.Tensor) -> None:
        """Take note of whether a step's gradients, as scaled, are all numbers.

        Raises `tf.errors.InvalidArgumentError` if they are none at the smallest scale.
        """
        hopeless = tf.logical_not(tf.logical_or(finite, self.value > self.FLOOR))
        with tf.control_dependencies([tf.debugging.Assert(tf.logical_not(hopeless), [NO_NUMBER])]):
            good = tf.where(finite, self.good + 1, 0)
        grown = good >= self.PATIENCE
        kept = tf.where(grown, tf.minimum(2.0 * self.value, self.CEILING), self.value)
        self.value.assign(tf.where(finite, kept, tf.maximum(self.value / 2.0, self.FLOOR)))
        self.good.assign(tf.where(grown, tf.zeros_like(good), good))
        self.skipped.assign_add(tf.where(finite, tf.zeros_like(good), 1))


class Average(tf.Module):
    """The exponential moving average of a network's weights over its steps.

    It forgets faster at first: step n, from 0, keeps min(decay, (1 + n) / (10 + n)) of it.
    """

    def __init__(self, variables: Sequence[keras.Variable], decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.of = list(variables)
        self.steps = tf.Variable(0, trainable=False, dtype=tf.int64)
        self.values = [tf.Variable(variable.value, trainable=False) for variable in variables]

    def start(self) -> None:
        """Be the weights as they are now."""
        for value, variable in zip(self.values, self.of, strict=True):
            value.assign(variable.value)

    def follow(self) -> None:
        """Move towards the weights as they are now."""
        steps = tf.cast(self.steps.read_value(), tf.float32)
        share = 1.0 - tf.minimum(self.decay, (1.0 + steps) / (10.0 + steps))
        tf.raw_ops.AssignAddVariableOp(resource=self.steps.handle, value=tf.constant(1, tf.int64))
        for value, variable in zip(self.values, self.of, strict=True):
            change = share * (variable.value.read_value() - value.read_value())
            tf.raw_ops.AssignAddVariableOp(resource=value.handle, value=change)
