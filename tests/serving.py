"""A studio that serves in a thread, for the tests that call it or open its page."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from pix2pixhd_cli.pipeline.studio import guarded, listening, make_studio
from pix2pixhd_cli.settings import StudioSettings, load_settings
from pix2pixhd_cli.studio.app import Studio, make_app


@contextmanager
def serving(run: Path, labels: Path | None, token: str | None = None, **settings: Any) -> Iterator[tuple[str, Studio]]:
    """Yield its URL, without a slash at the end, and the studio."""
    chosen = StudioSettings(port=0, open=False, **settings)
    studio = make_studio(run, labels, load_settings({"studio": chosen.model_dump()}, run=run))
    with listening(chosen) as listener:
        config = uvicorn.Config(
            guarded(make_app(studio), chosen, token), log_level="critical", lifespan="off", ws="none"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", studio
        finally:
            server.should_exit = True
            thread.join(10)
            studio.easel.close()
