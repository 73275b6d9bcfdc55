"""What goes over the wire: scenes as the page sends them, and what it gets back.

A map travels as numbers of objects, 16 bits a pixel, deflated and in base64; an object is a pair of class id and instance id.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pix2pixhd_cli.data.dataset import Example
from pix2pixhd_cli.data.files import PlainName
from pix2pixhd_cli.data.labels import MAX_ID
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.scenes import Scene
from pix2pixhd_cli.settings import MOST_SIDE

MOST_OBJECTS = 1 << 16
LARGEST_ID = (1 << 31) - 1
LARGEST_SEED = (1 << 53) - 1  # JavaScript's largest whole number.
Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]
Object = tuple[Annotated[int, Field(ge=0, le=MAX_ID)], Annotated[int, Field(ge=0, le=LARGEST_ID)]]
Text = Annotated[str, Field(min_length=1, max_length=1000)]


class Body(BaseModel):
    """What a page sends; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Maps(Body):
    """A label map and an instance map in one. map: [height, width] numbers into `objects`, uint16, packed."""

    height: Side
    width: Side
    objects: Annotated[list[Object], Field(min_length=1, max_length=MOST_OBJECTS)]
    map: str

    def arrays(self, most: int) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        """Label map, uint16 [H, W], and instance map, int32 [H, W]; raises `P2PHDError`."""
        check_size(self.height, self.width, most)
        numbers = np.frombuffer(unpack(self.map, 2 * self.height * self.width), "<u2")
        if numbers.max() >= len(self.objects):
            raise P2PHDError(f"map: holds {numbers.max()}, but there are {len(self.objects)} objects")
        table = np.array(self.objects, np.int64)[numbers].reshape(self.height, self.width, 2)
        return table[..., 0].astype(np.uint16), table[..., 1].astype(np.int32)


class SceneBody(Maps):
    """A scene: maps, the `--feature-code` texts of its styles, what is locked, and the seed of what is drawn."""

    stem: PlainName = Field("scene", max_length=200)
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    styles: list[Text] = Field([], max_length=MOST_OBJECTS)
    locked: list[Text] = Field([], max_length=MOST_OBJECTS)

    def example(self, most: int) -> Example:
        """Its maps; raises `P2PHDError`."""
        return Example(self.stem, *self.arrays(most), None)


class PaintBody(SceneBody):
    """A scene to paint. client: which page asks. edit: its count of edits, by which newer requests overtake older ones."""

    client: str = Field(pattern=r"^[0-9A-Za-z-]{1,40}$")
    edit: int = Field(ge=0, le=LARGEST_SEED)


class EncodeBody(Maps):
    """A photo of the maps' size. photo: uint8 [height, width, 3], packed."""

    photo: str

    def pixels(self) -> NDArray[np.uint8]:
        """The photo; raises `P2PHDError`."""
        count = 3 * self.height * self.width
        return np.frombuffer(unpack(self.photo, count), np.uint8).reshape(self.height, self.width, 3)


class FileBody(Body):
    """A scene file, in base64."""

    file: str


class Said(BaseModel):
    """Why a request was refused."""

    detail: str


class Codes(BaseModel):
    """Feature codes by instance id."""

    codes: dict[int, list[float]]


class OpenedScene(BaseModel):
    """A scene as the page takes it."""

    stem: str
    height: int
    width: int
    objects: list[Annotated[list[int], Field(min_length=2, max_length=2)]]
    map: str
    styles: list[str]
    locked: list[str]
    seed: int
    warning: str = ""


class Style(BaseModel):
    """One style of a class: its name if it has one, how many instances are of it, its code, and whether there is a picture."""

    name: str
    count: int
    code: list[float]
    pictured: bool


class ClassInfo(BaseModel):
    """One class of the run. mean: of its codes, where it was seen."""

    id: int
    name: str
    color: Annotated[list[int], Field(min_length=3, max_length=3)]
    thing: bool
    styles: list[Style]
    mean: list[float] | None


class RunInfo(BaseModel):
    """What the page must know of the run.

    channels: numbers in a code, 0 if the run takes none. instances: whether it tells instances apart, and whether codes are of
    instances or, pooled by label, of classes. scenes: names of those that the studio was started with.
    """

    name: str
    step: int
    classes: list[ClassInfo]
    ignored: list[int]
    channels: int
    instances: bool
    pooled_by_label: bool
    scenes: list[str]
    seed: int
    most_pixels: int


class CommandBody(Body):
    """What a command line must say of a scene."""

    stem: PlainName = Field(max_length=200)
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    styles: list[Text] = Field([], max_length=MOST_OBJECTS)


class Commands(BaseModel):
    """The commands that paint it again: from the saved scene, and from the exported maps."""

    scene: str
    maps: str


@dataclass(frozen=True)
class Painted:
    """A picture, uint8 [H, W, 3], and the code of each instance in it."""

    picture: NDArray[np.uint8]
    codes: Mapping[int, NDArray[np.float32]]

    def bytes(self, **more: Any) -> bytes:
        """A line of JSON, then the picture as RGBA."""
        height, width = self.picture.shape[:2]
        codes = {str(identity): spelled(code) for identity, code in self.codes.items()}
        head = {"height": height, "width": width, "codes": codes, **more}
        rgba = np.full((height, width, 4), 255, np.uint8)
        rgba[..., :3] = self.picture
        return json.dumps(head).encode() + b"\n" + rgba.tobytes()


def spelled(code: NDArray[np.floating]) -> list[float]:
    """Numbers in the shortest digits that give the same float32 again."""
    return [float(str(np.float32(number))) for number in code]


def opened(scene: Scene) -> OpenedScene:
    """A scene for the page; raises `P2PHDError` if there are too many objects in it."""
    example = scene.example
    pairs = example.label.astype(np.int64) << 32 | example.instance
    found, numbers = np.unique(pairs, return_inverse=True)
    if len(found) > MOST_OBJECTS:
        raise P2PHDError(f"{example.stem}: has {len(found):,} objects; the studio takes {MOST_OBJECTS:,}")
    return OpenedScene(
        stem=example.stem,
        height=example.label.shape[0],
        width=example.label.shape[1],
        objects=[[int(pair >> 32), int(pair & 0xFFFFFFFF)] for pair in found],
        map=pack(numbers.astype("<u2")),
        styles=list(scene.styles),
        locked=list(scene.locked),
        seed=scene.seed,
    )


def check_size(height: int, width: int, most: int) -> None:
    """Refuse maps of too many pixels; raises `P2PHDError`."""
    if height * width > most:
        raise P2PHDError(f"the map is {height}x{width}, more than {most:,} pixels; see --max-pixels")


def pack(array: NDArray[Any]) -> str:
    """An array's bytes, deflated and in base64."""
    return base64.b64encode(zlib.compress(array.tobytes(), 1)).decode()


def unpack(text: str, size: int) -> bytes:
    """Just `size` bytes out of what `pack` made; raises `P2PHDError` without inflating more."""
    try:
        inflater = zlib.decompressobj()
        data = inflater.decompress(base64.b64decode(text, validate=True), size + 1)
        if len(data) != size or not inflater.eof:
            raise ValueError(f"it holds {'more' if len(data) > size else 'fewer'} than the {size} bytes of its size")
    except (ValueError, binascii.Error, zlib.error) as error:
        raise P2PHDError(f"packed bytes: {error}") from None
    return data


def unpack_file(text: str) -> bytes:
    """A file's bytes; raises `P2PHDError`."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise P2PHDError(f"file: {error}") from None
