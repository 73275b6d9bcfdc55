"""Files and folders that are whole or absent, whatever happens while they are written, and outlive a loss of power."""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Annotated
from unicodedata import category

from pydantic import AfterValidator

from pix2pixhd_cli.errors import P2PHDError, naming


def check_plain_name(text: str) -> str:
    """A name that can be put behind a folder's and stays in it; raises `ValueError` for any other."""
    if not text or text in (".", "..") or plain_name(text) != text:
        raise ValueError("must be a file's plain name, without folders or control characters")
    return text


def plain_name(text: str) -> str:
    """A text with `_` in the place of slashes, control characters and what is no character."""
    return "".join("_" if c in "/\\" or not is_text(c) else c for c in text)


def is_text(text: str) -> bool:
    """Whether there are characters alone, without what a terminal would obey or no file can hold."""
    return not any(category(c) in ("Cc", "Cs") for c in text)


def check_text(text: str) -> str:
    """A text of characters alone; raises `ValueError` for any other."""
    if not is_text(text):
        raise ValueError("holds control characters")
    return text


PlainName = Annotated[str, AfterValidator(check_plain_name)]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; it becomes `path`, on the disk, if all goes well and is gone if not."""
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path):
            yield beside
            sync(beside)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            beside.replace(path)
            sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, to fill and then to give to `take_place`; otherwise it is gone afterwards."""
    with held(partial_folder(folder)) as beside:
        for path in beside.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        try:
            yield beside
        finally:
            shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def held(staging: Path, *, shared: bool = False) -> Iterator[Path]:
    """Make a folder, unless it is there, and keep other processes from working in it; raises `P2PHDError` if one does.

    Those that share it keep only those from it that do not.
    """
    while True:
        make_folder(staging)
        refuse_links(staging, *staging.glob("*"), *staging.glob("*/*"))
        descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if not take_lock(descriptor, shared=shared):
            os.close(descriptor)
            raise P2PHDError(f"{staging}: another process is working here; wait for it")
        if staging.is_dir() and staging.stat().st_ino == os.fstat(descriptor).st_ino:
            break
        os.close(descriptor)  # It was renamed meanwhile.
    try:
        yield staging
    finally:
        os.close(descriptor)


def take_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file or folder until it is closed; False if another process has. File systems without locks give them all."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def partial_folder(folder: Path) -> Path:
    """The hidden folder beside `folder` in which it is made; raises `P2PHDError` where nothing can be renamed to it."""
    if folder.is_mount():
        raise P2PHDError(f"{folder}: is a mount point; name a folder in it")
    whole = folder.resolve()
    return whole.with_name(f".{whole.name}.p2phd-partial")


def take_place(staging: Path, folder: Path) -> None:
    """Bring `staging` to the disk, and rename it to `folder`, which is empty or not there."""
    for path in (*staging.rglob("*"), staging):
        sync(path)
    with naming(folder):
        if folder.exists():
            folder.resolve().rmdir()
        staging.replace(folder.resolve())
        sync(folder.resolve().parent)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, on the disk; raises `P2PHDError` where something else is there."""
    missing = list(takewhile(lambda path: not path.is_dir(), (folder, *folder.parents)))
    for path in missing:
        if (path.exists() or path.is_symlink()) and not path.is_dir():
            raise P2PHDError(f"{path}: is no folder; name another place")
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def refuse_links(*paths: Path) -> None:
    """Raise `P2PHDError` if a folder is a link: what is written to it must stay there."""
    for path in paths:
        if path.is_symlink():
            raise P2PHDError(f"{path}: is a link, and may lead anywhere; delete it")


def remove(path: Path) -> None:
    """Delete a file, on the disk, if it is there."""
    if path.exists():
        path.unlink()
        sync(path.parent)


def sweep(*folders: Path, alone: bool = False) -> None:
    """Delete what processes that died were writing right in these folders; `alone` says that none is at work in them.

    On a folder that machines share, the process of another one may seem to be dead, or to be one of ours.
    """
    for path in (path for folder in folders for path in folder.glob(".*.partial")):
        writer = path.name.split(".")[-2]
        if path.is_file() and writer.isdecimal() and (alone or not is_alive(int(writer))):
            path.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """A file's SHA-256."""
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_alive(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
