"""Pickles from strangers: read with a few names alone, once it is known that reading them takes neither room nor time.

A pickle is a program. It can ask for any name, which is refused unrun, but with no name at all it can number an object so high
that the table of numbers fills the memory, make a tuple of itself twice so often that comparing it takes for ever, or nest
tuples so deep that the interpreter falls over.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

DEEPEST = 100  # Containers in containers; a state dict's are six deep.
TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
PUTS, GETS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
GROWING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")


class _Reader(pickle.Unpickler):
    """An unpickler that resolves just the names given to it."""

    def __init__(
        self, file: io.BytesIO, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any]
    ) -> None:
        super().__init__(file)
        self.names = names
        self.persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no state dict needs; nothing in it was run"
            )
        found = self.names[module, name]
        return found.__call__ if isinstance(found, FunctionType) else found  # Which nobody can give attributes.

    def persistent_load(self, pid: Any) -> Any:
        return self.persistent(pid)


def _nothing(_: Any) -> Any:
    raise pickle.UnpicklingError("it asks for what lies elsewhere")


def unpickle(
    file: io.BytesIO, names: Mapping[tuple[str, str], Any], persistent: Callable[[Any], Any] = _nothing
) -> Any:
    """The next pickle in `file`, which may ask for `names` and, if it refers to what lies elsewhere, `persistent`.

    Raises `pickle.UnpicklingError`, and what a damaged pickle makes the standard library raise.
    """
    start = file.tell()
    _check(file)
    file.seek(start)
    return _Reader(file, names, persistent).load()


def _check(file: io.BytesIO) -> None:
    """Follow the operations with the depth of every object in the place of the object."""
    most, before = len(file.getbuffer()), ""
    depths: list[int] = []  # Of the objects on the stack.
    marks: list[int] = []
    numbered: dict[int, int] = {}  # Depths, by number.
    tuples: set[int] = set()  # Numbers of tuples.
    for operation, argument, _ in pickletools.genops(file):
        kind = operation.name
        if kind == "MARK":
            marks.append(len(depths))
        elif kind in PUTS:
            number = len(numbered) if kind == "MEMOIZE" else int(argument or 0)
            if number > most:
                raise pickle.UnpicklingError("it numbers more objects than it can hold")
            numbered[number] = depths[-1]
            (tuples.add if before in TUPLES else tuples.discard)(number)
        elif kind == "DUP" or (kind in GETS and argument in tuples):
            raise pickle.UnpicklingError("it repeats itself")
        elif kind in GETS:
            depths.append(numbered[int(argument or 0)])
        else:
            taken = _take(operation, depths, marks)
            depth = max(taken, default=-1) + 1
            if kind in GROWING:
                depth = max(taken[0], max(taken[1:], default=-1) + 1)
            if depth > DEEPEST:
                raise pickle.UnpicklingError("it is nested too deep")
            depths += [depth] * len(operation.stack_after)
        before = kind


def _take(operation: pickletools.OpcodeInfo, depths: list[int], marks: list[int]) -> list[int]:
    """Take off the stack what an operation takes."""
    wanted = operation.stack_before
    start = marks.pop() if pickletools.markobject in wanted else len(depths)
    start -= wanted.index(pickletools.markobject) if pickletools.markobject in wanted else len(wanted)
    if start < 0:
        raise pickle.UnpicklingError("it takes more than there is")
    taken = depths[start:]
    del depths[start:]
    return taken
