"""The networks, their losses and one training step: Keras and TensorFlow, plain keyword arguments, no files."""

import keras

from pix2pixhd_cli.errors import P2PHDError

if keras.backend.backend() != "tensorflow":
    raise P2PHDError(f"KERAS_BACKEND is {keras.backend.backend()!r}; p2phd needs it unset, or KERAS_BACKEND=tensorflow")
# The user's Keras configuration may say otherwise; every network here is NHWC.
keras.config.set_image_data_format("channels_last")
