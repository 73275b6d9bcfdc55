"""A machine whose power fails: after so many file operations nothing happens any more, and what was not synced is lost."""

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

OPERATIONS = ("replace", "rename", "mkdir", "rmdir", "unlink", "fsync", "open")
Names = Literal["kept", "lost", "mixed"]  # What becomes of names that were given or taken and not synced.


class Death(BaseException):
    """The process ends here."""


class Power:
    """Lets so many file operations happen in and below a folder, and none after that.

    The disk is as strict as POSIX allows: a file has the bytes that its last fsync found, and a folder the names that its own
    last fsync found, or the present ones, or some of these and some of those. What is there at the start has reached it.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, operations: int) -> None:
        self.left = operations
        self.folder = folder
        self._names: dict[int, dict[str, int]] = {}
        self._bytes: dict[int, bytes] = {}
        self._held: list[int] = []
        for path in (folder, *folder.rglob("*")):
            descriptor = os.open(path, os.O_RDONLY)
            self._remember(descriptor)
            os.close(descriptor)
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name), name))

    def _counted(self, operation: Callable[..., object], name: str) -> Callable[..., object]:
        def counted(*arguments: object, **keywords: object) -> object:
            if name == "open" and not (len(arguments) > 1 and int(arguments[1]) & os.O_WRONLY):  # type: ignore[call-overload]
                return operation(*arguments, **keywords)
            if self.left <= 0:
                raise Death
            self.left -= 1
            result = operation(*arguments, **keywords)
            if name == "fsync":
                self._remember(int(arguments[0]))  # type: ignore[call-overload]
            return result

        return counted

    def _remember(self, descriptor: int) -> None:
        """Note what has reached the disk; a copy of the descriptor keeps the inode's number from being given away."""
        self._held.append(os.dup(descriptor))
        inode, path = os.fstat(descriptor).st_ino, Path(f"/proc/self/fd/{descriptor}")
        if path.is_dir():
            self._names[inode] = _names(path)
        else:
            self._bytes[inode] = path.read_bytes()

    def lose(self, names: Names, seed: int) -> None:
        """Leave what has reached the disk."""
        random = np.random.default_rng(seed)
        for path in (path for path in (self.folder, *self.folder.rglob("*")) if path.is_dir()):
            before, now = self._names.get(path.stat().st_ino, {}), _names(path)
            kept = {"kept": 1, "lost": 0, "mixed": random.choice([0, 0.5, 1])}[names]  # A share of what has changed.
            found = {name: (now if random.random() < kept else before).get(name) for name in sorted({*before, *now})}
            self._names[path.stat().st_ino] = {name: inode for name, inode in found.items() if inode is not None}
        after = self.folder.with_name(f"{self.folder.name}-after")
        self._restore(self.folder.stat().st_ino, after, self._folders())
        shutil.rmtree(self.folder)
        after.rename(self.folder)
        for descriptor in self._held:
            os.close(descriptor)

    def _folders(self) -> set[int]:
        """The inodes of folders, synced or not."""
        return {path.stat().st_ino for path in self.folder.rglob("*") if path.is_dir()} | set(self._names)

    def _restore(self, inode: int, path: Path, folders: set[int]) -> None:
        if inode not in folders:
            path.write_bytes(self._bytes.get(inode, b""))
            return
        path.mkdir()
        for name, entry in self._names.get(inode, {}).items():
            self._restore(entry, path / name, folders)


def _names(folder: Path) -> dict[str, int]:
    return {found.name: found.stat().st_ino for found in folder.iterdir()}


def failing_power(
    folder: Path, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch, names: Names, seed: int = 0
) -> Iterator[bool]:
    """Do `work`, in `folder`, with more and more file operations until the power fails; yields whether it was done."""
    for operations in itertools.count():
        with monkeypatch.context() as patch:
            power = Power(folder, patch, operations)
            with contextlib.suppress(Death):
                work()
        power.lose(names, 1000 * seed + operations)
        yield power.left > 0
        if power.left > 0:
            assert operations > 3, "there was little to interrupt"
            return
