"""What a user can get wrong, as exceptions: one line that says what, where, and the way out.

Anything else that is raised is a bug and may show its traceback.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol


class File(Protocol):
    """A path, or a URL."""

    def exists(self) -> bool:
        """Whether anything is there."""

    def is_file(self) -> bool:
        """Whether it is a file."""


class P2PHDError(Exception):
    """A mistake the user can mend; its text is the one line that is shown."""

    exit_code = 1


class SettingsError(P2PHDError):
    """A flag, environment variable or TOML key that is unknown, of the wrong type or contradicts the run."""

    exit_code = 2


class Interrupted(P2PHDError):
    """The user or the system asked the program to stop, and it did so in good order."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Give the name of this file to an `OSError` that has none, such as a full disk's."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def check_regular(path: File) -> None:
    """Refuse a folder, a pipe or a device where a file is to be read, for these may have no end; one that is missing passes."""
    if path.exists() and not path.is_file():
        raise P2PHDError(f"{path}: is no file")


class Terminated(BaseException):
    """SIGTERM, raised wherever it strikes, as Ctrl-C is."""


STOPS = (KeyboardInterrupt, Terminated)


def interrupted(stop: BaseException, message: str) -> Interrupted:
    """What a user sees of Ctrl-C (exit code 130) or SIGTERM (143)."""
    return Interrupted(message, 143 if isinstance(stop, Terminated) else 130)


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong with one input file: `where` names the file, `what` the fault and its first place."""

    where: str
    what: str


class DataProblems(P2PHDError):
    """Everything that is wrong with a data set, collected so that it can be mended in one go."""

    def __init__(self, problems: Sequence[Problem], hint: str) -> None:
        self.problems = sorted(problems)
        count = len(self.problems)
        super().__init__(f"{count} problem{'s' if count != 1 else ''} found: {hint}")
