"""The studio's page in a browser: a street is painted, styled, undone, saved, and painted again from the command line."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from toy_city import PAINTS

from tests.browsing import browser as browser
from tests.conftest import Command
from tests.serving import serving

EXAMPLES = Path(__file__).parents[1] / "examples"
RUN, STREETS = EXAMPLES / "toy_run", EXAMPLES / "streets"
CAR, ROAD = 26, 7


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(RUN, STREETS) as (url, _):
        yield url


class Desk:
    """The page, and a hand that works on it."""

    def __init__(self, browser: Browser, url: str, **how: Any) -> None:
        self.page: Page = browser.new_page(**{"viewport": {"width": 1280, "height": 800}, **how})
        self.complaints: list[str] = []
        self.asked: set[str] = set()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(request.url.split("/")[2]))
        self.page.goto(url)
        self.settle()

    def run(self, code: str, argument: Any = None) -> Any:
        return self.page.evaluate(
            f"(argument) => {{ const {{ view, tools, painter, scene }} = window.studio; {code} }}", argument
        )

    def settle(self) -> None:
        """Wait until the picture shows the scene."""
        expect(self.page.locator("#state")).to_have_attribute("data-state", "current", timeout=20_000)
        self.page.wait_for_function("() => window.studio.painter.shown === window.studio.scene.edits")

    def place(self, x: int, y: int) -> tuple[float, float]:
        """Where a pixel of the map is on the screen, in the pane with the labels."""
        left, top = self.run(
            "const box = view.canvas.getBoundingClientRect(), ratio = box.width / view.canvas.width, pane = view.panes()[0];"
            "const at = (origin, n) => (origin + (n + 0.5) * view.zoom) * ratio;"
            "return [box.left + at(pane.x, argument[0]), box.top + at(pane.y, argument[1])];",
            [x, y],
        )
        return left, top

    def drag(self, *places: tuple[int, int]) -> None:
        first, *others = [self.place(*place) for place in places]
        self.page.mouse.move(*first)
        self.page.mouse.down()
        for place in others:
            self.page.mouse.move(*place, steps=4)
        self.page.mouse.up()

    def click(self, x: int, y: int) -> None:
        self.page.mouse.click(*self.place(x, y))

    def key(self, *keys: str) -> None:
        self.page.locator("#stage").focus()
        for key in keys:
            self.page.keyboard.press(key)

    def choose_class(self, name: str) -> None:
        self.page.fill("#search", name)
        self.page.press("#search", "Enter")

    def choose_style(self, name: str) -> None:
        self.page.locator("#swatches button", has_text=name).click()
        self.settle()

    def picture(self) -> NDArray[np.uint8]:
        width, height, pixels = self.run(
            "const { width, height } = view.picture, { data } = view.picture.getContext('2d').getImageData(0, 0, width, height);"
            "return [width, height, Array.from(data)];"
        )
        return np.array(pixels, np.uint8).reshape(height, width, 4)[..., :3]

    def maps(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Label map and instance map, as the page has them."""
        width, numbers, labels, instances = self.run(
            "const { objects } = scene.state;"
            "return [scene.width, Array.from(scene.map), objects.map((o) => o.label), objects.map((o) => o.instance)];"
        )
        index = np.array(numbers).reshape(-1, width)
        return np.array(labels)[index], np.array(instances)[index]

    def selected(self) -> NDArray[np.bool_]:
        """Where the selected object is."""
        width, numbers, number = self.run("return [scene.width, Array.from(scene.map), tools.selected];")
        return np.array(numbers).reshape(-1, width) == number

    def download(self, button: str) -> bytes:
        with self.page.expect_download() as waiting:
            self.page.click(button)
        return Path(waiting.value.path()).read_bytes()

    def style(self, name: str) -> int:
        """The index of a car's style."""
        return int(self.run("return scene.run.byId.get(26).styles.findIndex((s) => s.name === argument);", name))

    def draw_car(self) -> None:
        """A new car, in the middle of the road: a body, and a cabin on it."""
        self.choose_class("car")
        self.key("r")
        self.drag((60, 46), (84, 54))
        self.drag((66, 42), (78, 45))
        self.settle()


@pytest.fixture
def desk(browser: Browser, url: str) -> Iterator[Desk]:
    desk = Desk(browser, url)
    yield desk
    assert desk.complaints == []
    assert desk.asked <= {url.removeprefix("http://")}
    desk.page.close()


def colour(picture: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.float64]:
    return picture[where].astype(np.float64).mean(0)


def test_a_new_car_in_every_paint(desk: Desk) -> None:
    before = desk.maps()[1]
    desk.draw_car()
    car = desk.selected()
    assert car.sum() == 25 * 9 + 13 * 4
    labels, instances = desk.maps()
    assert (labels[car] == CAR).all()
    assert len(np.unique(instances[car])) == 1 and instances[car][0] not in before
    np.testing.assert_array_equal(instances[~car], before[~car])
    found = {}
    for paint in PAINTS:
        desk.choose_style(paint)
        found[paint] = colour(desk.picture(), car)
    for paint, seen in found.items():
        relative = seen - np.mean(list(found.values()), 0)
        wanted = {name: np.array(of) - np.mean(list(PAINTS.values()), 0) for name, of in PAINTS.items()}
        likeness = {n: float(relative @ w / np.linalg.norm(w)) for n, w in wanted.items()}
        assert max(likeness, key=likeness.__getitem__) == paint, (paint, found)


def test_after_an_undo_the_next_car_is_new_again(desk: Desk) -> None:
    desk.draw_car()
    desk.key("Control+z", "Control+z")
    assert desk.run("return [tools.selected, tools.paintAs];") == [None, "new"]
    desk.drag((60, 46), (70, 50))
    desk.settle()
    labels, instances = desk.maps()
    assert (labels[48, 65], instances[48, 65]) == (CAR, 26003)


def test_scenes_are_chosen_from_a_list_and_not_left_by_accident(desk: Desk) -> None:
    names = desk.page.locator("#scenes option").all_inner_texts()
    assert len(names) == 5
    desk.draw_car()
    edited = desk.maps()[0]
    desk.page.once("dialog", lambda dialog: dialog.dismiss())
    desk.page.select_option("#scenes", "1")
    np.testing.assert_array_equal(desk.maps()[0], edited)
    assert desk.page.input_value("#scenes") == "0"
    desk.page.once("dialog", lambda dialog: dialog.accept())
    desk.page.select_option("#scenes", "blank")
    desk.page.wait_for_function("() => window.studio.scene.stem === 'scene'")
    desk.settle()
    assert (desk.page.input_value("#scenes"), len(np.unique(desk.maps()[0]))) == ("blank", 1)


def test_cobbles_for_asphalt(desk: Desk) -> None:
    desk.key("v")
    desk.click(64, 42)
    assert "road" in desk.page.inner_text("#object-title")
    road = desk.selected()
    desk.page.click("#scope input[value=class]")
    contrast = {}
    for surface in ("asphalt", "cobbles"):
        desk.choose_style(surface)
        grey = desk.picture().astype(np.float64).mean(-1)
        contrast[surface] = np.abs(np.diff(grey, axis=0))[road[1:] & road[:-1]].mean()
    assert contrast["cobbles"] > 1.5 * contrast["asphalt"]
    assert desk.run("return scene.texts();") == ["road=cobbles"]


def test_move_copy_scale_mirror_delete_and_undo_to_the_start(desk: Desk) -> None:
    start, first = desk.maps(), desk.picture()
    desk.draw_car()
    desk.choose_style("red")
    car = desk.selected()
    desk.key("v")
    desk.drag((70, 50), (40, 48))
    desk.settle()
    np.testing.assert_array_equal(desk.selected(), np.roll(car, (-2, -30), (0, 1)))
    assert (desk.maps()[0][car & ~desk.selected()] == ROAD).all()
    desk.key("ArrowRight", "Shift+ArrowRight")
    np.testing.assert_array_equal(desk.selected(), np.roll(car, (-2, -21), (0, 1)))
    area = desk.selected().sum()
    desk.page.click("#mirror")
    assert desk.selected().sum() == area
    desk.page.click("#bigger")
    assert desk.selected().sum() > area
    desk.page.click("#copy")
    desk.settle()
    assert f"instance:26004={desk.style('red')}" in desk.run("return scene.texts();")
    copy = desk.selected()
    desk.page.select_option("#hole", label="sidewalk")
    desk.page.click("#delete")
    assert (desk.maps()[0][copy] == 8).all()
    desk.settle()
    while desk.page.is_enabled("#undo"):
        desk.key("Control+z")
    desk.settle()
    for now, then in zip(desk.maps(), start, strict=True):
        np.testing.assert_array_equal(now, then)
    np.testing.assert_array_equal(desk.picture(), first)
    while desk.page.is_enabled("#redo"):
        desk.key("Control+Shift+z")
    assert (desk.maps()[0][copy] == 8).all()


def test_what_is_saved_is_the_same_picture_everywhere(desk: Desk, p2phd: Command, tmp_path: Path) -> None:
    desk.draw_car()
    desk.choose_style("blue")
    desk.page.fill("#stem", "my street")
    desk.page.press("#stem", "Enter")
    desk.settle()
    picture, maps = desk.picture(), desk.maps()
    assert "•" in desk.page.title()
    file = tmp_path / "my street.p2phd"
    file.write_bytes(desk.download("#save"))
    assert "•" not in desk.page.title()
    assert p2phd("generate", RUN, file, tmp_path / "from_scene").code == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "from_scene/my street.png")), picture)
    with zipfile.ZipFile(io.BytesIO(desk.download("#export"))) as archive:
        archive.extractall(tmp_path)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "my street/picture.png")), picture)
    desk.page.click("#commands")
    expect(desk.page.locator("#command-scene")).to_contain_text("'my street.p2phd' pictures")
    assert f"--feature-code instance:26003={desk.style('blue')}" in desk.page.inner_text("#command-maps")
    desk.key("Escape")
    desk.page.reload()
    desk.settle()
    desk.page.set_input_files("#scene-file", file)
    desk.page.wait_for_function("() => window.studio.scene.stem === 'my street'")
    desk.settle()
    np.testing.assert_array_equal(desk.picture(), picture)
    np.testing.assert_array_equal(desk.maps(), maps)


def test_every_tool_paints_whole_pixels(desk: Desk) -> None:
    desk.choose_class("sky")
    assert desk.page.is_checked("[name=paintas][value=stuff]")
    desk.key("g")
    desk.click(64, 42)
    labels = desk.maps()[0]
    assert labels[42, 64] == 23 and ROAD not in labels
    desk.choose_class("road")
    desk.key("b")
    desk.run("tools.set({ size: 5 });")
    desk.drag((20, 50), (20, 50))
    assert (desk.maps()[0] == ROAD).sum() == 21  # A disk of five pixels.
    desk.key("l")
    for corner in ((40, 40), (50, 40), (50, 50), (40, 50)):
        desk.click(*corner)
    desk.key("Enter")
    assert (desk.maps()[0][41:50, 41:50] == ROAD).all()
    desk.settle()


def test_by_keys_alone(desk: Desk) -> None:
    desk.choose_class("car")
    desk.key("r", "ArrowDown", "ArrowDown", "Space", "Shift+ArrowRight", "Shift+ArrowDown", "Space")
    desk.settle()
    assert desk.selected().sum() == 81
    assert desk.page.inner_text("#cursor") == "row 42, column 72: car 26003"
    desk.key("x")
    desk.settle()
    desk.key("m", ".", ",", "Control+d", "Delete", "Escape", "4", "o", "+", "0", "?")
    expect(desk.page.locator("#help-dialog")).to_be_visible()
    desk.key("Escape")


def test_styles_of_every_kind(desk: Desk) -> None:
    desk.draw_car()
    own = "instance:26003"
    choice = "return scene.state.styles.get(argument) ?? null;"
    desk.page.click("#mean")
    assert desk.run(choice, own) == "mean"
    desk.settle()
    desk.page.locator("summary", has_text="Blend").click()
    desk.run("const { codes } = painter; return codes;")
    desk.page.locator("#blend").fill("25")
    desk.settle()
    codes = [style["code"] for style in desk.run("return scene.run.byId.get(26).styles;")]
    blended = np.array(codes[0]) * 0.75 + np.array(codes[1]) * 0.25
    np.testing.assert_allclose([float(x) for x in desk.run(choice, own).split(",")], blended, atol=1e-6)
    done = desk.run("return scene.done.length;")
    desk.page.locator("#code input").first.fill("0.5")
    desk.settle()
    assert float(desk.run(choice, own).split(",")[0]) == 0.5
    assert desk.run("return scene.done.length;") == done + 1
    desk.page.check("#lock")
    desk.page.click("#scope input[value=class]")
    desk.choose_style("white")
    assert desk.run(choice, own).startswith("0.5,") and desk.run(choice, "class:26") == "white"
    desk.page.click("#reroll")
    desk.settle()
    assert desk.run("return painter.codes[26003][0];") == 0.5
    desk.page.click("#scope input[value=own]")
    desk.page.uncheck("#lock")
    desk.page.click("#same")
    desk.settle()
    assert desk.run("return new Set([26000, 26001, 26002, 26003].map((i) => painter.codes[i][0])).size;") == 1


def test_a_style_from_a_photo(desk: Desk) -> None:
    """A photo of the very street gives back its own paints."""
    photo = np.asarray(Image.open(next((STREETS / "val/photo").glob("*_000000_*"))))
    instances = desk.maps()[1]
    desk.key("v")
    cars = np.argwhere(instances == 26000)
    y, x = cars[len(cars) // 2].tolist()
    desk.click(x, y)
    desk.page.set_input_files("#photo-file", next((STREETS / "val/photo").glob("*_000000_*")))
    expect(desk.page.locator("#gain-row")).to_be_visible()
    desk.settle()
    real, fake = (colour(picture, instances == 26000) for picture in (photo, desk.picture()))
    assert np.abs(real - fake).max() < 40
    before = desk.run("return painter.codes[26000];")
    desk.page.locator("#gain").fill("50")
    desk.settle()
    np.testing.assert_allclose(desk.run("return painter.codes[26000];"), np.array(before) / 2, atol=1e-6)


def test_touch_a_narrow_dark_page(browser: Browser, url: str) -> None:
    desk = Desk(browser, url, viewport={"width": 1024, "height": 700}, color_scheme="dark", has_touch=True)
    assert desk.page.evaluate(
        "document.documentElement.scrollWidth <= 1024 && document.documentElement.scrollHeight <= 700"
    )
    desk.choose_class("car")
    desk.page.click("[data-tool=brush]")
    desk.page.touchscreen.tap(*desk.place(70, 50))
    desk.settle()
    assert desk.maps()[0][50, 70] == CAR
    assert desk.complaints == []
    desk.page.close()


def test_it_says_when_the_picture_is_behind(browser: Browser, run: Path, dataset: Path) -> None:
    with serving(run, dataset) as (url, studio):
        desk = Desk(browser, url)
        studio.easel.begin(lambda: __import__("time").sleep(1.5))
        desk.key("g")
        desk.click(10, 30)
        expect(desk.page.locator("#state")).to_have_attribute("data-state", "painting")
        expect(desk.page.locator("#state")).to_contain_text("shows an older one")
        desk.settle()
    desk.key("g")
    desk.choose_class("sky")
    desk.key("g")
    desk.click(12, 30)
    expect(desk.page.locator("#state")).to_contain_text("does not answer")
    desk.page.close()


def test_the_front_end_is_small() -> None:
    front = EXAMPLES.parent / "pix2pixhd_cli/studio/front"
    assert sum(path.stat().st_size for path in front.iterdir()) < 200_000
    assert all("://" not in path.read_text().replace("http://www.w3.org/2000/svg", "") for path in front.iterdir())


# Shapes, against plain loops


def test_shapes(desk: Desk) -> None:
    def spans(code: str) -> NDArray[np.uint8]:
        """A map of 12x16 zeros in which the spans are ones."""
        found = desk.page.evaluate(
            f"async () => {{ const r = await import('/raster.js'), map = new Uint16Array(192);"
            f"r.fillSpans(map, 16, 12, {code}, 1); return Array.from(map); }}"
        )
        return np.array(found, np.uint8).reshape(12, 16)

    y, x = np.mgrid[:12, :16]
    for diameter in range(1, 9):
        middle = 6 - (diameter - 1) // 2 + diameter / 2
        inside = (x + 0.5 - middle) ** 2 + (y + 0.5 - middle) ** 2 <= (diameter / 2) ** 2
        np.testing.assert_array_equal(spans(f"r.disk(6, 6, {diameter})"), inside)
    np.testing.assert_array_equal(spans("r.rectangle(9, 8, 3, 2)"), (x >= 3) & (x <= 9) & (y >= 2) & (y <= 8))
    np.testing.assert_array_equal(
        spans("r.polygon([[2, 1], [12, 1], [2, 11]])"), (x >= 2) & (y >= 1) & (x + 0.5 - 2 + y + 0.5 - 1 < 10)
    )
    assert spans("r.stroke(2, 2, 13, 9, 1)").sum() == 12
    assert spans("r.disk(0, 0, 5)").sum() == 8  # The rest lies outside.
