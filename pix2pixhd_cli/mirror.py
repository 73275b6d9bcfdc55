"""Runs at URLs: verbs work with a copy on this machine, and what they make is copied up.

Whatever stops a copying, what lies at the URL is a whole run: each file is written beside its name and renamed, they come in the
order in which a run makes them, and a checkpoint counts if its `score.json` is there, which comes last and goes first. What
was deleted here is deleted there once all that is new has come.

`.writer` at the URL names the process that writes there. Whether a process of another machine lives cannot be known from here:
its `.writer` holds until somebody deletes it.
"""

import errno
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import wraps
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pix2pixhd_cli import console
from pix2pixhd_cli.data.dataset import DatasetSpec
from pix2pixhd_cli.data.files import held, is_alive, plain_name, refuse_links, whole_file, write_text
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.images import Sheet
from pix2pixhd_cli.runs import CHECKPOINT, NETWORKS, SCORE, TRAINING, Run, Sources, State, is_left_over, told
from pix2pixhd_cli.sealed import read_sealed, seal
from pix2pixhd_cli.settings import Settings
from pix2pixhd_cli.urls import CHUNK, Location, Url, locate

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

WRITER = ".writer"
EVERY, NEWEST = "checkpoints/*/", "checkpoints/+/"
# What of a run is needed for which work.
DESCRIPTION = ("settings.json", "dataset.json", "sources.json")
MODEL = (*DESCRIPTION, "model/weights.npz")
PAINTING = (*MODEL, "clusters.npz")
STUDIO = (*PAINTING, "clusters.png")
STYLES = (*DESCRIPTION, "features.npz", "clusters.npz", "clusters.png")
START = (*DESCRIPTION, f"{NEWEST}{NETWORKS}")
EVALUATING = (*PAINTING, f"{EVERY}{NETWORKS}", f"{EVERY}{SCORE}")
SHOWING = (*PAINTING, "features.npz", "metrics.jsonl", "evaluation/*", f"{EVERY}{SCORE}")
REPORTING = (*SHOWING, "clusters.png", "samples/*")
GOING_ON = (*MODEL, "metrics.jsonl", *(f"{EVERY}{file}" for file in (NETWORKS, TRAINING, SCORE)))
# The order in which a run makes its files; all others come between.
FIRST = ("dataset.json", "sources.json", "settings.json")
LAST = ("model", "checkpoints", "features.npz", "clusters.npz", "clusters.png")


class Writer(BaseModel):
    """`.writer`: which process writes at a URL. token: of this time that it does, and of its copy on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    process: int = Field(ge=1)
    token: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    @property
    def is_dead(self) -> bool:
        """Whether it is known to write no more: it ran on this machine."""
        return self.host == socket.gethostname() and (self.process == os.getpid() or not is_alive(self.process))


class Claim:
    """The right to write at a URL, which one process has at a time."""

    def __init__(self, url: Url, token: str | None = None) -> None:
        self._url, self._place = url, url / WRITER
        self.writer = Writer(host=socket.gethostname(), process=os.getpid(), token=token or secrets.token_hex(8))

    def take(self) -> None:
        """Take it; raises `P2PHDError` if another process has it that may be alive."""
        holder = _read_writer(self._place)
        if holder is not None and not holder.is_dead:
            advice = f"wait for it or, if it is gone for sure, delete {self._place}"
            raise P2PHDError(f"{self._url}: {holder} is writing here; {advice}")
        if (folder := self._url.local) is not None:
            refuse_links(*folder.glob("*"), *folder.glob("*/*"), *folder.glob("checkpoints/*/*"))
        self._place.write_text(seal(self.writer.model_dump()))
        self.check()

    def check(self) -> None:
        """Raise `OSError` if another process has taken it meanwhile."""
        holder = _read_writer(self._place)
        if holder != self.writer:
            who = f"{holder} writes here now" if holder is not None else "another process took it away"
            raise OSError(errno.EBUSY, who, str(self._place))

    def release(self) -> None:
        """Give it back, if it is still ours."""
        try:
            if _read_writer(self._place) == self.writer:
                self._place.remove()
        except (OSError, P2PHDError) as error:
            console.warn(f"{told(error)}; delete {self._place}, or other machines will wait for this one")


def _read_writer(place: Location) -> Writer | None:
    """Who writes, if anybody does."""
    try:
        return read_sealed(place, Writer)
    except FileNotFoundError:
        return None


@contextmanager
def claimed(url: Url) -> Iterator[None]:
    """Keep other processes from writing at a URL; raises `P2PHDError` if one does."""
    claim = Claim(url)
    claim.take()
    try:
        yield
    finally:
        claim.release()


class Stamp(NamedTuple):
    """What tells a file from an earlier one of its name."""

    inode: int
    size: int
    changed: int


class Mirror(Run):
    """The copy of a run at a URL; `scope` names the files that a verb needs."""

    def __init__(self, folder: Path, url: Url, scope: tuple[str, ...]) -> None:
        super().__init__(folder)
        self.url = url
        self._scope = scope
        self._claim = Claim(url)
        self._known: dict[str, Stamp | None] = {}  # What lies at the URL, and which of our files it was.

    def create(self, settings: Settings, spec: DatasetSpec, sources: Sources) -> None:
        """Write what a run starts with, and copy it up."""
        super().create(settings, spec, sources)
        self.copy_up()

    def save_checkpoint(self, state: State, step: int, keep: int, distance: float | None = None) -> None:
        """Write a checkpoint, and copy up all that is new."""
        super().save_checkpoint(state, step, keep, distance)
        self.copy_up()

    def save_sample(self, step: int, sheet: Sheet) -> None:
        """Write the sample pictures of a step, and copy up all that is new."""
        super().save_sample(step, sheet)
        self.copy_up()

    @property
    def is_free(self) -> bool:
        """Whether a run may be made here, and at the URL."""
        return super().is_free and all(name == WRITER or is_left_over(name) for name in self.url.names())

    @contextmanager
    def lock(self, *, shared: bool = False) -> Iterator[None]:
        """Keep other processes from writing at the URL, fetch what is needed, and copy up what is new at the end.

        It cannot be shared. Raises `P2PHDError` naming who writes there already, and if what is new cannot be copied.
        """
        assert not shared, "nobody at a URL can tell who is alive"
        with self._locked_here():
            self._claim.take()
            try:
                self._begin()
                yield
            except BaseException:
                self._give_up()
                raise
            self._finish()

    def _locked_here(self) -> AbstractContextManager[None]:
        """The lock that those take who know the run by its path, where it has one."""
        return Run(self.url.local).lock() if self.url.local is not None else nullcontext()

    def _begin(self) -> None:
        self.fetch(self._scope)

    def _give_up(self) -> None:
        self._claim.release()

    def _finish(self) -> None:
        try:
            self.copy_up()
        except OSError as error:
            raise P2PHDError(f"{told(error)}; nothing was kept, run the command again") from None
        finally:
            self._claim.release()

    def fetch(self, scope: tuple[str, ...]) -> None:
        """Bring those files of the URL here that are there."""
        for name in _found(self.url, scope):
            source = self.url / name
            with whole_file(self.folder / name) as beside:
                with source.open() as there, beside.open("wb") as here:
                    shutil.copyfileobj(there, here, CHUNK)
                if beside.stat().st_size != source.stat().st_size:
                    raise OSError(errno.EIO, "it came short, or changed meanwhile", str(source))
            self._known[name] = self._stamp(name)

    def copy_up(self) -> None:
        """Copy up what is new, then delete there what is gone here; raises `OSError`, and goes on if called again."""
        self._claim.check()
        here = {name: self._stamp(name) for name in sorted(self._files(), key=_order)}
        for name, stamp in here.items():
            if self._known.get(name) != stamp:
                self._unmark(name)
                with (self.folder / name).open("rb") as file:
                    (self.url / name).put(file)
                self._known[name] = stamp
        for name in sorted(self._known.keys() - here.keys(), key=_order):
            self._unmark(name)
            there = self.url / name
            there.remove() if (self.folder / name).parent.exists() else there.parent.remove_folder()
            self._known.pop(name, None)

    def _files(self) -> list[str]:
        """All files but hidden ones."""
        names = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        return [str(name) for name in names if not any(part.startswith(".") for part in name.parts)]

    def _stamp(self, name: str) -> Stamp:
        found = (self.folder / name).stat()
        return Stamp(found.st_ino, found.st_size, found.st_mtime_ns)

    def _unmark(self, name: str) -> None:
        """Before a file changes, delete what says at the URL that it is whole, or shows it."""
        mark = "clusters.png" if name == "clusters.npz" else str(Path(name).with_name(SCORE))
        if mark != name and mark in self._known:
            (self.url / mark).remove()
            del self._known[mark]


class TrainingMirror(Mirror):
    """The copy that a training works with; it stays on this machine until all of it has been copied up.

    If the process dies, and none wrote at the URL since, the next training on this machine goes on with it.
    """

    def __init__(self, base: Path, url: Url) -> None:
        super().__init__(base / "run", url, GOING_ON)
        self._base, self._writer = base, base / "writer.json"
        ours, holder = _read_writer(self._writer), _read_writer(url / WRITER)
        self._is_newest = False
        if ours is not None and holder is not None and ours.token == holder.token and self.checkpoints():
            self._is_newest, self._claim = True, Claim(url, ours.token)
            console.info(f"{url}: going on with what lies in {base}, which may not have been copied up")
        else:
            self.clear()
            self.fetch(DESCRIPTION)

    def tidy(self) -> None:
        """Delete the copy, unless it holds what was not copied up."""
        if not self._writer.exists():
            self.clear()
            self._base.rmdir()

    def clear(self) -> None:
        """Delete the copy."""
        self._writer.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self) -> None:
        if self._is_newest:
            self._compare()
        else:
            super()._begin()
        write_text(self._writer, seal(self._claim.writer.model_dump()))  # From now on this copy is the newest.

    def _compare(self) -> None:
        """Take checkpoints that have their files' sizes at the URL as copied up, and nothing else."""
        for name in _found(self.url, self._scope):
            kept = name.startswith("checkpoints/") and (self.folder / name).exists()
            same = kept and (self.folder / name).stat().st_size == (self.url / name).stat().st_size
            self._known[name] = self._stamp(name) if same else None

    def _give_up(self) -> None:
        try:
            self._finish()
        except P2PHDError as error:
            console.warn(str(error))

    def _finish(self) -> None:
        try:
            self.copy_up()
        except OSError as error:
            raise P2PHDError(
                f"{told(error)}; what was not copied up lies in {self._base}, and `p2phd train --resume` on this machine goes on "
                "with it"
            ) from None
        self._claim.release()
        self.clear()


@contextmanager
def working_copy(where: Location | str, scope: tuple[str, ...], *, writing: bool = False) -> Iterator[Run]:
    """A run where it lies or, of one at a URL, a copy of what `scope` names, for as long as the context lasts.

    In all that is said it goes by the URL. If something is to be written, the files come with its lock. Raises `P2PHDError`.
    """
    place = locate(where)
    if isinstance(place, Path):
        yield Run(place)
        return
    with TemporaryDirectory(prefix="p2phd-") as temporary:
        folder = Path(temporary) / "run"
        with console.calling(folder, place):
            mirror = Mirror(folder, place, scope)
            if not writing:
                mirror.fetch(scope)
            yield mirror


@contextmanager
def training_copy(where: Location | str) -> Iterator[Run]:
    """The same for a training: the copy has all that it goes on from, and is kept until all of it has been copied up."""
    place = locate(where)
    if isinstance(place, Path):
        yield Run(place)
        return
    digest = sha256(str(place).encode()).hexdigest()[:16]
    with held(cache() / f"{plain_name(place.name)}-{digest}") as base, console.calling(base / "run", place):
        mirror = TrainingMirror(base, place)
        try:
            yield mirror
        finally:
            mirror.tidy()


def cache() -> Path:
    """Where trainings at URLs have their copies: `p2phd` in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "p2phd"


def at_any_place(
    scope: tuple[str, ...], *, writing: bool = False
) -> Callable[
    [Callable[Concatenate[Path, Parameters], Result]], Callable[Concatenate[Location | str, Parameters], Result]
]:
    """Let a verb whose first argument is a run's folder take a URL in its place; `scope` names what it needs of the run."""

    def decorate(
        verb: Callable[Concatenate[Path, Parameters], Result],
    ) -> Callable[Concatenate[Location | str, Parameters], Result]:
        @wraps(verb)
        def anywhere(run: Location | str, *arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
            with ExitStack() as stack:
                copy = stack.enter_context(working_copy(run, scope, writing=writing))
                if writing and isinstance(copy, Mirror):  # Otherwise the verb takes the lock itself.
                    stack.enter_context(copy.lock())
                return verb(copy.folder, *arguments, **keywords)

        return anywhere  # type: ignore[return-value]  # It also takes `run` by name.

    return decorate


def _found(url: Url, scope: tuple[str, ...]) -> list[str]:
    """Those of a scope's files that lie at the URL; of checkpoints only the whole ones."""
    wanted = any(name.startswith("checkpoints/") for name in scope)
    steps = [step for step in (url / "checkpoints").names() if CHECKPOINT.fullmatch(step)] if wanted else []
    whole = [step for step in steps if (url / "checkpoints" / step / SCORE).exists()]
    names = []
    for name in scope:
        folder, _, rest = name.rpartition("/")
        chosen = {EVERY: whole, NEWEST: whole[-1:]}.get(name[: len(EVERY)])
        if chosen is not None:
            names += [f"checkpoints/{step}/{name[len(EVERY) :]}" for step in chosen]
        else:
            names += [f"{folder}/{file}" for file in (url / folder).names()] if rest == "*" else [name]
    return [name for name in names if (url / name).exists()]


def _order(name: str) -> tuple[int, str, bool, str]:
    """Sorts files as a run makes them; the files of a checkpoint stay together, and its score is the last."""
    first, folder = name.partition("/")[0], str(Path(name).parent)
    rank = FIRST.index(first) - len(FIRST) if first in FIRST else LAST.index(first) + 1 if first in LAST else 0
    return rank, folder, name.endswith(SCORE), name
