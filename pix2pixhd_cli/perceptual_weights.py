"""Where the perceptual loss gets its VGG from: Keras' download, a Keras file, a torchvision file, or an `.npz`.

VGG16 and VGG19 are told apart by their layers, and each kind of file brings its own preprocessing.
"""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import keras
import numpy as np
from numpy.typing import NDArray

from pix2pixhd_cli.data.arrays import DAMAGE, open_arrays
from pix2pixhd_cli.data.files import checksum
from pix2pixhd_cli.data.state_dicts import read_state_dict
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.model.perceptual import Vgg

IMAGENET = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
IMAGENET_URL = f"https://storage.googleapis.com/tensorflow/keras-applications/vgg19/{IMAGENET}"
IMAGENET_MD5 = "253f8cb515780f3b799900260a226db6"
WIDTHS = (64, 128, 256, 512, 512)
LARGEST = 8 * 9 * 512 * 512  # Bytes of VGG's largest kernel in float64.
MOST_ARRAYS = 64  # VGG19 has 38, with the layers that are not needed here.
Arrays = dict[str, NDArray[np.floating]]


class VggFile(NamedTuple):
    """The convolutions of a VGG, with the file they came from for the run to record.

    layers: (kernel [3, 3, I, O], bias [O]) of each. caffe: whether it wants its input as Caffe's networks do.
    """

    layers: list[tuple[NDArray[np.floating], NDArray[np.floating]]]
    caffe: bool
    name: str
    sha256: str

    @property
    def kind(self) -> str:
        """VGG16 or VGG19."""
        return f"VGG{len(self.layers) + 3}"

    def build(self) -> Vgg:
        """The network, on the devices of the strategy at hand."""
        return Vgg(self.layers, convolutions=len(self.layers), caffe=self.caffe)


def cached_imagenet() -> Path:
    """Where Keras keeps its VGG19 once it was downloaded."""
    return Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models" / IMAGENET


def read_vgg(source: str) -> VggFile:
    """Read `imagenet` (downloaded once) or a file; raises `P2PHDError` saying what is wrong and how to give another."""
    path = _download() if source == "imagenet" else Path(source)
    if not path.is_file():
        raise P2PHDError(f"--perceptual-weights {source}: no such file")
    arrays, caffe = _read(path)
    kernels = [array for array in arrays.values() if array.ndim == 4]
    biases = [array for array in arrays.values() if array.ndim == 1]
    _check(path, kernels, biases)
    return VggFile(list(zip(kernels, biases, strict=True)), caffe, path.name, checksum(path))


def _download() -> Path:
    try:
        return Path(keras.utils.get_file(IMAGENET, IMAGENET_URL, cache_subdir="models", file_hash=IMAGENET_MD5))
    except Exception as error:  # Keras raises a bare Exception when it is off-line.
        raise P2PHDError(
            f"--perceptual-weights imagenet: cannot be downloaded ({error}); give a file: Keras' "
            f"{IMAGENET}, a torchvision vgg19*.pth, or an .npz"
        ) from None


def _read(path: Path) -> tuple[Arrays, bool]:
    """A file's convolutions in order, and whether they are Caffe's."""
    readers: dict[str, tuple[Callable[[Path], Arrays], bool]] = {
        ".h5": (_read_h5, True),
        ".npz": (_read_npz, True),
        ".pth": (_read_torchvision, False),
    }
    if path.suffix not in readers:
        raise P2PHDError(f"--perceptual-weights {path}: is no .h5, .weights.h5, .pth or .npz file")
    reader, caffe = readers[path.suffix]
    try:
        return reader(path), caffe
    except DAMAGE as error:
        raise P2PHDError(f"--perceptual-weights {path}: damaged ({' '.join(str(error).split())})") from None


def _read_h5(path: Path) -> Arrays:
    found: Arrays = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim in (1, 4):
            if max(item.nbytes, _chunk_bytes(item)) > LARGEST or len(found) == MOST_ARRAYS:
                raise ValueError(f"{name} is larger than any of VGG's, or one too many")
            if item.dtype.kind != "f" or item.external or item.is_virtual:
                raise ValueError(f"{name} holds something else than numbers of its own")
            found[name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return dict(sorted(found.items(), key=lambda entry: _natural(entry[0])))


def _chunk_bytes(item: h5py.Dataset) -> int:
    return math.prod(item.chunks) * int(item.dtype.itemsize) if item.chunks else 0


def _read_npz(path: Path) -> Arrays:
    with open_arrays(path, "give another file") as file:
        if len(file.names) > MOST_ARRAYS:
            raise ValueError(f"it holds {len(file.names)} arrays")
        arrays = {name: file.read(name, most=LARGEST) for name in sorted(file.names, key=_natural)}
    if any(array.dtype.kind != "f" for array in arrays.values()):
        raise ValueError("it holds something else than numbers")
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _read_torchvision(path: Path) -> Arrays:
    state = {name: array for name, array in read_state_dict(path).items() if name.startswith("features.")}
    return {name: array.transpose(2, 3, 1, 0) if array.ndim == 4 else array for name, array in state.items()}


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts conv2d before conv2d_1, and conv2d_2 before conv2d_10."""
    return [(int(digits or -1), text) for text, digits in re.findall(r"([^\d]+)(\d*)", name)]


def _check(path: Path, kernels: list[NDArray[np.floating]], biases: list[NDArray[np.floating]]) -> None:
    counts = {13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}.get(len(kernels))
    if counts is None or len(biases) < len(kernels):
        raise P2PHDError(f"--perceptual-weights {path}: has {len(kernels)} convolutions; VGG16 has 13 and VGG19 has 16")
    del biases[len(kernels) :]
    if not all(np.isfinite(array).all() for array in (*kernels, *biases)):
        raise P2PHDError(f"--perceptual-weights {path}: holds values that are no numbers")
    widths = [width for width, count in zip(WIDTHS, counts, strict=True) for _ in range(count)]
    for number, (kernel, bias, before, width) in enumerate(zip(kernels, biases, [3, *widths], widths, strict=False)):
        if kernel.shape != (3, 3, before, width) or bias.shape != (width,):
            raise P2PHDError(
                f"--perceptual-weights {path}: convolution {number + 1} is {kernel.shape}, not {(3, 3, before, width)} as VGG's"
            )
