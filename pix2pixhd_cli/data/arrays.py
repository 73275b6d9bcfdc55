"""Named arrays in a file, as numpy's `npz` has them, read with suspicion.

Nothing is unpickled, every array is checked against the archive's CRC-32, and what a header claims is compared with what the
file has before memory is taken. The same arrays always give the same bytes.
"""

import errno
import hashlib
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pix2pixhd_cli.data.files import whole_file
from pix2pixhd_cli.errors import P2PHDError, check_regular, naming

# What a damaged archive makes the standard library and numpy raise.
DAMAGE = (
    OSError, ValueError, KeyError, EOFError, IndexError, TypeError, AttributeError, SyntaxError, RuntimeError,
    OverflowError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def write_arrays(path: Path, arrays: Iterable[tuple[str, NDArray[Any]]], *, compress: bool = False) -> None:
    """Write named arrays, one at a time, whole or not at all."""
    with whole_file(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        for name, array in arrays:
            entry = zipfile.ZipInfo(f"{name}.npy")  # One of its own has a fixed date.
            entry.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


class ArrayFile:
    """An open file of arrays; `open_arrays` makes it."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, advice: str) -> None:
        self.names = [name.removesuffix(".npy") for name in archive.namelist()]
        self._path, self._advice = path, advice
        self._archive = archive
        self._size = path.stat().st_size

    def read(self, name: str, shape: tuple[int, ...] | None = None, dtype: Any = None, most: int = 0) -> NDArray[Any]:
        """One array, checked; raises `P2PHDError`.

        Args:
            name: the array's.
            shape: what it must have, if that is known.
            dtype: what it must have, if that is known.
            most: bytes that a compressed array may have if they are more than the whole file's.
        """
        with _complaining(self._path, self._advice), self._open(name) as file:
            found, fortran, kind = read_header(file)
            size = math.prod(found) * kind.itemsize
            if shape not in (None, found):
                raise ValueError(f"{name} has the shape {found} instead of {shape}")
            if dtype is not None and kind != dtype:
                raise ValueError(f"{name} holds {kind} instead of {np.dtype(dtype)}")
            if kind.hasobject or min(found, default=0) < 0 or size > max(self._size, most):
                raise ValueError(f"{name} claims to be what it cannot be")
            return np.frombuffer(_read_all(file, size), kind).reshape(found, order="F" if fortran else "C")

    @property
    def digest(self) -> str:
        """A few digits that stand for all arrays, from their checksums in the archive."""
        entries = [(entry.filename, entry.file_size, entry.CRC) for entry in self._archive.infolist()]
        return hashlib.sha256(repr(entries).encode()).hexdigest()[:12]

    def _open(self, name: str) -> IO[bytes]:
        entry = self._archive.getinfo(f"{name}.npy")
        if entry.compress_size > self._size or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} claims to be larger than the file, or is packed as numpy never does")
        return self._archive.open(entry)


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type from the head of an `.npy`; raises `ValueError`, as numpy does but for broken grammar."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # Others are for heads over 64 KiB.
        raise ValueError(f"it has version {version} of numpy's format")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"its head is no head of numpy's ({error})") from None
    return shape, fortran, dtype


@contextmanager
def open_arrays(path: Path, advice: str = "make it again") -> Iterator[ArrayFile]:
    """Open a file of arrays; raises `FileNotFoundError`, and `P2PHDError` that ends in `advice`."""
    with _complaining(path, advice):
        check_regular(path)
        archive = zipfile.ZipFile(path)
    with archive:
        yield ArrayFile(path, archive, advice)


def _read_all(file: IO[bytes], size: int) -> bytes:
    """What is left of an entry, which must be `size` bytes; its checksum is compared at the end."""
    data = file.read(size)
    if len(data) != size or file.read(1):
        raise ValueError(f"it holds {len(data)} bytes or more instead of {size}")
    return data


@contextmanager
def _complaining(path: Path, advice: str) -> Iterator[None]:
    """What a damaged file makes others raise becomes a `P2PHDError` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)):
            with naming(path):  # The system's trouble, and not the file's.
                raise
        raise P2PHDError(
            f"{path}: damaged ({(str(error) or type(error).__name__).splitlines()[0]}); {advice}"
        ) from None
