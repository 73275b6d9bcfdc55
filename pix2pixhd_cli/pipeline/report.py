"""`p2phd report`: one page that shows a run, or several side by side."""

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pix2pixhd_cli import __version__, console, overview
from pix2pixhd_cli.data.files import write_text
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.evaluation import Evaluation, Line, Row, side_by_side
from pix2pixhd_cli.mirror import REPORTING, working_copy
from pix2pixhd_cli.settings import SAVED_SECTIONS, Settings, fields, flag_name
from pix2pixhd_cli.urls import Location, locate
from pix2pixhd_cli.validation import PREFIX

if TYPE_CHECKING:
    from pix2pixhd_cli.chapters import Chapter, Gallery, Reel
    from pix2pixhd_cli.page import Shown

NAME = "report.html"
DASHES = {"sampled": "dot", "real": "dash"}  # Of lines, by codes.
INSTALL = "pip install 'pix2pixhd_cli[report]'"
# What is logged, in the order in which it is shown, and what it says.
LOGGED = {
    f"{PREFIX}psnr": "PSNR in dB of reconstructions of the held-out split; higher is better",
    f"{PREFIX}ssim": "SSIM of them; higher is better",
    f"{PREFIX}perceptual": "their perceptual distance from the photos; lower is better",
    "g_gan": "generator's adversarial loss: how far fakes are from passing for real; it says nothing of quality",
    "g_feat": "feature matching loss: how far fakes and photos are apart inside the discriminators",
    "g_vgg": "perceptual loss: how far they are apart inside VGG",
    "g_rec": "reconstruction loss: their mean L1 distance",
    "d_real": "discriminators' loss on photos",
    "d_fake": "discriminators' loss on fakes; where both are near 0 for long, the generator has nothing to learn from",
    "learning_rate": "learning rate",
    "seconds": "seconds that a step took",
    "loss_scale": "scale of losses in half precision",
    "skipped": "steps skipped, since gradients were too large for half precision",
}


class Chart(NamedTuple):
    """A chart, as Plotly has it, with what there is to say of it."""

    name: str
    note: str
    figure: dict[str, Any]


class Samples(NamedTuple):
    """Samples over time: each example's reels by run, all steps, and for the page's script what was painted after which."""

    examples: dict[str, list[tuple["Chapter", "Reel"]]]
    steps: list[int]
    frames: list[dict[str, Any]]


class Split(NamedTuple):
    """What was found on a split. columns: of its table of numbers. protocols: of these, each once. commands: that found it."""

    name: str
    columns: list[str]
    lines: list[Line]
    protocols: list[str]
    commands: list[str]
    by_step: list[Chart]
    by_class: list[tuple["Chapter", Row]]
    pictures: dict[str, dict[str, "Shown"]]
    confusions: list[tuple["Chapter", str, dict[str, Any]]]
    strips: list[tuple["Chapter", "Gallery"]]

    @property
    def classes(self) -> list[str]:
        """Those that there are numbers of."""
        return list(dict.fromkeys(name for _, row in self.by_class for name in row.by_class))

    @property
    def titles(self) -> list[str]:
        """What pictures there are of an example."""
        return list(dict.fromkeys(title for pictures in self.pictures.values() for title in pictures))

    @property
    def generated(self) -> str:
        """The first of them that a run painted."""
        return next((title for title in self.titles if "codes: " in title), "photo")


class Setting(NamedTuple):
    """A setting, as each run has it."""

    section: str
    flag: str
    help: str
    default: object
    values: list[object]

    @property
    def differs(self) -> bool:
        """Whether not all runs have the same."""
        return any(value != self.values[0] for value in self.values)

    @property
    def odd(self) -> bool:
        """Whether a run has not the default."""
        return any(value != self.default for value in self.values)


def report(*runs: Location | str, out: Path | None = None) -> Location:
    """Write a page that shows a run, or compares several; returns where it is.

    Args:
        runs: training runs.
        out: the file to write; by default `report.html` in the run or, of several, in the working folder.

    Raises `P2PHDError` for what is no run or is named twice, where the extra is missing, and rather than write over what is no
    report.
    """
    if not is_installed():
        raise P2PHDError(f"a report needs its extra: {INSTALL}")
    from pix2pixhd_cli.chapters import Chapter

    places = [locate(run) for run in runs]
    if twice := [place for n, place in enumerate(places) if place in places[:n]]:
        raise P2PHDError(f"{twice[0]}: is named twice; name other runs to compare it with")
    target = out or (places[0] / NAME if len(places) == 1 else Path(NAME))
    with ExitStack() as stack:
        copies = [stack.enter_context(working_copy(place, REPORTING)) for place in places]
        named = zip(_names(places), places, copies, strict=True)
        text = _page([Chapter(n, name, str(place), run) for n, (name, place, run) in enumerate(named)])
    _write(target, text)
    console.info(f"wrote {target} ({console.size(len(text.encode()))}); open it in a browser")
    return target


def is_installed() -> bool:
    """Whether all is there that a report takes."""
    return all(find_spec(name) is not None for name in ("jinja2", "plotly"))


def _names(places: Sequence[Location]) -> list[str]:
    """What runs are called: by their folders or, where these have one name, by all of their paths."""
    short = [place.name for place in places]
    return short if len(set(short)) == len(short) and all(short) else list(map(str, places))


def _write(target: Location, text: str) -> None:
    from pix2pixhd_cli.page import MARK

    if not isinstance(target, Path):
        target.put(BytesIO(text.encode()))
        return
    if target.exists() and not (target.is_file() and target.read_bytes().startswith(MARK.encode())):
        raise P2PHDError(f"{target}: is no report, and will not be written over; name another file with --out")
    write_text(target, text)


def _page(chapters: Sequence["Chapter"]) -> str:
    from pix2pixhd_cli.page import render

    splits = sorted({one.split for chapter in chapters for one in chapter.evaluations})
    return render(
        version=__version__,
        chapters=chapters,
        styled=[chapter for chapter in chapters if chapter.settings.encoder.enabled],
        several=len(chapters) > 1,
        title=" and ".join(chapter.name for chapter in chapters),
        samples=_samples(chapters),
        splits=[_split(chapters, split) for split in splits],
        curves=_curves(chapters),
        settings=_settings([chapter.settings for chapter in chapters]),
        command=shlex.join(["p2phd", "report", *(chapter.place for chapter in chapters)]),
        sizes=overview.sizes,
        shown=_shown,
    )


def _samples(chapters: Sequence["Chapter"]) -> Samples:
    stems = dict.fromkeys(stem for chapter in chapters for stem in sorted(chapter.reels))
    examples = {stem: [(one, one.reels[stem]) for one in chapters if stem in one.reels] for stem in stems}
    frames = [
        {"run": chapter.number, "stem": stem, "fakes": [(step, fake.uri) for step, fake in sorted(reel.fakes.items())]}
        for stem, reels in examples.items()
        for chapter, reel in reels
    ]
    steps = {step for reels in examples.values() for _, reel in reels for step in reel.fakes}
    return Samples(examples, sorted(steps), frames)


def _split(chapters: Sequence["Chapter"], name: str) -> Split:
    """All that was found on a split: of one run at every step, of several at the newest of each."""
    from pix2pixhd_cli.charts import confusions

    found = [(chapter, [one for one in chapter.evaluations if one.split == name]) for chapter in chapters]
    newest = [(chapter, ones[-1]) for chapter, ones in found if ones]
    shown = newest if len(chapters) > 1 else [(chapter, one) for chapter, ones in found for one in ones]
    lines = side_by_side([one for _, one in shown])
    return Split(
        name=name,
        columns=[f"{_prefix(chapter, chapters)}step {one.step}" for chapter, one in shown],
        lines=lines,
        commands=[chapter.evaluating(one) for chapter, one in newest],
        protocols=list(dict.fromkeys(row.shown_protocol for line in lines for row in line.rows if row is not None)),
        by_step=_by_step(chapters, found),
        by_class=[(chapter, row) for chapter, one in newest for row in one.rows if row.by_class],
        pictures=_pictures(chapters, newest),
        confusions=[(chapter, one.codes, confusions(one)) for chapter, of in newest for one in of.confusions],
        strips=[(chapter, gallery) for chapter, one in newest if (gallery := chapter.strips(one))],
    )


def _prefix(chapter: "Chapter", chapters: Sequence["Chapter"]) -> str:
    """What tells a run's things from those of others."""
    return f"{chapter.name}, " if len(chapters) > 1 else ""


def _pictures(
    chapters: Sequence["Chapter"], newest: Sequence[tuple["Chapter", Evaluation]]
) -> dict[str, dict[str, "Shown"]]:
    """Pictures by example and title; runs share the label map, the photo, and what is seen in it."""
    found: dict[str, dict[str, Shown]] = {}
    for chapter, one in newest:
        for stem, pictures in chapter.pictures(one).items():
            for title, picture in pictures.items():
                own = _prefix(chapter, chapters) if "codes: " in title else ""
                found.setdefault(stem, {}).setdefault(f"{own}{title}", picture)
    return found


def _by_step(chapters: Sequence["Chapter"], found: Sequence[tuple["Chapter", Sequence[Evaluation]]]) -> list[Chart]:
    """A chart of each number that was found at several steps."""
    from pix2pixhd_cli.charts import Curve, curves

    charts: dict[str, list[Curve]] = {}
    for chapter, ones in found:
        for line in side_by_side(ones):
            known = [(one.step, row) for one, row in zip(ones, line.rows, strict=True) if row is not None]
            if len(known) < 2:
                continue
            steps, values = [step for step, _ in known], [row.value for _, row in known]
            deviations = [row.deviation or 0.0 for _, row in known] if known[0][1].deviation is not None else None
            name, dash = f"{_prefix(chapter, chapters)}{line.codes}", DASHES.get(line.codes, "solid")
            charts.setdefault(line.metric, []).append(Curve(name, chapter.number, steps, values, deviations, dash))
    return [Chart(metric, "", curves(lines)) for metric, lines in charts.items()]


def _curves(chapters: Sequence["Chapter"]) -> list[Chart]:
    """A chart of each name that was logged."""
    from pix2pixhd_cli.charts import Curve, curves

    logged = {name for chapter in chapters for name in chapter.logged}
    charts = []
    for name in (*(known for known in LOGGED if known in logged), *sorted(logged - LOGGED.keys())):
        lines = [Curve(one.name, one.number, *one.logged[name]) for one in chapters if name in one.logged]
        smooth = not name.startswith(PREFIX) and name != "learning_rate"
        charts.append(Chart(name, LOGGED.get(name, ""), curves(lines, smooth=smooth)))
    return charts


def _settings(found: Sequence[Settings]) -> list[Setting]:
    """Every setting that a run keeps, as each run has it."""
    return [
        Setting(
            section=section,
            flag=flag_name(section, name, own=section in ("train", "cluster")),
            help=field.description or "",
            default=field.get_default(),
            values=[getattr(getattr(one, section), name) for one in found],
        )
        for section, name, field in fields()
        if section in SAVED_SECTIONS
    ]


def _shown(value: object) -> str:
    """A setting's value as a user would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)
