"""Networks that judge pictures, read from files: feature networks and segmenters, of the user's own or the run's VGG."""

import csv
import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pix2pixhd_cli import images
from pix2pixhd_cli.data.dataset import DatasetSpec
from pix2pixhd_cli.data.files import checksum
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.metrics import Picture
from pix2pixhd_cli.model.perceptual import Vgg, perceptual_loss
from pix2pixhd_cli.perceptual_weights import VggFile
from pix2pixhd_cli.settings import PixelRange, whole_number

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NO_CLASS = -1
# The 19 classes that Cityscapes' segmenters give, in their order.
CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky",
    "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A network from a file.

    name, sha256: of the file (of a folder: of all its files). sides: height and width that it takes, or None if any. apply: from
    pictures, uint8 [B, H, W, 3], to what it gives for them, channels last.
    """

    name: str
    sha256: str
    sides: tuple[int, int] | None
    apply: Callable[[NDArray[np.uint8]], NDArray[Any]]

    def fit(self, picture: Picture) -> Picture:
        """A picture at the size that it takes."""
        if self.sides is None or picture.shape[:2] == self.sides:
            return picture
        return images.fit(picture, *self.sides)


@dataclass(frozen=True)
class FeatureNetwork:
    """What distributions are told by: a name, its file's checksum, its size, and features [D] of a picture."""

    name: str
    sha256: str
    resized: str
    features: Callable[[Picture], NDArray[np.floating]]


@dataclass(frozen=True)
class Segmenter:
    """A network that sees classes in pictures; `classes` are the ids of ours by the numbers of its own."""

    network: Network
    classes: dict[int, int]

    @property
    def known(self) -> list[int]:
        """The classes of ours that it can see."""
        return sorted(set(self.classes.values()))

    def scale(self, height: int, width: int) -> float:
        """How much larger it sees a picture of these sides: until the tighter one fits the network."""
        if self.network.sides is None:
            return 1.0
        return max(side / own for side, own in zip(self.network.sides, (height, width), strict=True))

    def __call__(self, picture: Picture) -> NDArray[np.int32]:
        """Our class ids, int32 [H, W], of a picture of any size; -1 where it sees something else.

        A picture is scaled until its tighter side fits the network, and seen in as many pieces as the other side takes.
        """
        height, width = picture.shape[:2]
        seen = _in_pieces(self.network, picture, self.scale(height, width))
        rows, columns = ((np.arange(n) + 0.5) * m / n for n, m in zip((height, width), seen.shape, strict=True))
        numbers = seen[rows.astype(int)[:, None], columns.astype(int)]
        table = np.full(int(max([numbers.max(initial=0), *self.classes])) + 1, NO_CLASS, np.int32)
        table[list(self.classes)] = list(self.classes.values())
        return table[numbers]


def _in_pieces(network: Network, picture: Picture, scale: float) -> NDArray[np.integer]:
    """The numbers of a segmenter's classes, [H', W'], for the whole picture at this scale, which fits the network."""
    if network.sides is None:
        return _numbers(network.apply(picture[None]))[0]
    sides = [
        max(side, round(own * scale)) for side, own in zip(network.sides, picture.shape, strict=False)
    ]  # One of both is the network's own.
    scaled = images.fit(picture, *sides)
    axis = int(sides[1] > network.sides[1])
    side, length = network.sides[axis], sides[axis]
    starts = np.linspace(0, length - side, -(-length // side)).round().astype(int)
    pieces = [np.take(scaled, np.arange(start, start + side), axis) for start in starts]
    seen = [_numbers(network.apply(piece[None]))[0] for piece in pieces]
    nearest = np.abs(np.arange(length)[:, None] + 0.5 - (starts + side / 2)).argmin(1)
    whole = [np.take(found, np.flatnonzero(nearest == n) - starts[n], axis) for n, found in enumerate(seen)]
    return np.concatenate(whole, axis)


def _numbers(given: NDArray[Any]) -> NDArray[np.integer]:
    """Class numbers [B, H, W] from these or from scores [B, H, W, C]."""
    given = given.argmax(-1) if given.ndim == 4 and given.shape[-1] > 1 else given.reshape(given.shape[:3])
    return given.astype(np.int64)


def vgg_features(file: VggFile, vgg: Vgg) -> FeatureNetwork:
    """A VGG, built from its file, as a feature network: relu5_1, averaged over the picture, at the picture's size."""

    @tf.function(reduce_retracing=True)
    def last(picture: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(vgg(tf.cast(picture, tf.float32) / 127.5 - 1.0)[-1], [0, 1, 2])

    return FeatureNetwork(
        f"{file.kind} relu5_1, mean ({file.name})",
        file.sha256,
        "none",
        lambda picture: last(tf.constant(picture[None])).numpy(),
    )


def perceptual_distance(vgg: Vgg) -> Callable[[Picture, Picture], float]:
    """The perceptual loss as a distance of two pictures, uint8 [H, W, 3]."""

    @tf.function(reduce_retracing=True)
    def distance(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        pair = (tf.cast(picture, tf.float32) / 127.5 - 1.0 for picture in (a, b))
        return perceptual_loss(vgg, *pair)

    return lambda a, b: float(distance(tf.constant(a[None]), tf.constant(b[None])))


def read_features(path: Path, unit: PixelRange) -> FeatureNetwork:
    """A user's feature network: what it gives, averaged over places if it gives a map. Raises `P2PHDError`."""
    network = read_network(path, unit, "--features")

    def features(picture: Picture) -> NDArray[np.floating]:
        given = network.apply(network.fit(picture)[None])[0]
        if given.ndim not in (1, 3) or given.dtype.kind != "f":
            raise P2PHDError(
                f"--features {path}: gives {given.dtype}{list(given.shape)} for a picture, and no features"
            )
        return given.mean((0, 1)) if given.ndim == 3 else given

    sides = f"{network.sides[0]}x{network.sides[1]}, bicubic" if network.sides is not None else "none"
    return FeatureNetwork(network.name, network.sha256, sides, features)


def read_segmenter(path: Path, unit: PixelRange, table: str | None, spec: DatasetSpec) -> Segmenter:
    """A segmenter whose classes `table` maps to those of a data set: a CSV file `number,class`, `cityscapes`, or None where
    they are the same. Raises `P2PHDError`.
    """
    if spec.input != "labels":
        raise P2PHDError(f"--segmenter {path}: the data set has RGB inputs, so there are no classes to see")
    return Segmenter(read_network(path, unit, "--segmenter"), _read_table(table, spec))


def _read_table(table: str | None, spec: DatasetSpec) -> dict[int, int]:
    if table is None:
        return {c.id: c.id for c in spec.classes if c.id not in spec.ignored}
    if table == "cityscapes":
        found = {n: spec.class_named(name) for n, name in enumerate(CITYSCAPES)}
        known = {n: c.id for n, c in found.items() if c is not None and c.id not in spec.ignored}
        if not known:
            raise P2PHDError("--segmenter-classes cityscapes: the data set has no class of these names; write a table")
        return known
    try:
        with Path(table).open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise P2PHDError(f"--segmenter-classes {table}: cannot be read ({error})") from None
    classes: dict[int, int] = {}
    for row in rows[1:] if rows and rows[0] == ["number", "class"] else rows:
        number = whole_number(row[0].strip()) if len(row) == 2 else None
        known_class = spec.class_named(row[1].strip()) if len(row) == 2 else None
        if number is None or known_class is None or number in classes:
            names = ", ".join(c.name for c in spec.classes[:40])
            raise P2PHDError(
                f"--segmenter-classes {table}: {','.join(row)!r} is no NUMBER,CLASS, or a number for the second time; classes "
                f"are {names}"
            )
        classes[number] = known_class.id
    if not classes:
        raise P2PHDError(
            f"--segmenter-classes {table}: maps nothing; write a line NUMBER,CLASS for each of its classes"
        )
    return classes


def read_network(path: Path, unit: PixelRange, flag: str) -> Network:
    """A network from a TFLite, Keras or ONNX file or a SavedModel's folder; raises `P2PHDError` naming `flag`.

    A SavedModel is a program: it can do whatever TensorFlow can. `unit` says what its inputs are, unless they are uint8.
    """
    readers: dict[str, Callable[[Path, PixelRange], tuple[tuple[int, int] | None, Callable[..., Any]]]] = {
        ".tflite": _read_tflite,
        ".keras": _read_keras,
        ".onnx": _read_onnx,
    }
    if not path.exists():
        raise P2PHDError(f"{flag} {path}: no such file or folder")
    reader = _read_saved_model if (path / "saved_model.pb").is_file() else readers.get(path.suffix)
    if reader is None:
        raise P2PHDError(f"{flag} {path}: is no SavedModel's folder, and no .keras, .tflite or .onnx file")
    try:
        sides, apply = reader(path, unit)
    except P2PHDError as error:
        raise P2PHDError(f"{flag} {path}: {error}") from None
    except Exception as error:  # Other people's loaders raise all kinds.
        raise P2PHDError(f"{flag} {path}: cannot be loaded ({' '.join(str(error).split())[:200]})") from None
    return Network(path.name, _checksum(path), sides, apply)


def _checksum(path: Path) -> str:
    if path.is_file():
        return checksum(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    pairs = "".join(f"{checksum(file)}  {file.relative_to(path)}\n" for file in files)
    return hashlib.sha256(pairs.encode()).hexdigest()


def _read_tflite(path: Path, unit: PixelRange) -> tuple[tuple[int, int] | None, Callable[..., Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It is said to move to a package of its own one day.
        interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    (given,), made = interpreter.get_input_details(), interpreter.get_output_details()
    sides = _sides(given["shape"].tolist(), channel=3)

    def apply(pictures: Picture) -> NDArray[Any]:
        interpreter.set_tensor(given["index"], _input(pictures, given["dtype"], unit))
        interpreter.invoke()
        return np.array(interpreter.get_tensor(made[0]["index"]))

    return sides, apply


def _read_keras(path: Path, unit: PixelRange) -> tuple[tuple[int, int] | None, Callable[..., Any]]:
    import keras

    model = keras.models.load_model(path, compile=False)  # Keras refuses code in it by itself.
    sides = _sides(model.input_shape, channel=3)
    return sides, lambda pictures: np.asarray(
        _only(model(_input(pictures, np.dtype(model.input_dtype), unit), training=False))
    )


def _read_saved_model(path: Path, unit: PixelRange) -> tuple[tuple[int, int] | None, Callable[..., Any]]:
    loaded = tf.saved_model.load(str(path))
    signature = loaded.signatures["serving_default"]
    ((name, spec),) = signature.structured_input_signature[1].items()
    sides = _sides(spec.shape.as_list(), channel=3)

    def apply(pictures: Picture, _alive: Any = loaded) -> NDArray[Any]:
        given = signature(**{name: tf.constant(_input(pictures, spec.dtype.as_numpy_dtype, unit))})
        return np.asarray(_only(list(given.values())))

    return sides, apply


def _read_onnx(path: Path, unit: PixelRange) -> tuple[tuple[int, int] | None, Callable[..., Any]]:
    try:
        import onnxruntime
    except ImportError:
        raise P2PHDError("needs an extra: pip install 'pix2pixhd_cli[onnx]'") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    shape = [side if isinstance(side, int) else None for side in given.shape]
    first = shape[1] == 3  # Channels before places, as PyTorch has them.
    kinds = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
    if given.type not in kinds:
        raise P2PHDError(f"takes {given.type} instead of float or uint8")

    def apply(pictures: Picture) -> NDArray[Any]:
        fed = _input(pictures, np.dtype(kinds[given.type]), unit)
        made = np.asarray(session.run(None, {given.name: fed.transpose(0, 3, 1, 2) if first else fed})[0])
        return made.transpose(0, 2, 3, 1) if first and made.ndim == 4 else made

    return _sides(shape, channel=1 if first else 3), apply


def _sides(shape: Sequence[int | None], channel: int) -> tuple[int, int] | None:
    """Height and width of an input [B, H, W, 3], or [B, 3, H, W]; None where it takes any."""
    if len(shape) != 4 or shape[channel] != 3:
        raise P2PHDError(f"takes {list(shape)} instead of pictures [B, H, W, 3]")
    height, width = (side for place, side in enumerate(shape) if place not in (0, channel))
    return (int(height), int(width)) if height and width else None


def _input(pictures: Picture, dtype: Any, unit: PixelRange) -> NDArray[Any]:
    """Pictures in the numbers that a network takes; raises `P2PHDError` for a type that no pictures have."""
    if np.dtype(dtype) == np.uint8:
        return pictures
    if np.dtype(dtype).kind != "f":
        raise P2PHDError(f"takes {np.dtype(dtype)} instead of uint8 or floats")
    values: NDArray[Any] = pictures.astype(np.float32)
    if unit == "-1..1":
        values = values / 127.5 - 1.0
    elif unit == "0..1":
        values = values / 255.0
    elif unit == "imagenet":
        values = (values / 255.0 - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_DEVIATION, np.float32)
    return values.astype(dtype)


def _only(given: Any) -> Any:
    """The one thing that a network gives."""
    if isinstance(given, list | tuple):
        if len(given) != 1:
            raise P2PHDError(f"gives {len(given)} things instead of one")
        return given[0]
    return given
