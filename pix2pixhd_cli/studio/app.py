"""The studio's web application: the page's files, and the calls that the page makes.

Pages hold the scenes; the server holds the model, and keeps nothing of a page between two calls.
"""

import io
import secrets
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from PIL import Image

from pix2pixhd_cli import __version__
from pix2pixhd_cli.data.dataset import Example
from pix2pixhd_cli.data.labels import LabelClass
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.features import FeatureClusters, Styler, parse_rules
from pix2pixhd_cli.images import Picture, Sheet, colour_labels, read_sheet
from pix2pixhd_cli.painting import Painter
from pix2pixhd_cli.scenes import SUFFIX, Scene, Scenes, check_ids, load_scene, of_another_model
from pix2pixhd_cli.studio import wire
from pix2pixhd_cli.studio.easel import Busy, Easel, Overtaken
from pix2pixhd_cli.studio.parcel import command_of_maps, command_of_scene, file_of, parcel

FRONT = Path(__file__).with_name("front")
THE_MAP = Path("the map")
BINARY = "application/octet-stream"
Made = TypeVar("Made")
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.Said, "description": why}
    for status, why in {
        400: "it cannot be painted",
        401: "the token is missing",
        403: "another page's call",
        408: "the body was too slow",
        411: "the length is missing",
        413: "the body is too large",
        421: "another host's call",
        503: "too many wait; try again",
    }.items()
}

OVERTAKEN: dict[int | str, dict[str, Any]] = {204: {"description": "A newer request of the same page took its place."}}


def _binary(what: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {BINARY: {"schema": {"type": "string", "format": "binary"}}}, "description": what}}


class Studio:
    """A run that pages paint with.

    Args:
        painter: the run, loaded.
        scenes: what it was started with, if anything.
        seed: of new scenes.
        most: pixels of a scene.
    """

    def __init__(self, painter: Painter, scenes: Scenes | None, *, seed: int, most: int) -> None:
        self.painter, self.scenes, self.seed, self.most = painter, scenes, seed, most
        self.spec, self.run = painter.spec, painter.run.folder
        self.clusters: FeatureClusters | None = None
        if painter.channels and painter.run.clusters.exists():
            self.clusters = FeatureClusters.load(painter.run.clusters)
        gallery = self.run / "clusters.png"
        self.gallery: Sheet | None = read_sheet(gallery) if self.clusters is not None and gallery.exists() else None
        self.easel = Easel()

    def info(self) -> wire.RunInfo:
        """What a page must know of the run."""
        return wire.RunInfo(
            name=self.run.resolve().name,
            step=self.painter.step,
            classes=[self._class(c) for c in self.spec.classes],
            ignored=list(self.spec.ignored),
            channels=self.painter.channels,
            instances=self.spec.has_instances,
            pooled_by_label=self.painter.model.pool_by_label,
            scenes=self.scenes.stems if self.scenes is not None else [],
            seed=self.seed,
            most_pixels=self.most,
        )

    def _class(self, c: LabelClass) -> wire.ClassInfo:
        found = self.clusters.classes.get(c.id) if self.clusters is not None else None
        pictured = self._row_of(c.id) is not None
        styles = zip(found.names, found.counts.tolist(), found.centres, strict=True) if found is not None else ()
        return wire.ClassInfo(
            id=c.id,
            name=c.name,
            color=colour_labels(np.array([[c.id]]), self.spec.classes)[0, 0].tolist(),
            thing=c.thing,
            styles=[
                wire.Style(name=name, count=count, code=wire.spelled(code), pictured=pictured)
                for name, count, code in styles
            ],
            mean=wire.spelled(found.mean) if found is not None else None,
        )

    def warm_up(self) -> None:
        """Paint the first scene for nobody, so that the page's first picture comes at once."""
        first = self.opening(0) if self.scenes is not None else self.blank()
        maps = first.model_dump(include={"height", "width", "objects", "map"})
        self.easel.begin(lambda: self.paint(wire.SceneBody(**maps)))

    def _row_of(self, class_id: int) -> int | None:
        """Which row of the gallery shows a class's styles."""
        name = self.spec.class_name(class_id)
        return self.gallery.places.names.index(name) if self.gallery and name in self.gallery.places.names else None

    def swatch(self, class_id: int, style: int) -> bytes | None:
        """A picture of a style, as PNG: real instances that are nearest to it."""
        row = self._row_of(class_id)
        if self.gallery is None or row is None or style >= len(self.gallery.places.cells[row]):
            return None
        cell = self.gallery.cell(row, style)
        return _png(cell) if cell is not None else None

    def opening(self, number: int) -> wire.OpenedScene:
        """One of the scenes that the studio was started with."""
        assert self.scenes is not None
        scene = self.scenes.read(number)
        return self._opened(scene if scene.mark else replace(scene, seed=self.seed))

    def blank(self) -> wire.OpenedScene:
        """An empty canvas of the training data's first size, all of its commonest class."""
        entries = next((entries for entries in self.spec.splits.values() if entries), None)
        height, width = (entries[0].height, entries[0].width) if entries else (256, 512)
        pixels = {i: n for counts in self.spec.pixels.values() for i, n in counts.items() if i not in self.spec.ignored}
        commonest = max(pixels, key=pixels.__getitem__, default=self.spec.classes[0].id)
        label = np.full((height, width), commonest, np.uint16)
        return self._opened(Scene(Example("scene", label, label.astype(np.int32), None), seed=self.seed))

    def open(self, body: wire.FileBody) -> wire.OpenedScene:
        """A scene file that was saved before."""
        with tempfile.NamedTemporaryFile(suffix=SUFFIX) as file:
            file.write(wire.unpack_file(body.file))
            file.flush()
            try:
                scene = load_scene(Path(file.name), self.painter, self.most)
            except P2PHDError as error:
                raise P2PHDError(str(error).replace(file.name, "the file")) from None
        return self._opened(scene)

    def _opened(self, scene: Scene) -> wire.OpenedScene:
        """A scene for the page, in styles that give the codes that it was saved with."""
        told = of_another_model(scene, self.painter) if scene.mark else ""
        return wire.opened(replace(scene, styles=self._texts(scene))).model_copy(update={"warning": told})

    def _texts(self, scene: Scene) -> tuple[str, ...]:
        """Its texts, and codes in digits where they do not say the same now: other styles may go by their names."""
        if not self.painter.channels:
            return ()
        texts, found = scene.styles, {}
        try:
            found = self._codes(scene.example, texts, scene.seed)
        except P2PHDError:
            texts = ()
        target = "{}" if self.painter.model.pool_by_label else "instance:{}"
        changed = [
            f"{target.format(identity)}={','.join(map(str, wire.spelled(code)))}"
            for identity, code in scene.example.codes.items()
            if not np.array_equal(found.get(identity, ()), code)
        ]
        return (*texts, *changed)

    def paint(self, body: wire.SceneBody) -> wire.Painted:
        """A scene's picture, and its codes."""
        scene, picture = self._painted(body)
        return wire.Painted(picture, scene.example.codes)

    def save(self, body: wire.SceneBody) -> bytes:
        """A scene's file."""
        return file_of(self._scene(body))

    def export(self, body: wire.SceneBody) -> bytes:
        """A scene's parcel."""
        scene, picture = self._painted(body)
        return parcel(scene, picture, self.spec, command_of_maps(self.run, body.stem, body.styles, body.seed))

    def encode(self, body: wire.EncodeBody) -> wire.Codes:
        """The codes that a photo's instances have, given the maps under it."""
        if not self.painter.channels:
            raise P2PHDError(f"{self.run}: was trained without an encoder, so it takes no codes from photos")
        label, instance = self._maps(body)
        found = self.painter.encode(body.pixels(), self.painter.regions(label, instance))
        return wire.Codes(codes={int(i): wire.spelled(code) for i, code in zip(found.ids, found.codes, strict=True)})

    def commands(self, body: wire.CommandBody) -> wire.Commands:
        """The command lines that paint a scene."""
        return wire.Commands(
            scene=command_of_scene(self.run, body.stem),
            maps=command_of_maps(self.run, body.stem, body.styles, body.seed),
        )

    def _maps(self, body: wire.Maps) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
        label, instance = body.arrays(self.most)
        check_ids(THE_MAP, label, self.painter)
        return label, instance

    def _scene(self, body: wire.SceneBody) -> Scene:
        """A scene with the codes that its styles say."""
        example = Example(body.stem, *self._maps(body), None)
        example = replace(example, codes=self._codes(example, body.styles, body.seed))
        return Scene(example, tuple(body.styles), tuple(body.locked), body.seed, self.painter.mark)

    def _codes(self, example: Example, styles: Sequence[str], seed: int) -> dict[int, NDArray[np.float32]]:
        """The codes that styles give the instances of an example; raises `P2PHDError`."""
        channels = self.painter.channels
        if styles and not channels:
            raise P2PHDError(f"{self.run}: was trained without an encoder, so it takes no feature codes")
        rules = parse_rules(styles, self.spec, self.clusters, channels)
        styler = Styler(rules, self.clusters, channels=channels, seed=seed)
        if styler.needs_photo():
            raise P2PHDError("styles: a page gives the codes that it found in a photo, and not `photo`")
        bare = replace(example, codes={})
        return {i: np.asarray(code, np.float32) for i, code in self.painter.styled(bare, styler).codes.items()}

    def _painted(self, body: wire.SceneBody) -> tuple[Scene, Picture]:
        scene = self._scene(body)
        example = scene.example
        return scene, self.painter.paint(example.label, example.instance, codes=example.codes)


def make_app(studio: Studio) -> FastAPI:
    """The calls of a page, and its files."""
    app = FastAPI(
        title="p2phd studio", version=__version__, docs_url=None, redoc_url=None, openapi_url="/api/openapi.json"
    )
    swatch = lru_cache(maxsize=1024)(studio.swatch)
    info = lru_cache(maxsize=1)(studio.info)

    @app.exception_handler(P2PHDError)
    def refuse(_: Request, error: P2PHDError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400)

    @app.exception_handler(Overtaken)
    def overtaken(_: Request, __: Overtaken) -> Response:
        return Response(status_code=204)

    @app.exception_handler(Busy)
    def busy(_: Request, __: Busy) -> JSONResponse:
        return JSONResponse({"detail": "too many wait; try again"}, 503, {"retry-after": "1"})

    async def alone(make: Callable[[], Made]) -> Made:
        """Work that no later request overtakes."""
        return await studio.easel.work(secrets.token_hex(8), 0, make)

    @app.get("/api/run", responses=REFUSALS)
    def read_run() -> wire.RunInfo:
        """What the run can paint."""
        return info()

    @app.get("/api/scenes/blank", responses=REFUSALS)
    async def read_blank() -> wire.OpenedScene:
        """An empty canvas."""
        return await alone(studio.blank)

    @app.get("/api/scenes/{number}", responses=REFUSALS | {404: {"model": wire.Said}})
    async def read_scene(number: Annotated[int, InPath(ge=0)]) -> Any:
        """A scene that the studio was started with."""
        if studio.scenes is None or number >= len(studio.scenes):
            return JSONResponse({"detail": "there is no such scene"}, 404)
        return await alone(lambda: studio.opening(number))

    @app.get(
        "/api/swatches/{class_id}/{style}",
        response_class=Response,
        responses=REFUSALS
        | {404: {"model": wire.Said}, 200: {"content": {"image/png": {}}, "description": "Instances of a style."}},
    )
    def read_swatch(class_id: Annotated[int, InPath(ge=0)], style: Annotated[int, InPath(ge=0)]) -> Response:
        """A picture of a style."""
        found = swatch(class_id, style)
        if found is None:
            return JSONResponse({"detail": "there is no picture of this style"}, 404)
        return Response(found, media_type="image/png")

    @app.post(
        "/api/paint", response_class=Response, responses=REFUSALS | _binary("A line of JSON, then RGBA.") | OVERTAKEN
    )
    async def paint(body: wire.PaintBody) -> Response:
        """Paint a scene. The answer is a line of JSON (edit, height, width, codes), then uint8 [height, width, 4]."""
        made = await studio.easel.work(body.client, body.edit, lambda: studio.paint(body).bytes(edit=body.edit))
        return Response(made, media_type=BINARY)

    @app.post("/api/encode", responses=REFUSALS)
    async def encode(body: wire.EncodeBody) -> wire.Codes:
        """Find the feature codes of a photo's instances."""
        return await alone(lambda: studio.encode(body))

    @app.post("/api/open", responses=REFUSALS)
    async def open_file(body: wire.FileBody) -> wire.OpenedScene:
        """Read a scene file."""
        return await alone(lambda: studio.open(body))

    @app.post("/api/save", response_class=Response, responses=REFUSALS | _binary("A scene file."))
    async def save(body: wire.SceneBody) -> Response:
        """Make a scene file."""
        return Response(await alone(lambda: studio.save(body)), media_type=BINARY)

    @app.post("/api/export", response_class=Response, responses=REFUSALS | _binary("A ZIP file."))
    async def export(body: wire.SceneBody) -> Response:
        """Make a parcel of picture, maps, scene and command."""
        return Response(await alone(lambda: studio.export(body)), media_type=BINARY)

    @app.post("/api/command", responses=REFUSALS)
    def command(body: wire.CommandBody) -> wire.Commands:
        """The command lines that paint a scene again."""
        return studio.commands(body)

    app.mount("/", StaticFiles(directory=FRONT, html=True))
    return app


def _png(picture: Picture) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
