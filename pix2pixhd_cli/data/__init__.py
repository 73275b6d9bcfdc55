"""From raw files to batches: numpy, Pillow and tf.data; knows nothing of networks."""
