"""The whole command line on one page: one thin shell per verb, and the boundary where errors become one line.

Nothing heavy is imported before a verb runs, so that `--help` and completion are instant.
"""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pix2pixhd_cli import __version__
from pix2pixhd_cli.errors import STOPS, P2PHDError, Terminated, interrupted
from pix2pixhd_cli.options import CONFIG, settings_table, settings_toml, with_settings
from pix2pixhd_cli.settings import Settings, fields, merge, read_layers, source_of
from pix2pixhd_cli.urls import Location, Url, locate, refuse_url

HELP = """High-resolution pictures from label maps, with control over style: pix2pixHD in TensorFlow.

Six verbs lead from photos to pictures you can steer:

  prepare → pack → train → encode → cluster → generate

`p2phd show` tells what any of their folders is, and what comes next.
"""
EPILOG = "Settings come from flags, then P2PHD_SECTION__FIELD variables, then --config FILE.toml, then defaults."


class Verbs(TyperGroup):
    """The verbs; Ctrl-C and SIGTERM end each of them in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        try:
            return super().invoke(ctx)
        except STOPS as stop:
            raise interrupted(stop, "stopped; the same command makes it whole") from None


app = typer.Typer(
    name="p2phd",
    cls=Verbs,
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Show and write settings files.", no_args_is_help=True)
app.add_typer(config_app, name="config", rich_help_panel="Help")


def _here(text: str, metavar: str) -> Any:
    """An argument that must lie on this machine."""
    return typer.Argument(help=text, metavar=metavar, show_default=False, callback=refuse_url)


Dataset = Annotated[Path, _here("A prepared data set.", "DATASET")]
Packed = Annotated[str, typer.Argument(help="A packed data set, or its URL.", metavar="PACKED", show_default=False)]
Run = Annotated[str, typer.Argument(help="A training run, or its URL.", metavar="RUN", show_default=False)]
MaybePacked = Annotated[
    str | None,
    typer.Argument(
        help="A packed data set; by default the one the run was trained on.", metavar="PACKED", show_default=False
    ),
]
VERBOSE = False


def _run_of(given: dict[str, Any]) -> Location:
    """The run that a verb was given; reading one at a URL takes TensorFlow."""
    run = locate(given["run"])
    if isinstance(run, Url):
        _start_engine()
    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a `P2PHDError` becomes one line and its exit code."""
    try:
        with _terminable():
            app(list(arguments) if arguments is not None else None)
    except P2PHDError as error:
        _fail(error)
    except STOPS as stop:
        _fail(interrupted(stop, "stopped"))
    except OSError as error:
        _fail(P2PHDError(f"{error.filename or 'a file'}: {error.strerror or error}"))


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM clean up as Ctrl-C does."""

    def terminate(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(error: P2PHDError) -> None:
    from pix2pixhd_cli import console

    console.fail(error)
    sys.exit(error.exit_code)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"p2phd {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Let TensorFlow talk.")] = False,
) -> None:
    """Hold what every verb shares."""
    del version
    global VERBOSE
    from pix2pixhd_cli import console

    console.be_quiet(quiet)
    VERBOSE = verbose


@app.command(rich_help_panel="From photos to pictures")
@with_settings("prepare")
def prepare(
    source: Annotated[Path, _here("Folder of photos, label maps and instance maps.", "SOURCE")],
    dataset: Annotated[Path, _here("Folder to make.", "DATASET")],
    settings: Settings,
) -> None:
    """Check a raw tree and make a data set of it.

    p2phd prepare cityscapes dataset --width 1024
    """
    from pix2pixhd_cli.pipeline.prepare import prepare

    prepare(source, dataset, settings)


@app.command(rich_help_panel="From photos to pictures")
@with_settings("pack")
def pack(
    dataset: Dataset,
    packed: Annotated[str, typer.Argument(help="Folder to make, or its URL.", metavar="PACKED", show_default=False)],
    settings: Settings,
) -> None:
    """Pack a data set into TFRecord shards.

    p2phd pack dataset packed
    """
    _start_engine()
    from pix2pixhd_cli.pipeline.pack import pack

    pack(dataset, packed, settings)


@app.command(rich_help_panel="From photos to pictures")
@with_settings(
    "train",
    "generator",
    "discriminator",
    "encoder",
    "loss",
    run=lambda given: run if given["resume"] and ((run := _run_of(given)) / "settings.json").exists() else None,
)
def train(
    packed: Packed,
    run: Annotated[str, typer.Argument(help="Folder to make, or its URL.", metavar="RUN", show_default=False)],
    settings: Settings,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from RUN's last checkpoint.")] = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from", metavar="RUN", help="Start from this run: a global one for a local enhancer, or its like."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print networks, sizes, steps, memory and time, and stop.")
    ] = False,
) -> None:
    """Train the networks.

    p2phd train packed run --epochs 100 --decay-epochs 100
    """
    _start_engine()
    from pix2pixhd_cli.pipeline.train import train

    train(packed, run, settings, init_from=init_from, resume=resume, dry_run=dry_run)


@app.command(rich_help_panel="From photos to pictures")
@with_settings("encode", run=_run_of)
def encode(run: Run, settings: Settings, packed: MaybePacked = None) -> None:
    """Find a feature code for every instance.

    p2phd encode run
    """
    _start_engine()
    from pix2pixhd_cli.pipeline.encode import encode

    encode(run, packed, settings)


@app.command(rich_help_panel="From photos to pictures")
@with_settings("cluster", run=_run_of)
def cluster(
    run: Run,
    settings: Settings,
    packed: MaybePacked = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            "--name", metavar="CLASS:INDEX=NAME", help="Call a style by a name, such as road:0=asphalt. Repeatable."
        ),
    ] = None,
) -> None:
    """Cluster the feature codes of each class into styles.

    p2phd cluster run --name road:0=asphalt --name road:1=cobbles
    """
    _start_engine()
    from pix2pixhd_cli.pipeline.cluster import cluster

    cluster(run, packed, settings, names=name or ())


@app.command(rich_help_panel="From photos to pictures")
@with_settings("generate", run=_run_of)
def generate(
    run: Run,
    label_maps: Annotated[Path, _here("A data set, a folder of label maps, or one label map.", "LABELS")],
    out: Annotated[Path, _here("Folder for the pictures.", "OUT")],
    settings: Settings,
) -> None:
    """Paint pictures, in styles you choose.

    p2phd generate run dataset out --feature-code road=cobbles --feature-code car=2
    """
    _start_engine()
    from pix2pixhd_cli.pipeline.generate import generate

    generate(run, label_maps, out, settings)


@app.command(rich_help_panel="How good it is")
@with_settings("evaluate", run=_run_of)
def evaluate(run: Run, dataset: Dataset, settings: Settings) -> None:
    """Compare a run's pictures with photos, in numbers.

    p2phd evaluate run dataset --checkpoint all --segmenter deeplab.tflite --segmenter-classes cityscapes
    """
    _start_engine()
    from pix2pixhd_cli.pipeline.evaluate import evaluate

    evaluate(run, dataset, settings)


@app.command(rich_help_panel="How good it is")
def show(
    thing: Annotated[
        str,
        typer.Argument(
            help="A data set, a packed data set, a run, or the URL of one.", metavar="WHAT", show_default=False
        ),
    ],
) -> None:
    """Print what a thing is, how far it has come, and what comes next.

    p2phd show run
    """
    _start_engine()
    from pix2pixhd_cli.pipeline.show import show

    show(thing)


@app.command(rich_help_panel="How good it is")
def report(
    runs: Annotated[
        list[str],
        typer.Argument(help="One run, or several to compare, or their URLs.", metavar="RUN", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.html",
            help="File to write; by default RUN/report.html or, of several, report.html here.",
        ),
    ] = None,
) -> None:
    """Write a page that shows a run, or compares several (extra: report).

    p2phd report run
    """
    _start_engine()
    from pix2pixhd_cli.pipeline.report import report

    report(*runs, out=out)


@app.command(rich_help_panel="From photos to pictures")
@with_settings("studio", run=_run_of)
def studio(
    run: Run,
    settings: Settings,
    label_maps: Annotated[
        Path | None,
        typer.Argument(
            help="A data set, a folder of label maps or scenes, or one of these; an empty canvas by default.",
            metavar="LABELS",
            show_default=False,
            callback=refuse_url,
        ),
    ] = None,
) -> None:
    """Paint in the browser, in styles you choose (extra: studio).

    p2phd studio run dataset
    """
    _start_engine()
    from pix2pixhd_cli.pipeline.studio import studio

    studio(run, label_maps, settings)


@app.command("import", rich_help_panel="Between codes")
def import_(
    checkpoint: Annotated[Path, _here("Folder with the reference's latest_net_G.pth.", "CHECKPOINT_DIR")],
    run: Annotated[Path, _here("Run to make.", "RUN")],
    epoch: Annotated[str, typer.Option(help="Which files: EPOCH_net_G.pth.")] = "latest",
    labels: Annotated[int | None, typer.Option(min=0, help="One-hot channels, where nothing tells; 0 for RGB.")] = None,
    boundary: Annotated[
        bool | None, typer.Option("--boundary/--no-boundary", help="Whether the networks saw boundary maps.")
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="Class table for the run, TOML or CSV.")] = None,
    ignore_id: Annotated[list[int] | None, typer.Option(help="Label id without meaning (255). Repeatable.")] = None,
) -> None:
    """Turn a checkpoint of the PyTorch code into a run.

    p2phd import checkpoints/label2city run
    """
    _start_engine()
    from pix2pixhd_cli.pipeline.import_ import import_checkpoint

    import_checkpoint(
        checkpoint, run, epoch=epoch, labels=labels, boundary=boundary, classes=classes, ignore_id=ignore_id or (255,)
    )


@app.command(rich_help_panel="Between codes")
def export(
    run: Run,
    folder: Annotated[Path, _here("Folder to make.", "DIR")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write DIR/model.onnx (extra: onnx).")] = False,
) -> None:
    """Turn a run into a SavedModel, and an ONNX file.

    p2phd export run saved_model --onnx
    """
    _start_engine()
    from pix2pixhd_cli.pipeline.export import export

    export(run, folder, onnx=onnx)


@config_app.command("show")
def config_show(config: Annotated[Path | None, CONFIG] = None) -> None:
    """Print the merged settings and where each value comes from."""
    from pix2pixhd_cli import console

    layers = read_layers(config=config)
    settings = merge(layers)
    rows = []
    for section, name, _ in fields():
        value: Any = getattr(getattr(settings, section), name)
        shown = "" if value is None else ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        rows.append((f"{section}.{name}", shown, source_of(layers, section, name)))
    console.table("Settings", ["setting", "value", "source"], rows)


@config_app.command("init")
def config_init(
    path: Annotated[Path, typer.Argument(help="File to write.", metavar="FILE.toml")] = Path("p2phd.toml"),
) -> None:
    """Write a commented TOML file with every setting."""
    from pix2pixhd_cli import console
    from pix2pixhd_cli.data.files import write_text

    if path.exists():
        raise P2PHDError(f"{path}: exists already; name another file")
    write_text(path, settings_toml())
    console.info(f"wrote {path}; use it with --config {path}")


@config_app.command("table")
def config_table() -> None:
    """Print every setting as a Markdown table."""
    typer.echo(settings_table())


def _start_engine() -> None:
    from pix2pixhd_cli import engine

    engine.start(VERBOSE)
