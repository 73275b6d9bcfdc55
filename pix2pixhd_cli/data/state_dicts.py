"""The reference's files, read without PyTorch and without running anything in them.

A `.pth` is a pickle of a state dict beside its tensors' bytes, in a zip archive since PyTorch 1.6 and in a row before. The reader
builds numpy arrays and knows just the few names that a state dict needs, all of them stand-ins that hold numbers; any other name
in the file is refused unrun. The same holds for the pickled dicts in `features.npy` and `features_clustered_*.npy`. What a file
claims is compared with its size before memory is taken, and no value of it counts more than twice.
"""

import collections
import io
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pix2pixhd_cli.data.arrays import DAMAGE, read_header
from pix2pixhd_cli.data.pickles import unpickle
from pix2pixhd_cli.errors import P2PHDError, check_regular

STORAGES = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MOST_SIDES = 8
LARGEST = 1 << 48  # No side, stride or offset is.
LONGEST_PICKLE = 4 << 20  # Bytes; the reference's take some ten thousand.
StateDict = dict[str, NDArray[np.floating]]


class _Storage(NamedTuple):
    """A tensor's flat values, by key in the file."""

    key: str
    dtype: str
    length: int


class _View(NamedTuple):
    """A tensor as a window on a storage; it becomes an array once the storage's bytes are known."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _storage(pid: Any) -> _Storage:
    kind, dtype, key, _, length = tuple(pid)[:5]
    if kind != "storage" or not isinstance(dtype, str) or not isinstance(key, str) or not isinstance(length, int):
        raise UnpicklingError("it holds something else than tensors")
    return _Storage(key, dtype, length)


def _view(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _View:
    view = _View(storage, offset, tuple(shape), tuple(strides)) if max(len(shape), len(strides)) <= MOST_SIDES else None
    if view is None or not all(isinstance(n, int) and 0 <= n < LARGEST for n in (offset, *view.shape, *view.strides)):
        raise UnpicklingError("it holds something else than tensors")
    return view


def _empty_dict() -> collections.OrderedDict[Any, Any]:
    return collections.OrderedDict()


STATE_DICT_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _empty_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_tensor"): _view,
    ("torch._utils", "_rebuild_parameter"): lambda view, *_: view,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


def read_state_dict(path: Path) -> StateDict:
    """Read a `.pth` as names and float32 arrays, in the file's order; raises `P2PHDError`."""
    check_regular(path)
    try:
        if zipfile.is_zipfile(path):
            views, values = _read_zip(path)
        else:
            views, values = _read_legacy(path)
        _check_tensors(views, values)
        return {name: _array(view, values) for name, view in views.items() if isinstance(view, _View)}
    except FileNotFoundError:
        raise P2PHDError(f"{path}: no such file") from None
    except (UnpicklingError, zipfile.BadZipFile) as error:
        raise P2PHDError(f"{path}: refused: {error}") from None
    except DAMAGE as error:
        raise P2PHDError(f"{path}: truncated or damaged ({type(error).__name__}: {error})") from None


def _read_zip(path: Path) -> tuple[dict[str, Any], Callable[[_Storage], bytes]]:
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
        if name is None:
            raise ValueError("there is no data.pkl in it")
        root = name.removesuffix("data.pkl")
        head = archive.getinfo(name)
        if head.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its pickle is compressed, which PyTorch's never are")
        if max(head.file_size, head.compress_size) > min(LONGEST_PICKLE, path.stat().st_size):
            raise ValueError("its pickle claims to be larger than it is")
        views = unpickle(io.BytesIO(archive.read(head)), STATE_DICT_NAMES, _storage)
        keys = {view.storage.key for view in views.values() if isinstance(view, _View)}
        entries = {key: archive.getinfo(f"{root}data/{key}") for key in keys}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("its tensors are compressed, which PyTorch's never are")
        if sum(max(entry.file_size, entry.compress_size) for entry in entries.values()) > path.stat().st_size:
            raise ValueError("its tensors claim to be larger than it is")
        contents = {key: archive.read(entry) for key, entry in entries.items()}
    return views, lambda storage: contents[storage.key]


def _read_legacy(path: Path) -> tuple[dict[str, Any], Callable[[_Storage], bytes]]:
    """Before PyTorch 1.6: four pickles (magic, version, system, state dict), the storages' keys, and their bytes in turn."""
    with path.open("rb") as file:
        head = io.BytesIO(file.read(min(LONGEST_PICKLE, path.stat().st_size)))
        if unpickle(head, {}) != LEGACY_MAGIC:
            raise ValueError("it is not a PyTorch file")
        for _ in range(2):
            unpickle(head, {})
        views, keys = unpickle(head, STATE_DICT_NAMES, _storage), unpickle(head, {})
        file.seek(head.tell())
        storages = {view.storage.key: view.storage for view in views.values() if isinstance(view, _View)}
        contents = {}
        for key in keys:
            (length,) = struct.unpack("<q", file.read(8))
            size = length * np.dtype(storages[key].dtype).itemsize
            if not 0 <= size <= path.stat().st_size:
                raise ValueError(f"it claims a tensor of {size} bytes")
            contents[key] = file.read(size)
    return views, lambda storage: contents[storage.key]


def _check_tensors(views: dict[str, Any], values: Callable[[_Storage], bytes]) -> None:
    """Tensors have names, and may share their storages' values, but not grow them beyond twice."""
    if not all(isinstance(name, str) for name in views):
        raise UnpicklingError("its tensors have no names")
    tensors = [view for view in views.values() if isinstance(view, _View)]
    storages = {view.storage for view in tensors}
    for storage in storages:
        if len(values(storage)) != storage.length * np.dtype(storage.dtype).itemsize:
            raise ValueError(f"a storage has {len(values(storage))} bytes, and claims {storage.length} values")
    stored = sum({storage.key: storage.length for storage in storages}.values())
    if sum(math.prod(view.shape) for view in tensors) > 2 * stored:
        raise ValueError("its tensors claim more values than it holds")


def _array(view: _View, values: Callable[[_Storage], bytes]) -> NDArray[np.floating]:
    """Cut a tensor out of its storage, with every index within it."""
    flat = np.frombuffer(values(view.storage), view.storage.dtype)
    last = view.offset + sum((side - 1) * stride for side, stride in zip(view.shape, view.strides, strict=True))
    inside = view.offset >= 0 and last < len(flat) and min(view.strides, default=0) >= 0
    if len(flat) != view.storage.length or not inside or math.prod(view.shape) > len(flat):
        raise ValueError(f"a tensor of shape {view.shape} does not fit its {len(flat)} values")
    strides = [stride * flat.itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, strides, writeable=False).astype(np.float32)


def read_class_dict(path: Path) -> dict[int, NDArray[np.float64]]:
    """Read a `.npy` that holds a pickled dict of arrays by class id; raises `P2PHDError`."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            shape, _, dtype = read_header(file)
            if not dtype.hasobject or shape != ():
                raise ValueError("it holds no dict")
            loaded = unpickle(io.BytesIO(file.read()), _class_dict_names(path.stat().st_size))
        content = loaded.values if isinstance(loaded, _Array) else loaded
        arrays = {int(key): value.values for key, value in content.items()}
        if sum(array.nbytes for array in arrays.values()) > path.stat().st_size:
            raise UnpicklingError("it repeats itself")
        if not all(0 <= key < 1 << 31 and (np.abs(array) < 1e18).all() for key, array in arrays.items()):
            raise UnpicklingError("it holds what are no classes or no numbers")
        return {key: array.astype(np.float64) for key, array in arrays.items()}
    except FileNotFoundError:
        raise P2PHDError(f"{path}: no such file") from None
    except UnpicklingError as error:
        raise P2PHDError(f"{path}: refused: {error}") from None
    except DAMAGE as error:
        raise P2PHDError(f"{path}: truncated or damaged ({type(error).__name__}: {error})") from None


class _Type:
    """Stands for `numpy.dtype`: a number's, or `O8` for one Python object."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in ("O8", "f2", "f4", "f8", "i4", "i8", "u1"):
            raise UnpicklingError("it holds something else than numbers")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        self.code = ("<" if state[1] not in ("<", ">") else state[1]) + self.code.lstrip("<>")


class _Array:
    """Stands for `numpy.ndarray`; its values, which it shares with the pickle, come with its state."""

    values: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Type):
            raise UnpicklingError("it holds something else than arrays")
        if kind.code.endswith("O8"):
            (self.values,) = data
        else:
            self.values = np.frombuffer(data, kind.code).reshape(shape, order="F" if fortran else "C")


def _class_dict_names(size: int) -> dict[tuple[str, str], Any]:
    """What numpy's pickles of arrays ask for, in a file of this size."""
    left = size

    def encode(text: str, encoding: str) -> bytes:
        nonlocal left
        left -= len(text)
        if encoding != "latin1" or left < 0:
            raise UnpicklingError("it claims more bytes than it holds")
        return text.encode(encoding)

    def reconstruct(kind: Any, *_: Any) -> _Array:
        if kind is not _Array:
            raise UnpicklingError("it holds something else than arrays")
        return _Array()

    def scalar(kind: _Type, data: bytes) -> Any:
        return np.frombuffer(data, kind.code)[0]

    core = ("numpy.core.multiarray", "numpy._core.multiarray")
    names: dict[tuple[str, str], Any] = {(module, "_reconstruct"): reconstruct for module in core}
    names |= {(module, "scalar"): scalar for module in core}
    return names | {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Type, ("_codecs", "encode"): encode}
