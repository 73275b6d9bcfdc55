"""The page of a report: one file that holds its pictures, charts and scripts, and asks no network for anything."""

import base64
from importlib.resources import files
from io import BytesIO
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from pix2pixhd_cli.charts import library
from pix2pixhd_cli.images import Picture, fit_width

MARK = "<!doctype html>\n<!-- p2phd report -->"  # What a report begins with: others are not written over.
TEMPLATES = files("pix2pixhd_cli") / "templates"
QUALITY = 92


def render(**values: Any) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("pix2pixhd_cli"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    parts = {"style": _plain("report.css"), "script": _plain("report.js"), "library": Markup(library())}
    return MARK + "\n" + environment.get_template("report.html").render(**parts, **values)


class Shown(NamedTuple):
    """A picture in the page: its data as a URI, and its sides in pixels."""

    uri: str
    height: int
    width: int


def embedded(picture: Picture, widest: int, *, exact: bool = False) -> Shown:
    """A picture for the page, no wider than `widest`: `exact` ones keep every pixel's colour."""
    shown = fit_width(picture, widest) if picture.shape[1] > widest else picture
    buffer = BytesIO()
    Image.fromarray(shown).save(buffer, "WEBP", lossless=exact, quality=QUALITY, method=4)
    text = base64.b64encode(buffer.getvalue()).decode()
    return Shown(f"data:image/webp;base64,{text}", *shown.shape[:2])


def _plain(name: str) -> Markup:
    """A file of ours, as it is."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))
