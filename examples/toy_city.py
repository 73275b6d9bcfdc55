"""Draws a toy city: a Cityscapes-shaped tree of small procedural streets whose appearance is not in the label map.

    python examples/toy_city.py CITY --train 200 --val 12 --seed 0

Every car has one of four paints, every road is asphalt or cobbles, every building has one of four plasters. None of it
can be told from labels, instance ids or file names; `CITY/truth.json` has the answers, for judging only.
Ids are Cityscapes' own: road 7, sidewalk 8, building 11, sky 23, car 26; cars and buildings are instances.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

ROAD, SIDEWALK, BUILDING, SKY, CAR = 7, 8, 11, 23, 26
Colour = tuple[int, int, int]
PAINTS: dict[str, Colour] = {
    "red": (196, 36, 32),
    "blue": (36, 72, 190),
    "white": (232, 232, 226),
    "green": (40, 140, 66),
}
PLASTERS: dict[str, Colour] = {
    "ochre": (206, 164, 92),
    "brick": (150, 82, 66),
    "grey": (140, 144, 150),
    "mint": (150, 190, 166),
}
SURFACES = ("asphalt", "cobbles")
GLASS: Colour = (44, 52, 62)
TYRE: Colour = (22, 22, 24)


@dataclass
class Street:
    """One street while it is drawn: label u8 [H, W], instance u16 [H, W], photo float [H, W, 3] in 0 … 255, and the truth."""

    label: NDArray[np.uint8]
    instance: NDArray[np.uint16]
    photo: NDArray[np.float64]
    surface: str
    paints: dict[str, str] = field(default_factory=dict)
    plasters: dict[str, str] = field(default_factory=dict)

    def fill(self, rows: slice, columns: slice, colour: Colour) -> None:
        """Paint a rectangle of the photo only."""
        self.photo[rows, columns] = colour


def draw_street(rng: Generator, height: int = 64, width: int = 128) -> Street:
    """Draw one street: sky, a row of buildings, two sidewalks, a road with two to four cars."""
    street = Street(
        label=np.full((height, width), SKY, np.uint8),
        instance=np.full((height, width), SKY, np.uint16),
        photo=np.zeros((height, width, 3)),
        surface=str(rng.choice(SURFACES)),
    )
    curb = int(height * rng.uniform(0.5, 0.58))
    draw_sky(street, curb)
    draw_buildings(street, rng, curb)
    draw_ground(street, rng, curb, curb + height // 16)
    draw_cars(street, rng, curb + height // 16)
    noise = rng.normal(0, 2.5, (height, width, 1))
    street.photo = np.clip(street.photo * rng.uniform(0.94, 1.06) + noise, 0, 255)
    return street


def draw_sky(street: Street, bottom: int) -> None:
    """A vertical gradient from blue to haze."""
    share = np.linspace(0, 1, bottom)[:, None, None]
    street.photo[:bottom] = np.array([112, 160, 214]) * (1 - share) + np.array([206, 218, 228]) * share


def draw_buildings(street: Street, rng: Generator, bottom: int) -> None:
    """A row of houses, each an instance with a plaster of its own and rows of windows."""
    height, width = street.label.shape
    left, count = 0, 0
    while left < width:
        right = min(width, left + int(rng.integers(width // 5, width // 3)))
        right = width if width - right < width // 8 else right
        top = int(rng.integers(height // 16, height // 4))
        rows, columns = slice(top, bottom), slice(left, right)
        plaster = str(rng.choice(list(PLASTERS)))
        street.label[rows, columns] = BUILDING
        street.instance[rows, columns] = BUILDING * 1000 + count
        street.plasters[str(BUILDING * 1000 + count)] = plaster
        street.fill(rows, columns, PLASTERS[plaster])
        for y in range(top + 4, bottom - 6, 9):
            for x in range(left + 3, right - 5, 8):
                street.fill(slice(y, y + 5), slice(x, x + 4), GLASS)
        street.photo[rows, left : left + 1] *= 0.7
        left, count = right, count + 1


def draw_ground(street: Street, rng: Generator, curb: int, road: int) -> None:
    """Sidewalk on both sides of a road of asphalt (smooth) or cobbles (a strong pattern of stones)."""
    height, width = street.label.shape
    near = height - height // 16
    for rows, identity in ((slice(curb, height), SIDEWALK), (slice(road, near), ROAD)):
        street.label[rows] = identity
        street.instance[rows] = identity
    street.photo[curb:height] = (172, 166, 158)
    street.photo[curb:height, :: width // 16] = (140, 134, 128)
    if street.surface == "asphalt":
        street.photo[road:near] = (84, 84, 88)
        street.photo[road:near] += rng.normal(0, 2, (near - road, width, 1))
    else:
        street.photo[road:near] = cobbles(near - road, width, rng)


def cobbles(height: int, width: int, rng: Generator) -> NDArray[np.float64]:
    """Warm stones of 8 x 4 pixels in running bond, each a little different, with dark joints: [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    course, shifted = y // 4, x + 4 * (y // 4 % 2)
    shade = rng.normal(1, 0.06, (height // 4 + 1, width // 8 + 2))[course, shifted // 8]
    joint = (y % 4 == 3) | (shifted % 8 == 7)
    return np.where(joint[..., None], (84.0, 74.0, 64.0), np.array((164.0, 148.0, 126.0)) * shade[..., None])


def draw_cars(street: Street, rng: Generator, road: int) -> None:
    """Two to four cars in lanes, far ones first, each an instance with a paint of its own."""
    height, width = street.label.shape
    count = int(rng.integers(2, 5))
    slots = rng.permutation(4)[:count]
    bottoms = sorted(int(rng.integers(road + height // 6, height - height // 12)) for _ in slots)
    for number, (slot, bottom) in enumerate(zip(slots, bottoms, strict=True)):
        tall = int(height * rng.uniform(0.17, 0.2))
        wide = int(width * rng.uniform(0.19, 0.22))
        left = int(np.clip(slot * width // 4 + rng.integers(0, max(1, width // 4 - wide)), 0, width - wide))
        paint = str(rng.choice(list(PAINTS)))
        street.paints[str(CAR * 1000 + number)] = paint
        draw_car(street, slice(bottom - tall, bottom), slice(left, left + wide), CAR * 1000 + number, PAINTS[paint])


def draw_car(street: Street, rows: slice, columns: slice, identity: int, paint: Colour) -> None:
    """One car seen from the side: body, cabin with windows, wheels, a lit roof."""
    top, bottom, left, right = rows.start, rows.stop, columns.start, columns.stop
    belt = top + (bottom - top) * 2 // 5
    inset = (right - left) // 5
    for body_rows, body_columns in (
        (slice(belt, bottom), columns),
        (slice(top, belt), slice(left + inset, right - inset)),
    ):
        street.label[body_rows, body_columns] = CAR
        street.instance[body_rows, body_columns] = identity
        street.fill(body_rows, body_columns, paint)
    street.photo[top : top + 1, left + inset : right - inset] *= 1.15
    street.fill(slice(top + 2, belt), slice(left + inset + 2, right - inset - 2), GLASS)
    street.fill(slice(top + 2, belt), slice((left + right) // 2, (left + right) // 2 + 1), paint)
    for wheel in (left + 3, right - 7):
        street.fill(slice(bottom - 3, bottom), slice(wheel, wheel + 4), TYRE)


def write_street(street: Street, city: Path, split: str, stem: str) -> None:
    """Write photo, label map and 16-bit instance map under their official names."""
    place = stem.split("_")[0]
    maps, photos = city / "gtFine" / split / place, city / "leftImg8bit" / split / place
    for folder in (maps, photos):
        folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(street.label).save(maps / f"{stem}_gtFine_labelIds.png")
    Image.fromarray(street.instance).save(maps / f"{stem}_gtFine_instanceIds.png")
    Image.fromarray(np.rint(street.photo).astype(np.uint8)).save(photos / f"{stem}_leftImg8bit.png")


def draw_city(city: Path, *, train: int, val: int, seed: int, height: int = 64, width: int = 128) -> None:
    """Draw both splits below `city`, and `truth.json`; the same arguments give the same bytes."""
    truth = {}
    for split, place, count, stream in (("train", "toytown", train, 0), ("val", "toyville", val, 1)):
        for number in range(count):
            stem = f"{place}_{number:06d}_000019"
            street = draw_street(np.random.default_rng([seed, stream, number]), height, width)
            write_street(street, city, split, stem)
            truth[stem] = {"surface": street.surface, "paints": street.paints, "plasters": street.plasters}
    (city / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("city", type=Path, help="folder to draw into")
    parser.add_argument("--train", type=int, default=200, help="streets to train on (default 200)")
    parser.add_argument("--val", type=int, default=12, help="streets to paint (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same city")
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()
    draw_city(
        arguments.city,
        train=arguments.train,
        val=arguments.val,
        seed=arguments.seed,
        height=arguments.height,
        width=arguments.width,
    )
    print(f"drew {arguments.train} + {arguments.val} streets into {arguments.city}")


if __name__ == "__main__":
    main()
