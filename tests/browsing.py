"""A headless Chromium for the tests of pages; where there is none, they say that they were skipped."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as engine:
        path = next(filter(None, map(shutil.which, BROWSERS)), None)
        try:
            found = engine.chromium.launch(executable_path=path)
        except Error:
            pytest.skip("there is no Chromium here: no page was opened")
        yield found
        found.close()
