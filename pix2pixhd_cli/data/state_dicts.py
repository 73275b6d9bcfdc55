"""The reference's files, read without PyTorch and without running anything in them.

A `.pth` is a pickle of a state dict beside its tensors' bytes, in a zip archive since PyTorch 1.6 and in a row before. The reader
builds numpy arrays and knows just the few names that a state dict needs; any other name in the file is refused unrun. The same
holds for the pickled dicts in `features.npy` and `features_clustered_*.npy`.
"""

import codecs
import collections
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pix2pixhd_cli.errors import P2PHDError

STORAGES = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}
# What a damaged file makes the standard library raise, beside refusals.
DAMAGE = (
    OSError, ValueError, KeyError, EOFError, IndexError, TypeError, AttributeError, struct.error, OverflowError,
    MemoryError, RuntimeError, zlib.error,
)  # fmt: skip
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
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


class _Reader(pickle.Unpickler):
    """An unpickler that resolves just the names given to it."""

    def __init__(self, file: Any, names: dict[tuple[str, str], Any]) -> None:
        super().__init__(file)
        self.names = names

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no state dict needs; nothing in it was run"
            )
        return self.names[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length = tuple(pid)[:5]
        if kind != "storage" or not isinstance(dtype, str) or not isinstance(length, int):
            raise pickle.UnpicklingError("it holds something else than tensors")
        return _Storage(str(key), dtype, length)


def _view(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _View:
    return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


STATE_DICT_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_tensor"): _view,
    ("torch._utils", "_rebuild_parameter"): lambda view, *_: view,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


def read_state_dict(path: Path) -> StateDict:
    """Read a `.pth` as names and float32 arrays, in the file's order; raises `P2PHDError`."""
    try:
        if zipfile.is_zipfile(path):
            views, values = _read_zip(path)
        else:
            views, values = _read_legacy(path)
        return {str(name): _array(view, values) for name, view in views.items() if isinstance(view, _View)}
    except FileNotFoundError:
        raise P2PHDError(f"{path}: no such file") from None
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise P2PHDError(f"{path}: refused: {error}") from None
    except DAMAGE as error:
        raise P2PHDError(f"{path}: truncated or damaged ({type(error).__name__}: {error})") from None


def _read_zip(path: Path) -> tuple[dict[str, Any], Callable[[_Storage], bytes]]:
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
        if name is None:
            raise ValueError("there is no data.pkl in it")
        root = name.removesuffix("data.pkl")
        views = _Reader(io.BytesIO(archive.read(name)), STATE_DICT_NAMES).load()
        keys = {view.storage.key for view in views.values() if isinstance(view, _View)}
        contents = {key: archive.read(f"{root}data/{key}") for key in keys}
    return views, lambda storage: contents[storage.key]


def _read_legacy(path: Path) -> tuple[dict[str, Any], Callable[[_Storage], bytes]]:
    """Before PyTorch 1.6: four pickles (magic, version, system, state dict), the storages' keys, and their bytes in turn."""
    with path.open("rb") as file:
        if _Reader(file, {}).load() != LEGACY_MAGIC:
            raise ValueError("it is not a PyTorch file")
        for _ in range(2):
            _Reader(file, {}).load()
        views = _Reader(file, STATE_DICT_NAMES).load()
        keys = _Reader(file, {}).load()
        storages = {view.storage.key: view.storage for view in views.values() if isinstance(view, _View)}
        contents = {}
        for key in keys:
            (length,) = struct.unpack("<q", file.read(8))
            contents[key] = file.read(length * np.dtype(storages[key].dtype).itemsize)
    return views, lambda storage: contents[storage.key]


def _array(view: _View, values: Callable[[_Storage], bytes]) -> NDArray[np.floating]:
    """Cut a tensor out of its storage, with every index within it."""
    flat = np.frombuffer(values(view.storage), view.storage.dtype)
    last = view.offset + sum((side - 1) * stride for side, stride in zip(view.shape, view.strides, strict=True))
    if len(flat) != view.storage.length or view.offset < 0 or last >= len(flat) or min(view.strides, default=0) < 0:
        raise ValueError(f"a tensor of shape {view.shape} does not fit its {len(flat)} values")
    strides = [stride * flat.itemsize for stride in view.strides]
    return np.lib.stride_tricks.as_strided(flat[view.offset :], view.shape, strides, writeable=False).astype(np.float32)


def read_class_dict(path: Path) -> dict[int, NDArray[np.float64]]:
    """Read a `.npy` that holds a pickled dict of arrays by class id; raises `P2PHDError`."""
    core = ("numpy.core.multiarray", "numpy._core.multiarray")
    names: dict[tuple[str, str], Any] = {(module, "_reconstruct"): _reconstruct for module in core}
    names |= {(module, "scalar"): lambda dtype, data: np.frombuffer(data, dtype)[0] for module in core}
    names |= {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): codecs.encode}
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(file)
            if not dtype.hasobject or shape != ():
                raise ValueError("it holds no dict")
            loaded = _Reader(file, names).load()
        content = loaded.item() if isinstance(loaded, np.ndarray) else loaded
        return {int(key): np.asarray(value, np.float64) for key, value in content.items()}
    except FileNotFoundError:
        raise P2PHDError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        raise P2PHDError(f"{path}: refused: {error}") from None
    except DAMAGE as error:
        raise P2PHDError(f"{path}: truncated or damaged ({type(error).__name__}: {error})") from None


def _reconstruct(kind: Any, shape: Any, code: Any) -> NDArray[Any]:
    """What numpy's own pickles call for an array, and nothing but an array."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("it holds something else than arrays")
    return np.ndarray(shape, np.dtype(code))
