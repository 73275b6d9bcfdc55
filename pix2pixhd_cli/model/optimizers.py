"""Adam as its paper and the reference have it."""

import keras
import tensorflow as tf


class Adam(keras.optimizers.Adam):
    """Adam whose epsilon of 1e-8 is added after the bias correction, in one pass over each variable.

    Keras adds it before, which makes it thirty times larger at the first step: enough to part from the reference's losses
    by one in a thousand within four steps. Source: Kingma and Ba (2015), algorithm 1.
    """

    def __init__(self, learning_rate: float = 2e-4, beta_1: float = 0.5, beta_2: float = 0.999) -> None:
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=1e-8)

    def apply(self, gradients: list[tf.Tensor], variables: list[keras.Variable]) -> None:
        """Move all variables against their gradients."""
        # In float64: 1 - 0.999 in float32 is off by 6e-5 of itself. The kernel corrects nothing when told powers of zero,
        # and epsilon times the correction of the velocity is what it must add to an uncorrected root.
        step = tf.cast(self.iterations.value + 1, tf.float64)
        correction = tf.sqrt(1.0 - self.beta_2**step)
        rate = tf.cast(self.learning_rate.value, tf.float64) * correction / (1.0 - self.beta_1**step)
        self._corrected = tf.cast(rate, tf.float32), tf.cast(self.epsilon * correction, tf.float32)
        super().apply(gradients, variables)

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        """Move one variable; the learning rate is known from `apply`, with the bias correction."""
        del learning_rate
        index = self._get_variable_index(variable)
        rate, epsilon = self._corrected
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
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
