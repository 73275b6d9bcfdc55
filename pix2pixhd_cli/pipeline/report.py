"""`p2phd report`: one page that shows a run, or several side by side."""

import shlex
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pix2pixhd_cli import __version__, console, overview
from pix2pixhd_cli.data.files import write_text
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.evaluation import Evaluation, side_by_side
from pix2pixhd_cli.mirror import REPORTING, working_copy
from pix2pixhd_cli.settings import SAVED_SECTIONS, Settings, fields, flag_name
from pix2pixhd_cli.urls import Location, locate
from pix2pixhd_cli.validation import PREFIX

if TYPE_CHECKING:
    from pix2pixhd_cli.chapters import Chapter

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


def report(*runs: Location | str, out: Path | None = None) -> Location:
    """Write a page that shows a run, or compares several; returns where it is.

    Args:
        runs: training runs.
        out: the file to write; by default `report.html` in the run or, of several, in the working folder.

    Raises `P2PHDError` for what is no run, where the extra is missing, and rather than write over what is no report.
    """
    if not is_installed():
        raise P2PHDError(f"a report needs its extra: {INSTALL}")
    from pix2pixhd_cli.chapters import Chapter

    places = [locate(run) for run in runs]
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
        several=len(chapters) > 1,
        title=" and ".join(chapter.name for chapter in chapters),
        samples=_samples(chapters),
        splits=[_split(chapters, split) for split in splits],
        curves=_curves(chapters),
        sizes=overview.sizes,
        command=shlex.join(["p2phd", "report", *(chapter.place for chapter in chapters)]),
        shown=_shown,
        settings=_settings([chapter.settings for chapter in chapters]),
    )


def _samples(chapters: Sequence["Chapter"]) -> dict[str, Any]:
    """Samples by example: label map, photo, and each run's fakes by step."""
    stems = dict.fromkeys(stem for chapter in chapters for stem in sorted(chapter.reels))
    rows = {stem: [(one, one.reels[stem]) for one in chapters if stem in one.reels] for stem in stems}
    fakes = [
        {"run": chapter.number, "stem": stem, "frames": [(step, fake.uri) for step, fake in sorted(reel.fakes.items())]}
        for stem, reels in rows.items()
        for chapter, reel in reels
    ]
    steps = {step for reels in rows.values() for _, reel in reels for step in reel.fakes}
    return {"rows": rows, "fakes": fakes, "steps": sorted(steps)}


def _split(chapters: Sequence["Chapter"], split: str) -> dict[str, Any]:
    """All that was found on a split: numbers side by side, by class and by step, pictures, confusions and strips."""
    from pix2pixhd_cli.charts import confusions

    found = {chapter.number: [one for one in chapter.evaluations if one.split == split] for chapter in chapters}
    newest = [(chapters[n], ones[-1]) for n, ones in found.items() if ones]
    shown = newest if len(chapters) > 1 else [(chapters[0], one) for one in found[0]]
    lines = side_by_side([one for _, one in shown])
    protocols = list(dict.fromkeys(row.shown_protocol for line in lines for row in line.rows if row is not None))
    views: dict[str, dict[str, Any]] = {}
    for chapter, one in newest:
        for stem, pictures in chapter.pictures(one).items():
            own = {_view(chapter, title, len(chapters)): picture for title, picture in pictures.items()}
            views[stem] = views.get(stem, {}) | own
    titles = list(dict.fromkeys(title for pictures in views.values() for title in pictures))
    return {
        "name": split,
        "columns": [
            f"{chapter.name}, step {one.step}" if len(chapters) > 1 else f"step {one.step}" for chapter, one in shown
        ],
        "lines": lines,
        "protocols": protocols,
        "newest": newest,
        "by_class": _by_class(newest),
        "by_step": _by_step(chapters, found),
        "views": views,
        "titles": titles,
        "left": next((title for title in titles if "codes: " in title), "photo"),
        "confusions": [(chapter, one.codes, confusions(one)) for chapter, e in newest for one in e.confusions],
        "strips": [(chapter, gallery) for chapter, one in newest if (gallery := chapter.strips(one))],
    }


def _view(chapter: "Chapter", title: str, count: int) -> str:
    """What a picture is called beside those of other runs, which have the same label maps and photos."""
    return title if count == 1 or title in ("label", "photo", "seen in photo") else f"{chapter.name}, {title}"


def _by_class(newest: Iterable[tuple["Chapter", Evaluation]]) -> dict[str, Any]:
    """The numbers that are means over classes, class by class."""
    rows = [(chapter, row) for chapter, one in newest for row in one.rows if row.by_class]
    names = dict.fromkeys(name for _, row in rows for name in row.by_class)
    return {"columns": rows, "rows": [(name, [row.by_class.get(name) for _, row in rows]) for name in names]}


def _by_step(chapters: Sequence["Chapter"], found: dict[int, list[Evaluation]]) -> list[dict[str, Any]]:
    """A chart of each number that was found at several steps; what is found of photos is the same at all."""
    from pix2pixhd_cli.charts import Curve, curves

    charts: dict[str, list[Curve]] = {}
    for number, ones in found.items():
        for line in side_by_side(ones):
            known = [(one.step, row) for one, row in zip(ones, line.rows, strict=True) if row is not None]
            if len(known) < 2:
                continue
            name = f"{chapters[number].name}, {line.codes}" if len(chapters) > 1 else line.codes
            steps, values = [step for step, _ in known], [row.value for _, row in known]
            deviations = [row.deviation or 0.0 for _, row in known] if known[0][1].deviation is not None else None
            curve = Curve(name, number, steps, values, deviations, DASHES.get(line.codes, "solid"))
            charts.setdefault(line.metric, []).append(curve)
    return [{"name": metric, "note": "", "figure": curves(found)} for metric, found in charts.items()]


def _curves(chapters: Sequence["Chapter"]) -> list[dict[str, Any]]:
    """A chart of each name that was logged."""
    from pix2pixhd_cli.charts import Curve, curves

    logged = {name for chapter in chapters for name in chapter.logged}
    charts = []
    for name in (*(known for known in LOGGED if known in logged), *sorted(logged - LOGGED.keys())):
        lines = [Curve(one.name, one.number, *one.logged[name]) for one in chapters if name in one.logged]
        smooth = not name.startswith(PREFIX) and name != "learning_rate"
        charts.append({"name": name, "note": LOGGED.get(name, ""), "figure": curves(lines, smooth=smooth)})
    return charts


def _settings(found: Sequence[Settings]) -> list[dict[str, Any]]:
    """Every setting that a run keeps, as each run has it. odd: it is not the default, or differs."""
    rows = []
    for section, name, field in fields():
        if section in SAVED_SECTIONS:
            values = [getattr(getattr(one, section), name) for one in found]
            rows.append(
                {
                    "section": section,
                    "flag": flag_name(section, name, own=section in ("train", "cluster")),
                    "help": field.description,
                    "default": field.get_default(),
                    "values": values,
                    "odd": any(value != field.get_default() for value in values),
                    "differs": any(value != values[0] for value in values),
                }
            )
    return rows


def _shown(value: object) -> str:
    """A setting's value as a user would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)
