"""Reads the reference's state dicts (zip-format `.pth`) without PyTorch, for the golden tests."""

import collections
import pickle
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray


class _StateDictReader(pickle.Unpickler):
    """Builds numpy arrays from a state dict and refuses every class that a state dict does not need."""

    archive: zipfile.ZipFile
    root: str

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self.rebuild,
            ("torch", "FloatStorage"): "<f4",
        }
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> NDArray[np.float32]:
        _, dtype, key, *_ = pid
        return np.frombuffer(self.archive.read(f"{self.root}/data/{key}"), dtype)

    @staticmethod
    def rebuild(storage: NDArray[np.float32], offset: int, size: Any, stride: Any, *_: Any) -> NDArray[np.float32]:
        strides = [step * storage.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, strides)


def read_state_dict(path: Path) -> dict[str, NDArray[np.float32]]:
    """Names and arrays in the reference's own order and layout."""
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        with archive.open(name) as file:
            reader = _StateDictReader(file)
            reader.archive, reader.root = archive, name.removesuffix("/data.pkl")
            return dict(reader.load())


def assign(network: keras.Model, state: dict[str, NDArray[np.float32]]) -> None:
    """Set a network's weights from a state dict whose layers stand in the same order."""
    weights = list(state.values())
    assert len(weights) == len(network.weights)
    for variable, value in zip(network.weights, weights, strict=True):
        # (O, I, h, w) and the transposed (I, O, h, w) both become (h, w, …) with their first two axes swapped.
        variable.assign(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)


def finest_first(state: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """A discriminator's state dict with its scales in our order: the reference numbers the finest scale highest."""
    return dict(sorted(state.items(), key=lambda item: -int(item[0].split("_")[0].removeprefix("scale"))))
