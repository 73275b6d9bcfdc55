"""`p2phd studio`: a page in the browser that paints with a run."""

import secrets
import socket
import webbrowser
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pix2pixhd_cli import console
from pix2pixhd_cli.errors import STOPS, P2PHDError, SettingsError
from pix2pixhd_cli.mirror import STUDIO, at_any_place
from pix2pixhd_cli.painting import Painter
from pix2pixhd_cli.scenes import Scenes
from pix2pixhd_cli.settings import Settings, StudioSettings, load_settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from pix2pixhd_cli.studio.app import Studio
    from pix2pixhd_cli.studio.guard import Guard

INSTALL = "pip install 'pix2pixhd_cli[studio]'"
MOST_CONNECTIONS = 1000
EVERYWHERE = ("0.0.0.0", "::")


@at_any_place(STUDIO)
def studio(run: Path, labels: Path | None = None, settings: Settings | None = None) -> None:
    """Serve a page that paints with a run, until it is stopped.

    Args:
        run: a trained run.
        labels: what to begin with, as `generate` takes it: a data set, a folder of label maps or scenes, or one of these.
            An empty canvas by default.
        settings: section studio.

    Nothing is written anywhere: what the page saves, the browser downloads. Raises `P2PHDError` for what the run or the label
    maps cannot give, if the extra is missing, and if the port is taken.
    """
    if not is_installed():
        raise P2PHDError(f"the studio needs its extra: {INSTALL}")
    chosen = settings or load_settings(run=run)
    with listening(chosen.studio) as listener:
        made = make_studio(run, labels, chosen)
        token = None if is_loopback(chosen.studio.host) else secrets.token_urlsafe(24)
        serve(made, listener, chosen.studio, token)


def is_installed() -> bool:
    """Whether all is there that the studio takes."""
    return all(find_spec(name) is not None for name in ("fastapi", "uvicorn"))


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach it."""
    return host in ("localhost", "::1") or host.startswith("127.")


def make_studio(run: Path, labels: Path | None, settings: Settings) -> "Studio":
    """Load what pages will paint with; raises `P2PHDError`."""
    from pix2pixhd_cli.studio.app import Studio

    chosen = settings.studio
    painter = Painter(run, settings, devices=settings.generate.devices)
    if painter.spec.input == "rgb":
        raise P2PHDError(f"{run}: paints from RGB pictures; the studio paints class ids")
    if painter.channels and not painter.run.clusters.exists():
        console.warn(f"{run} has no styles yet: codes are zero; `p2phd encode` and `p2phd cluster` find styles")
    scenes = None
    if labels is not None:
        what = {"split": chosen.split, "instance_map": chosen.instance_map, "max_pixels": chosen.max_pixels}
        scenes = Scenes(painter, labels, settings.generate.model_copy(update=what), with_photos=False)
    return Studio(painter, scenes, seed=chosen.seed, most=chosen.max_pixels)


def listening(settings: StudioSettings) -> socket.socket:
    """A socket of our own at host and port; raises `SettingsError` if there is none to have."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        advice = "name another --port (0 takes any that is free), or another --host"
        raise SettingsError(f"--host {settings.host} --port {settings.port}: {error.strerror}; {advice}") from None
    return listener


def guarded(app: "FastAPI", settings: StudioSettings, token: str | None) -> "Guard":
    """The application behind its guard."""
    from pix2pixhd_cli.studio.guard import LOOPBACK, Guard

    # A map and a photo in base64, were they not to shrink at all, and some room for the rest.
    most = 8 * settings.max_pixels + (1 << 20)
    hosts = {*LOOPBACK, settings.host.lower(), socket.gethostname().lower()}
    return Guard(app, hosts=hosts, any_address=settings.host in EVERYWHERE, token=token, most=most)


def serve(studio: "Studio", listener: socket.socket, settings: StudioSettings, token: str | None) -> None:
    """Answer pages until Ctrl-C."""
    import uvicorn

    from pix2pixhd_cli.studio.app import make_app

    url = _url(settings.host, listener.getsockname()[1], token)
    config = uvicorn.Config(
        guarded(make_app(studio), settings, token),
        log_level="critical",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    studio.warm_up()
    console.info(f"the studio is at {url}; Ctrl-C stops it")
    if settings.open:
        webbrowser.open(url)
    try:
        with suppress(*STOPS):  # Most often it has ended by itself before they reach us.
            uvicorn.Server(config).run([listener])
    finally:
        studio.easel.close()
    console.info("the studio has stopped")


def _url(host: str, port: int, token: str | None) -> str:
    """What to open; a token stands behind the #, which browsers keep to themselves."""
    name = socket.gethostname() if host in EVERYWHERE else host
    shown = f"[{name}]" if ":" in name else name
    return f"http://{shown}:{port}/" + (f"#token={quote(token)}" if token else "")
