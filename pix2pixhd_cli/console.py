"""The one place that prints: results and progress on standard output, warnings and errors on standard error."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pix2pixhd_cli.errors import DataProblems, P2PHDError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
PROBLEMS_SHOWN = 50


def be_quiet(quiet: bool) -> None:
    """Switch all but warnings and errors off."""
    out.quiet = quiet


def info(message: str) -> None:
    """Say one line."""
    out.print(escape(message), soft_wrap=True)


def warn(message: str) -> None:
    """Say one line that the user should not miss."""
    err.print(f"[yellow]warning:[/yellow] {escape(message)}", soft_wrap=True)


def fail(error: P2PHDError) -> None:
    """Show a mistake: a table of problems where there are several, then one line."""
    if isinstance(error, DataProblems):
        for problem in error.problems[:PROBLEMS_SHOWN]:
            err.print(f"  {escape(problem.where)}: {escape(problem.what)}", soft_wrap=True)
        if len(error.problems) > PROBLEMS_SHOWN:
            err.print(f"  … and {len(error.problems) - PROBLEMS_SHOWN} more")
    err.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Show a table; columns whose cells are all numbers are set flush right."""
    view = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        view.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        view.add_row(*(escape(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row))
    out.print(view)


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
    with Progress(*columns, console=out, transient=True) as bar:
        bar.add_task(description, total=total, note="")
        yield bar
