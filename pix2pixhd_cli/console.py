"""The one place that prints: results and progress on standard output, warnings and errors on standard error."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar
from unicodedata import category

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pix2pixhd_cli.errors import DataProblems, Interrupted, P2PHDError


class _Unbroken(Console):
    """A console that goes on when it cannot be heard: a full disk under a log, or a closed pipe, must end no training."""

    def print(self, *arguments: Any, **keywords: Any) -> None:
        with suppress(OSError):
            super().print(*arguments, **keywords)

    def on_broken_pipe(self) -> None:
        self.quiet = True


out = _Unbroken(highlight=False)
err = _Unbroken(stderr=True, highlight=False)
PROBLEMS_SHOWN = 1000
WIDE = 4  # Columns of a wide table that are shown at a time.
NAMES: dict[str, str] = {}  # What folders are called instead of by their paths.
Item = TypeVar("Item")
Result = TypeVar("Result")


def plain(text: str) -> str:
    """Text without markup and without what a terminal would obey: a file's name may hold anything."""
    return escape("".join(repr(c)[1:-1] if category(c) in ("Cc", "Cs") else c for c in _renamed(text)))


@contextmanager
def calling(folder: object, name: object) -> Iterator[None]:
    """Call a folder by another name in all that is said, and in errors that pass."""
    NAMES[str(folder)] = str(name)
    try:
        yield
    except P2PHDError as error:
        error.args = (_renamed(str(error)),)
        raise
    finally:
        del NAMES[str(folder)]


def _renamed(text: str) -> str:
    for path, name in NAMES.items():
        text = text.replace(path, name)
    return text


def be_quiet(quiet: bool) -> None:
    """Switch all but warnings and errors off."""
    out.quiet = quiet


def info(message: str) -> None:
    """Say one line."""
    out.print(plain(message), soft_wrap=True)


def warn(message: str) -> None:
    """Say one line that the user should not miss."""
    err.print(f"[yellow]warning:[/yellow] {plain(message)}", soft_wrap=True)


def fail(error: P2PHDError) -> None:
    """Show a mistake: a table of problems where there are several, then one line."""
    if isinstance(error, DataProblems):
        view = Table(header_style="bold")
        view.add_column("file", overflow="fold")
        view.add_column("problem", overflow="fold")
        for problem in error.problems[:PROBLEMS_SHOWN]:
            view.add_row(plain(problem.where), plain(problem.what))
        err.print(view)
        if len(error.problems) > PROBLEMS_SHOWN:
            err.print(f"… and {len(error.problems) - PROBLEMS_SHOWN} more")
    mark = "" if isinstance(error, Interrupted) else "[red]error:[/red] "
    err.print(f"{mark}{plain(str(error))}", soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Show a table; columns whose cells are all numbers are set flush right."""
    view = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        view.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        view.add_row(*(plain(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row))
    out.print(view)


def wide_table(title: str, names: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Show a table whose rows begin with names, a few columns at a time and without rows that are empty there."""
    for start in range(0, len(columns), WIDE):
        own = slice(len(names) + start, len(names) + start + WIDE)
        table(
            title,
            [*names, *columns[start : start + WIDE]],
            [(*row[: len(names)], *row[own]) for row in rows if any(row[own])],
        )


def count(number: int, noun: str) -> str:
    """So many of something: `1 picture`, `2 pictures`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whatever suits."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


@contextmanager
def progress(description: str, total: int) -> Iterator[Progress]:
    """A progress bar with one task (id 0); it shows only on a terminal and is gone when done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        bar.add_task(description, total=total, note="")
        yield bar


@contextmanager
def in_threads(description: str, work: Callable[[Item], Result], items: Collection[Item]) -> Iterator[Iterator[Result]]:
    """Yield the results in the order of `items`, worked out on all cores under a bar; leaving drops what has not begun."""
    with progress(description, len(items)) as bar, ThreadPoolExecutor() as pool:

        def results() -> Iterator[Result]:
            for result in pool.map(work, items):
                yield result
                bar.advance(bar.task_ids[0])

        try:
            yield results()
        finally:
            pool.shutdown(cancel_futures=True)


class TrainingDisplay:
    """Epoch and step bars with time left, smoothed losses and images per second; plain lines off a terminal."""

    SMOOTHING = 0.95
    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, steps: int, epochs: int, start: int) -> None:
        self.steps, self.epochs, self.start = steps, epochs, start
        self.losses: dict[str, float] = {}
        self.rate: float | None = None
        self.clock = self.line_clock = time.perf_counter()
        columns = (
            TextColumn("{task.description:>7}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bars = Progress(*columns, console=out, disable=not out.is_terminal)
        self.epoch_bar = self.bars.add_task("epoch", total=epochs, note="")
        self.step_bar = self.bars.add_task("step", total=steps, completed=start, note="")

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def update(
        self, step: int, epoch: int, losses: Mapping[str, float], images: int, scaling: Mapping[str, float]
    ) -> None:
        """Show a finished step; `scaling` is what there is to tell of a loss scale."""
        now = time.perf_counter()
        if step > self.start + 1:  # The first step builds the graph.
            rate = images / (now - self.clock)
            self.rate = rate if self.rate is None else self._smooth(self.rate, rate)
        self.clock = now
        for name, value in losses.items():
            self.losses[name] = self._smooth(self.losses.get(name, value), value)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in self.losses.items() if value)
        shown += "".join(f"  {name.replace('_', ' ')} {value:g}" for name, value in scaling.items())
        speed = f"{self.rate:.1f} images/s" if self.rate is not None else ""
        self.bars.update(self.epoch_bar, completed=epoch - (step < self.steps), note=speed)
        self.bars.update(self.step_bar, completed=step, note=shown)
        if not out.is_terminal and (now - self.line_clock > self.SECONDS_BETWEEN_LINES or step == self.steps):
            self.line_clock = now
            info(f"step {step}/{self.steps}  epoch {epoch}/{self.epochs}  {shown}  {speed}")

    def _smooth(self, old: float, new: float) -> float:
        return self.SMOOTHING * old + (1 - self.SMOOTHING) * new
