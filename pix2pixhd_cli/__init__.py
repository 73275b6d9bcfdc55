"""pix2pixHD in TensorFlow as one command: prepare, pack, train, encode, cluster, generate."""

__version__ = "0.1.0"
