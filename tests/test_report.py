"""`report`: what stands on its page, what it works like in a browser, and what it refuses."""

import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from pix2pixhd_cli import overview
from pix2pixhd_cli.data.dataset import read_spec
from pix2pixhd_cli.data.files import write_text
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.features import FeatureClusters
from pix2pixhd_cli.images import read_sheet
from pix2pixhd_cli.page import MARK
from pix2pixhd_cli.pipeline import train as training
from pix2pixhd_cli.pipeline.evaluate import evaluate
from pix2pixhd_cli.pipeline.report import report
from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.sealed import seal
from pix2pixhd_cli.settings import NETWORK_SECTIONS, Settings, flags, load_settings, settings_of_run
from tests.browsing import browser as browser
from tests.conftest import Command, tiny_settings
from tests.test_evaluate import chosen as chosen
from tests.test_evaluate import judges as judges

TRAINED_BY = ("train", *NETWORK_SECTIONS, "loss")


@pytest.fixture(scope="module")
def told(run: Path, dataset: Path, judges: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with samples of two steps, evaluated at two, with a segmenter; and its report."""
    folder = shutil.copytree(run, tmp_path_factory.mktemp("told") / "run")
    words = [*map(str, chosen(judges)), "--checkpoint", "all"]
    values = {flag.strip("-").replace("-", "_"): value for flag, value in zip(words[::2], words[1::2], strict=True)}
    evaluate(folder, dataset, load_settings({"evaluate": values}, run=folder))
    report(folder)
    return folder


class Opened:
    """A page in a browser, and what it complained of or asked for."""

    def __init__(self, browser: Browser, path: Path, **how: Any) -> None:
        self.page: Page = browser.new_page(**how)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def slide(self, selector: str, value: float) -> None:
        """Move a slider as a hand does, with its events."""
        self.page.locator(selector).first.evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', { bubbles: true })); }",
            value,
        )

    def pictures(self) -> list[bool]:
        """Whether each picture of the page can be seen."""
        script = "[...document.images].map(image => image.complete && image.naturalWidth > 0)"
        return list(self.page.evaluate(script))


@pytest.fixture
def opened(browser: Browser, told: Path) -> Iterator[Opened]:
    page = Opened(browser, told / "report.html")
    yield page
    page.page.close()


def test_it_opens_without_a_complaint_and_asks_no_network(opened: Opened, told: Path) -> None:
    assert opened.complaints == []
    assert [url for url in opened.asked if not url.startswith("data:")] == [(told / "report.html").as_uri()]
    pictures = opened.pictures()
    assert len(pictures) > 30 and all(pictures)
    assert opened.page.title() == "run · p2phd"
    for heading in (
        "Samples over time",
        "How good it is, on “val”",
        "Curves",
        "Styles",
        "Data",
        "Settings",
        "Make it again",
    ):
        assert opened.page.get_by_role("heading", name=heading, exact=True).count() == 1
    # What is on the network cannot be had: the page forbids it itself.
    opened.page.evaluate("fetch('https://example.org').catch(() => 0)")
    opened.page.wait_for_timeout(50)
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)
    assert not [url for url in opened.asked if "example.org" in url]


def test_the_slider_goes_through_the_samples(opened: Opened, told: Path) -> None:
    data = json.loads(opened.page.locator("#samples-data").text_content() or "")
    assert data["steps"] == [0, 6]
    sheet = read_sheet(Run(told).sample(6))
    assert [one["stem"] for one in data["frames"]] == list(sheet.places.names)
    seen = {}
    for place, step in enumerate(data["steps"]):
        opened.slide("#step", place)
        assert opened.text("#step-shown") == str(step)
        seen[step] = opened.page.locator(".reel .over").first.get_attribute("src")
        assert seen[step] == data["frames"][0]["fakes"][place][1]
    assert seen[0] != seen[6]
    opened.page.locator("#play").click()
    for step in data["steps"]:
        expect(opened.page.locator("#step-shown")).to_have_text(str(step))
    assert opened.text("#play") == "play"


def test_the_wipe_follows_the_hand(opened: Opened) -> None:
    wipe = opened.page.locator(".wipe").first
    wipe.scroll_into_view_if_needed()
    box = wipe.bounding_box()
    assert box is not None
    for share in (0.25, 0.8):
        opened.page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        at = wipe.evaluate("wipe => parseFloat(getComputedStyle(wipe).getPropertyValue('--at'))")
        assert at == pytest.approx(100 * share, abs=2)
        cut = wipe.locator(".over").evaluate("image => getComputedStyle(image).clipPath")
        assert f"{100 - at:g}%" in cut
    wipe.locator("input").press("ArrowLeft")
    assert wipe.evaluate("wipe => parseFloat(getComputedStyle(wipe).getPropertyValue('--at'))") == at - 0.5


def test_any_two_pictures_of_an_example_can_be_compared(opened: Opened) -> None:
    article = opened.page.locator(".compare article").first
    for side, picture, title in ((".left", ".over", "codes: sampled"), (".right", ".under", "seen in photo")):
        opened.page.locator(f".compare {side}").first.select_option(title)
        thumb = article.locator(f'figure[data-title="{title}"] img').get_attribute("src")
        assert thumb and article.locator(picture).get_attribute("src") == thumb


def test_the_smoothing_is_what_it_says(opened: Opened, told: Path) -> None:
    raw = [line["g_feat"] for line in Run(told).logged() if "g_feat" in line]
    plot = opened.page.locator("#curves .chart", has=opened.page.get_by_role("heading", name="g_feat")).locator(".plot")
    for weight in (0.9, 0.5, 0.0):
        opened.slide("#smoothing", weight)
        assert opened.text("#smoothing-shown") == f"{weight:.2f}"
        pale, bold = (np.array(trace) for trace in plot.evaluate("plot => plot.data.map(trace => trace.y)"))
        assert pale == pytest.approx(raw, rel=1e-5)
        weights = [[weight ** (n - m) if m <= n else 0 for m in range(len(raw))] for n in range(len(raw))]
        assert bold == pytest.approx([np.average(raw, weights=one) for one in weights], rel=1e-5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_dark_and_narrow(browser: Browser, told: Path, scheme: Any) -> None:
    opened = Opened(browser, told / "report.html", color_scheme=scheme, viewport={"width": 400, "height": 800})

    def paper() -> int:
        return sum(
            map(int, re.findall(r"\d+", str(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))))
        )

    def ink() -> str:
        return str(opened.page.evaluate("document.querySelector('.plot').layout.font.color"))

    before = paper(), ink()
    assert (before[0] > 600) == (scheme == "light")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 400
    opened.page.locator("#theme").click()
    assert (paper() < 200) == (scheme == "light") and ink() != before[1]
    assert opened.complaints == []
    opened.page.close()


def test_runs_are_compared(browser: Browser, told: Path, packed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train(packed, other, tiny_settings(train={"epochs": 1, "decay_epochs": 0, "learning_rate": 1e-3}))
    report(told, other, out=tmp_path / "both.html")
    opened = Opened(browser, tmp_path / "both.html")
    assert opened.complaints == [] and all(opened.pictures())
    # The same examples, side by side.
    example = opened.page.locator("#samples article").first
    assert example.locator(".reel").count() == 2 and example.locator("figure .key").all_inner_texts() == [
        "run",
        "other",
    ]
    # Curves in one chart, in different colours.
    plot = opened.page.locator("#curves .chart", has=opened.page.get_by_role("heading", name="g_feat")).locator(".plot")
    traces = plot.evaluate("plot => plot.data.map(trace => [trace.name, trace.line.color])")
    assert [name for name, _ in traces] == ["run", "run", "other", "other"] and traces[0][1] != traces[2][1]
    # Settings that differ, and no others.
    rows = opened.page.locator("#settings table").first.locator("tbody tr").all_inner_texts()
    assert [row.split("\t")[1:4] for row in rows] == [
        ["--decay-epochs", "1", "0"],
        ["--learning-rate", "0.0002", "0.001"],
    ]
    opened.page.close()


def test_a_loss_that_was_no_number_is_a_gap(browser: Browser, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "g_gan": NaN}\n{"step": 8, "g_gan": Infinity}\n{"step": 9, "g_gan": 0.5}\n')
    report(copy)
    opened = Opened(browser, copy / "report.html")
    assert opened.complaints == []
    for values in opened.page.locator("#curves .plot").first.evaluate("plot => plot.data.map(trace => trace.y)"):
        assert values[-3:-1] == [None, None] and None not in [*values[:-3], values[-1]]
    opened.page.close()


def page_of(folder: Path) -> str:
    """What is on a page beside scripts and pictures."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    return unescape(re.sub(r"<script(?! type).*?</script>|data:image[^\"]*", "", text, flags=re.DOTALL))


def test_what_stands_on_it(told: Path, judges: Path, dataset: Path) -> None:
    page = page_of(told)
    assert (told / "report.html").read_text().startswith(MARK)
    spec, clusters = Run(told).spec(), FeatureClusters.load(told / "clusters.npz")
    for identity, styles in clusters.classes.items():
        for n in range(len(styles.centres)):
            assert f"<figcaption>{styles.title(n)}  ({styles.counts[n]})</figcaption>" in page
            assert len(styles.centres) < 2 or f"<figcaption>{styles.title(n)}</figcaption>" in page
        assert spec.class_name(identity) in page
    for one in overview.class_shares(spec):
        assert f"{100 * one.share:.2f} %" in page
    for row in ("PSNR (dB)", "mean IoU", "kernel distance (KID) x 1000", "control: change own class (levels)"):
        assert f"<td>{row}</td>" in page
    assert "something else" in page
    for name, version in Run(told).sources().environment.items():
        assert f"<dt>{name}</dt><dd>{version}</dd>" in page
    judged = " ".join(map(str, [*chosen(judges)]))
    assert f"p2phd evaluate {told} {dataset} --checkpoint all" in page and judged.partition("--segmenter ")[2] in page
    assert f"p2phd cluster {told} --name road:0=asphalt --name car:0=red" in page
    assert f"p2phd encode {told}" in page and f"p2phd report {told}" in page


def test_the_command_that_trained_trains_the_same(told: Path, p2phd: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, sections = settings_of_run(told), {*TRAINED_BY}
    (command,) = set(re.findall(r"p2phd train ([^<]*)</code>", page_of(told)))
    found: list[Settings] = []
    monkeypatch.setattr(training, "train", lambda *given, **_: found.append(given[2]))
    assert p2phd("train", *command.split()).code == 0
    assert found[0].model_dump(include=sections) == wanted.model_dump(include=sections)
    assert "--no-report" in flags(wanted, "train")


def test_it_is_the_same_again(told: Path, tmp_path: Path) -> None:
    report(told, out=tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (told / "report.html").read_bytes()


def test_names_are_text_whatever_they_hold(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "<img src=x onerror=alert(1)>")
    spec = read_spec(copy)
    bad = "<script>alert(1)</script>"
    classes = tuple(c.model_copy(update={"name": bad}) if c.name == "car" else c for c in spec.classes)
    changed = spec.model_copy(update={"classes": classes, "warnings": (bad,)})
    write_text(copy / "dataset.json", seal(changed.model_dump(mode="json")))
    report(copy)
    text = (copy / "report.html").read_text(encoding="utf-8")
    assert bad not in text and "<img src=x" not in text and text.count("&lt;script&gt;alert(1)") > 1


def test_at_a_url_it_lies_there(told: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(told, tmp_path / "run")
    (copy / "report.html").unlink()
    assert str(report(f"file://{copy}")) == f"file://{copy}/report.html"
    assert (copy / "report.html").read_text().startswith(MARK) and "Samples over time" in page_of(copy)


def test_training_ends_with_a_report(
    packed: Path, tmp_path: Path, p2phd: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = tmp_path / "run", tiny_settings(train={"report": True, "epochs": 1, "decay_epochs": 0})
    words = ["train", packed, run, *flags(settings, *TRAINED_BY)]
    said = p2phd(*words)
    assert said.code == 0 and f"wrote {run / 'report.html'}" in said.out, said.err
    page = page_of(run)
    assert f"p2phd evaluate {run} DATASET" in page and "There are none yet." in page
    # What is wrong with a report is no error of the training.
    Run(run).sample(3).write_bytes(b"no picture")
    said = p2phd(*words, "--resume")
    assert (
        said.code == 0
        and "step-00000003.png: is not a picture that can be read; the report goes without it" in said.err
    )
    monkeypatch.setattr(training, "report", broken)
    said = p2phd(*words, "--resume")
    assert said.code == 0 and "out of luck; no report was written" in said.err
    monkeypatch.setattr(training, "is_installed", lambda: False)
    said = p2phd(*words, "--resume")
    assert said.code == 0 and "pip install 'pix2pixhd_cli[report]'" in said.out


def broken(*_: object) -> None:
    raise P2PHDError("out of luck")


def test_refusals(told: Path, tmp_path: Path, p2phd: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<!doctype html> my own page")
    said = p2phd("report", told, "--out", mine)
    assert said.code == 1 and f"{mine}: is no report, and will not be written over" in said.err
    assert mine.read_text() == "<!doctype html> my own page"
    assert p2phd("report", told, "--out", tmp_path).code == 1
    said = p2phd("report", told, told)
    assert said.code == 1 and f"{told}: is named twice" in said.err
    said = p2phd("report", tmp_path)
    assert said.code == 1 and "no trained run here" in said.err
    monkeypatch.setattr("pix2pixhd_cli.pipeline.report.is_installed", lambda: False)
    said = p2phd("report", told)
    assert said.code == 1 and "a report needs its extra: pip install 'pix2pixhd_cli[report]'" in said.err
