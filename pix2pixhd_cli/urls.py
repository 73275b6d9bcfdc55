"""Files and folders by URL (`gs://`, `s3://` and their like) through TensorFlow's file systems, used as pathlib's are.

What reads a `Path` reads a `Url` too: both are a `Location`. TensorFlow is imported when a URL is first opened, not before.
"""

import errno
import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, TypeAlias

from pydantic import BeforeValidator, InstanceOf, PlainSerializer

from pix2pixhd_cli import engine
from pix2pixhd_cli.errors import P2PHDError

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
SHORTENED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # What pathlib makes of a URL.
CHUNK = 8 << 20


class Size(NamedTuple):
    """What is known of a file, as `Path.stat` names it."""

    st_size: int


@dataclass(frozen=True)
class Url:
    """A file or folder at a URL; its methods raise `OSError` with its name, and `P2PHDError` where nothing can open it."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> "Url":
        """The folder it lies in."""
        return Url(self.text.rpartition("/")[0])

    @property
    def local(self) -> Path | None:
        """The same place by its path, if it is on this machine."""
        return Path(self.text.removeprefix("file://")) if self.text.startswith("file://") else None

    def resolve(self) -> "Url":
        """Itself: a URL has no other name."""
        return self

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        with self._naming() as files:
            return bool(files.exists(self.text)) or bool(files.isdir(self.text))

    def is_dir(self) -> bool:
        """Whether there is a folder."""
        with self._naming() as files:
            return bool(files.isdir(self.text))

    def is_file(self) -> bool:
        """Whether there is a file."""
        return self.exists() and not self.is_dir()

    def stat(self) -> Size:
        """The file's size."""
        with self._naming() as files:
            return Size(files.stat(self.text).length)

    def names(self) -> list[str]:
        """What lies in the folder; nothing if it is not there."""
        try:
            with self._naming() as files:
                return sorted(name.rstrip("/") for name in files.listdir(self.text))
        except FileNotFoundError:
            return []

    @contextmanager
    def open(self, mode: str = "rb") -> Iterator[BinaryIO]:
        """The file's bytes, at any place in it."""
        with self._naming() as files, files.GFile(self.text, mode) as file:
            yield file

    def read_text(self, encoding: str) -> str:
        """The whole file."""
        with self.open() as file:
            return file.read().decode(encoding)

    def put(self, source: BinaryIO) -> None:
        """Write the file, whole or not at all: beside its name first, as far as the file system can rename."""
        beside = self.parent / f".{self.name}.partial"
        with self._naming() as files:
            files.makedirs(self.parent.text)
            beside.remove()
            with beside.open("wb") as file:
                file.write(b"")  # Or an empty file would not be made.
                shutil.copyfileobj(source, file, CHUNK)
            files.rename(beside.text, self.text, overwrite=True)

    def write_text(self, text: str) -> None:
        """Write a text file, whole or not at all."""
        self.put(io.BytesIO(text.encode()))

    def remove(self) -> None:
        """Delete the file if it is there."""
        with self._naming() as files:
            if files.exists(self.text):
                files.remove(self.text)

    def remove_folder(self) -> None:
        """Delete the folder with all that is in it, if it is there."""
        with self._naming() as files:
            if files.isdir(self.text):
                files.rmtree(self.text)

    @contextmanager
    def _naming(self) -> Iterator[Any]:
        """Yield TensorFlow's functions for files; what they raise becomes an `OSError` with the URL's name."""
        import tensorflow as tf

        _check_scheme(self.text)
        try:
            yield tf.io.gfile
        except tf.errors.NotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.text) from None
        except tf.errors.OpError as error:
            raise OSError(errno.EIO, " ".join(engine.reason(error).split()), self.text) from None


Location: TypeAlias = Path | Url


def locate(where: Location | str) -> Location:
    """A path, or a URL (`scheme://…`); raises `P2PHDError` for a URL that names no folder, or that pathlib has shortened."""
    if isinstance(where, Path) and SHORTENED.match(str(where)) and not where.parents[-2].exists():
        raise P2PHDError(f"{_lengthened(where)}: a URL must come as text, for a pathlib.Path shortens it")
    if not isinstance(where, str):
        return where
    if not (found := SCHEME.match(where)):
        return Path(where)
    rest = where[found.end() :].rstrip("/")
    if not rest or {".", ".."} & set(rest.split("/")) or not where.isprintable():
        raise P2PHDError(f"{where!r}: is no folder's URL; it should be like gs://bucket/folder")
    if found[1].lower() == "file" and not rest.startswith("/"):
        raise P2PHDError(f"{where}: names a machine; write file:///folder with three slashes, or just the path")
    return Url(found[0].lower() + rest)


def refuse_url(path: Path | None) -> Path | None:
    """Give a path back; raises `P2PHDError` for what was a URL before pathlib shortened it."""
    if path is not None and SHORTENED.match(str(path)) and not path.exists():
        raise P2PHDError(f"{_lengthened(path)}: must lie on this machine; only PACKED and RUN may be URLs")
    return path


def _lengthened(path: Path) -> str:
    return str(path).replace(":/", "://", 1)


def _parsed(value: object) -> object:
    """What a file remembers as a text, as the place it names; raises `ValueError`."""
    try:
        return locate(value) if isinstance(value, str) else value
    except P2PHDError as error:
        raise ValueError(str(error)) from None


Remembered = Annotated[Path | InstanceOf[Url], BeforeValidator(_parsed), PlainSerializer(str, when_used="json")]


def _check_scheme(url: str) -> None:
    """Make sure that TensorFlow has a file system for a URL; tensorflow-io, where it is installed, brings more."""
    scheme = url.partition("://")[0]
    if scheme in _schemes():
        return
    problem = "`pip install tensorflow-io` brings others, such as s3://; or copy the data to this machine"
    if find_spec("tensorflow_io") is not None:
        try:
            import_module("tensorflow_io")
        except Exception as error:  # Libraries of another TensorFlow fail in many ways.
            problem = f"tensorflow-io cannot be loaded ({' '.join(str(error).split())[:200]})"
        if scheme in _schemes():
            return
    known = ", ".join(f"{name}://" for name in _schemes())
    raise P2PHDError(f"{url}: TensorFlow opens {known} here, and no {scheme}://; {problem}")


def _schemes() -> list[str]:
    import tensorflow as tf

    return sorted(filter(None, tf.io.gfile.get_registered_schemes()))
