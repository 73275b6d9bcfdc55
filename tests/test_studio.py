"""The studio's server: what it paints, whom it answers, and what it stands."""

import _thread
import asyncio
import base64
import io
import json
import shlex
import shutil
import socket
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pix2pixhd_cli.data.dataset import read_example, read_spec
from pix2pixhd_cli.data.pictures import read_instance_map, read_label_map
from pix2pixhd_cli.features import FeatureClusters
from pix2pixhd_cli.pipeline import studio as verb
from pix2pixhd_cli.pipeline.cluster import cluster
from pix2pixhd_cli.pipeline.encode import encode
from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.settings import load_settings
from pix2pixhd_cli.studio import guard, wire
from pix2pixhd_cli.studio.easel import MOST_WAITING, Busy, Easel, Overtaken
from tests.conftest import TINY, Command, tiny_settings
from tests.serving import serving

Scene = dict[str, Any]


@pytest.fixture(scope="module")
def url(run: Path, dataset: Path) -> Iterator[str]:
    with serving(run, dataset, max_pixels=1 << 16) as (url, _):
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def scene(client: httpx.Client) -> Scene:
    """The first scene, as a page would send it back."""
    found = client.get("/api/scenes/0").json()
    del found["warning"]
    return dict(found)


def painted(response: httpx.Response) -> tuple[dict[str, Any], np.ndarray]:
    """What the head says, and the picture."""
    assert response.status_code == 200, response.text
    head, _, pixels = response.content.partition(b"\n")
    said = json.loads(head)
    rgba = np.frombuffer(pixels, np.uint8).reshape(said["height"], said["width"], 4)
    assert (rgba[..., 3] == 255).all()
    return said, rgba[..., :3]


def paint(caller: httpx.Client, scene: Scene, **more: Any) -> httpx.Response:
    return caller.post("/api/paint", json={"client": "a", "edit": 1, **scene, **more})


def only(folder: Path) -> np.ndarray:
    (path,) = folder.glob("*.png")
    return np.asarray(Image.open(path))


# What it gives


def test_the_run_as_a_page_sees_it(client: httpx.Client, run: Path) -> None:
    info = client.get("/api/run").json()
    clusters = FeatureClusters.load(run / "clusters.npz")
    assert (info["step"], info["channels"], info["instances"]) == (6, 3, True)
    assert info["scenes"] == [f"toyville_00000{n}_000019" for n in range(3)]
    car = next(c for c in info["classes"] if c["name"] == "car")
    assert (car["id"], car["thing"], car["color"]) == (26, True, [0, 0, 142])
    assert [style["name"] for style in car["styles"]] == list(clusters.classes[26].names)
    np.testing.assert_array_equal(
        np.array([style["code"] for style in car["styles"]], np.float32), clusters.classes[26].centres
    )
    assert all(style["pictured"] for style in car["styles"])


def test_swatches_are_pictures(client: httpx.Client) -> None:
    response = client.get("/api/swatches/26/0")
    assert response.headers["content-type"] == "image/png"
    assert min(Image.open(io.BytesIO(response.content)).size) >= 32
    assert client.get("/api/swatches/26/99").status_code == 404
    assert client.get("/api/swatches/3/0").status_code == 404


def test_scenes_are_the_data_sets(client: httpx.Client, dataset: Path, scene: Scene) -> None:
    spec = read_spec(dataset)
    example = read_example(dataset, spec, "val", spec.entries("val")[0])
    label, instance = wire.Maps.model_validate({k: scene[k] for k in ("height", "width", "objects", "map")}).arrays(
        4096
    )
    np.testing.assert_array_equal(label, example.label)
    np.testing.assert_array_equal(instance, example.instance)
    assert client.get("/api/scenes/3").status_code == 404


def test_an_empty_canvas_is_all_of_the_commonest_class(client: httpx.Client) -> None:
    blank = client.get("/api/scenes/blank").json()
    assert (blank["height"], blank["width"], blank["objects"]) == (32, 64, [[11, 11]])


def test_it_paints_what_generate_paints(
    client: httpx.Client, p2phd: Command, run: Path, dataset: Path, scene: Scene, tmp_path: Path
) -> None:
    styles = ["road=asphalt", "instance:26000=0.1,-0.4,0.9"]
    head, picture = painted(paint(client, scene, styles=styles, seed=3))
    assert head["edit"] == 1
    assert head["codes"]["26000"] == [0.1, -0.4, 0.9]
    chosen = [part for text in styles for part in ("--feature-code", text)]
    p2phd("generate", run, dataset, tmp_path / "out", "--limit", 1, "--seed", 3, *chosen)
    np.testing.assert_array_equal(picture, only(tmp_path / "out"))


def test_a_saved_scene_is_the_same_picture(
    client: httpx.Client, p2phd: Command, run: Path, scene: Scene, tmp_path: Path
) -> None:
    body = {**scene, "styles": ["car=red", "road=1"], "locked": ["road"], "seed": 12}
    _, picture = painted(paint(client, body))
    (tmp_path / "mine.p2phd").write_bytes(client.post("/api/save", json=body).content)
    p2phd("generate", run, tmp_path / "mine.p2phd", tmp_path / "out")
    np.testing.assert_array_equal(picture, only(tmp_path / "out"))
    file = base64.b64encode((tmp_path / "mine.p2phd").read_bytes()).decode()
    back = client.post("/api/open", json={"file": file}).json()
    assert back == {**body, "warning": ""}


def test_an_export_is_a_prepared_example_and_its_command(
    client: httpx.Client, p2phd: Command, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {**scene, "stem": "a street", "styles": ["car=red"], "seed": 5}
    _, picture = painted(paint(client, body))
    with zipfile.ZipFile(io.BytesIO(client.post("/api/export", json=body).content)) as archive:
        archive.extractall(tmp_path)
    street = tmp_path / "a street"
    np.testing.assert_array_equal(np.asarray(Image.open(street / "picture.png")), picture)
    label, instance = wire.Maps.model_validate({k: scene[k] for k in ("height", "width", "objects", "map")}).arrays(
        4096
    )
    np.testing.assert_array_equal(read_label_map(street / "dataset/val/label/a street.png"), label)
    np.testing.assert_array_equal(read_instance_map(street / "dataset/val/instance/a street.png"), instance)
    command = (street / "command.txt").read_text().strip()
    assert command == client.post("/api/command", json={k: body[k] for k in ("stem", "seed", "styles")}).json()["maps"]
    monkeypatch.chdir(tmp_path)
    assert p2phd(*shlex.split(command)[1:]).code == 0
    np.testing.assert_array_equal(only(tmp_path / "pictures"), picture)


def test_a_photos_codes_reconstruct_it(client: httpx.Client, dataset: Path, run: Path, scene: Scene) -> None:
    """Codes from a dropped photo are those that the encoder finds in it."""
    from pix2pixhd_cli.painting import Painter

    spec = read_spec(dataset)
    example = read_example(dataset, spec, "val", spec.entries("val")[0])
    assert example.photo is not None
    maps = {key: scene[key] for key in ("height", "width", "objects", "map")}
    codes = client.post("/api/encode", json={**maps, "photo": wire.pack(example.photo)}).json()["codes"]
    found = Painter(run).encode(example.photo, example.instance)
    assert set(codes) == {str(i) for i in found.ids}
    for identity, code in zip(found.ids, found.codes, strict=True):
        np.testing.assert_array_equal(np.array(codes[str(identity)], np.float32), code.astype(np.float32))


def test_a_run_without_an_encoder_has_no_styles(packed: Path, dataset: Path, tmp_path: Path) -> None:
    train(packed, tmp_path / "plain", tiny_settings(encoder={"enabled": False}))
    with serving(tmp_path / "plain", dataset) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/api/run").json()["channels"] == 0
        scene = client.get("/api/scenes/0").json()
        del scene["warning"]
        head, picture = painted(paint(client, scene))
        assert (head["codes"], picture.shape) == ({}, (32, 64, 3))
        assert "without an encoder" in paint(client, scene, styles=["car=mean"]).json()["detail"]
        maps = {key: scene[key] for key in ("height", "width", "objects", "map")}
        refused = client.post("/api/encode", json={**maps, "photo": wire.pack(np.zeros((32, 64, 3), np.uint8))})
        assert refused.status_code == 400 and "without an encoder" in refused.json()["detail"]
        saved = client.post("/api/save", json=scene)
        file = base64.b64encode(saved.content).decode()
        assert client.post("/api/open", json={"file": file}).json()["map"] == scene["map"]


def test_a_run_that_pools_by_label_has_a_code_per_class(packed: Path, dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "pooled"
    train(packed, run, tiny_settings(encoder={**TINY["encoder"], "pooling": "label"}))
    encode(run)
    cluster(run)
    with serving(run, dataset) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/api/run").json()["pooled_by_label"]
        scene = client.get("/api/scenes/0").json()
        del scene["warning"]
        head, _ = painted(paint(client, scene, styles=["car=0.1,0.2,0.3"]))
        assert set(head["codes"]) == {"7", "8", "11", "23", "26"} and head["codes"]["26"] == [0.1, 0.2, 0.3]


def test_a_scene_keeps_its_codes_whatever_styles_are_called_now(
    client: httpx.Client, run: Path, scene: Scene, tmp_path: Path
) -> None:
    body = {**scene, "styles": ["car=red", "road=1"], "seed": 12}
    head, picture = painted(paint(client, body))
    file = base64.b64encode(client.post("/api/save", json=body).content).decode()
    renamed = shutil.copytree(run, tmp_path / "renamed")
    cluster(renamed, settings=load_settings({"cluster": {"clusters": 2}}, run=renamed), names=["car:0=blue"])
    with serving(renamed, None, seed=4) as (other, _), httpx.Client(base_url=other, timeout=60) as there:
        back = there.post("/api/open", json={"file": file}).json()
        assert back.pop("warning") == "" and back["seed"] == 12
        again, same = painted(paint(there, back))
        assert again["codes"] == head["codes"]
        np.testing.assert_array_equal(same, picture)
        assert there.get("/api/scenes/blank").json()["seed"] == 4


# Whom it answers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example:80"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"host": "localhost@evil.example"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"host": "localhost:5"}, 200),
        ({"host": "[::1]:5"}, 200),
    ],
)
def test_other_pages_do_not_drive_it(client: httpx.Client, headers: dict[str, str], status: int) -> None:
    for path in ("/api/run", "/api/scenes/0"):
        assert client.get(path, headers=headers).status_code == status


def test_its_own_page_does(client: httpx.Client, url: str, scene: Scene) -> None:
    own = {"origin": url, "sec-fetch-site": "same-origin"}
    body = {"client": "a", "edit": 1, **scene}
    assert client.post("/api/paint", json=body, headers=own).status_code == 200


def test_every_answer_forbids_what_the_page_does_not_need(client: httpx.Client) -> None:
    for path in ("/", "/studio.js", "/api/run", "/api/scenes/99", "/nothing"):
        headers = client.get(path).headers
        assert {name: headers[name] for name in guard.HEADERS} == guard.HEADERS


@pytest.mark.parametrize(
    "path", ["/../app.py", "/..%2fapp.py", "/%2e%2e/app.py", "//etc/passwd", "/index.html/../../easel.py"]
)
def test_only_the_pages_files_are_served(url: str, path: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as plain:
        plain.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert b" 404 " in plain.recv(4096).split(b"\r\n")[0]


def test_a_token_is_asked_for(run: Path) -> None:
    with serving(run, None, token="let-me-in") as (url, _), httpx.Client(base_url=url) as client:
        assert client.get("/").status_code == 200
        for given in ({}, {"authorization": "Bearer let-me-out"}, {"authorization": "let-me-i"}):
            assert client.get("/api/run", headers=given).status_code == 401
            assert client.post("/api/paint", json={}, headers=given).status_code == 401
        assert client.get("/api/run", headers={"authorization": "Bearer let-me-in"}).status_code == 200


def test_served_everywhere_it_goes_by_every_address_but_no_other_name() -> None:
    open_to_all = guard.Guard(lambda *_: asyncio.sleep(0), hosts=guard.LOOPBACK, any_address=True, token="t", most=1)
    for host, fine in (("192.168.0.7:80", True), ("[fe80::1]:80", True), ("rebound.example", False)):
        try:
            open_to_all._check("/", {"host": host})
        except guard._Refused:
            assert not fine
        else:
            assert fine


# What it refuses


def inflated(size: int) -> str:
    return base64.b64encode(zlib.compress(bytes(size))).decode()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"map": "no base64!"}, "packed bytes"),
        ({"map": base64.b64encode(b"not deflated").decode()}, "packed bytes"),
        ({"map": inflated(10)}, "fewer than the 4096 bytes"),
        ({"map": inflated(1 << 26)}, "more than the 4096 bytes"),
        ({"map": wire.pack(np.full(2048, 999, "<u2"))}, "map: holds 999"),
        ({"objects": [[77, 77]], "map": wire.pack(np.zeros(2048, "<u2"))}, "id 77 at row 0, column 0 is no class"),
        ({"height": 4096, "width": 4096}, "more than 65,536 pixels"),
        ({"styles": ["car=pink"]}, "there is no style 'pink'"),
        ({"styles": ["car=photo"]}, "and not `photo`"),
        ({"styles": ["nonsense"]}, "write TARGET=CHOICE"),
    ],
)
def test_what_cannot_be_painted_is_told(client: httpx.Client, scene: Scene, changed: Scene, said: str) -> None:
    response = paint(client, scene, **changed)
    assert response.status_code == 400 and said in response.json()["detail"]


def test_a_damaged_scene_file_is_told_of(client: httpx.Client) -> None:
    for file in ("", "AAAA", base64.b64encode(b"PK\x03\x04" + bytes(100)).decode(), "no base64"):
        response = client.post("/api/open", json={"file": file})
        assert response.status_code == 400 and "/tmp" not in response.text


def test_bodies_are_bounded(client: httpx.Client, url: str) -> None:
    most = 8 * (1 << 16) + (1 << 20)
    response = client.post("/api/open", json={"file": "A" * most})
    assert response.status_code == 413

    def endless() -> Iterator[bytes]:
        yield b"{"

    assert client.post("/api/open", content=endless()).status_code == 411
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as plain:
        plain.sendall(f"POST /api/open HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999999999\r\n\r\n".encode())
        assert b" 413 " in plain.recv(4096).split(b"\r\n")[0]


# What it stands


def test_twenty_pages_at_once(url: str, scene: Scene) -> None:
    """Every page gets its own picture; of its requests, the newest."""

    def page(number: int) -> tuple[int, list[int]]:
        with httpx.Client(base_url=url, timeout=60) as client:
            statuses = []
            for edit in range(4):
                response = paint(client, scene, client=f"page-{number}", edit=edit, seed=number)
                statuses.append(response.status_code)
            return painted(response)[0]["edit"], statuses

    with ThreadPoolExecutor(20) as pool:
        for newest, statuses in pool.map(page, range(20)):
            assert newest == 3 and set(statuses) == {200}


def test_a_flood_leaves_the_newest(url: str, scene: Scene) -> None:
    def ask(edit: int) -> int:
        with httpx.Client(base_url=url, timeout=60) as client:
            return paint(client, scene, client="flood", edit=edit).status_code

    with ThreadPoolExecutor(32) as pool:
        statuses = list(pool.map(ask, range(60)))
    assert statuses[-1] == 200 and set(statuses) <= {200, 204}


def test_clients_that_vanish_and_garbage_leave_it_answering(url: str, client: httpx.Client, scene: Scene) -> None:
    host, port = url.removeprefix("http://").split(":")
    whole = json.dumps({"client": "a", "edit": 1, **scene}).encode()
    head = f"POST /api/paint HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(whole)}\r\n\r\n"
    for sent in (
        b"",
        b"\x00\xff" * 500,
        head.encode(),
        head.encode() + whole[:-5],
        head.encode() + whole,
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        for _ in range(5):
            with socket.create_connection((host, int(port)), 10) as plain:
                plain.sendall(sent)
    assert paint(client, scene, client="after").status_code == 200


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_the_api_keeps_to_its_schema(url: str, mode: schemathesis.GenerationMode) -> None:
    """Whatever a fuzzer makes of the schema, or against it, every answer is one that the schema has, and none is a crash."""
    schema = schemathesis.openapi.from_url(f"{url}/api/openapi.json")
    seen: set[str] = set()

    @given(case=schema.as_strategy(generation_mode=mode))
    @settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def call(case: Any) -> None:
        seen.add(case.operation.label)
        # What a packed map holds is beyond a schema: most that fit it cannot be painted.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    call()
    assert {"POST /api/paint", "POST /api/encode", "POST /api/open", "POST /api/save", "POST /api/export"} <= seen


# The model's turn


def test_newer_requests_take_the_place_of_older_ones() -> None:
    async def play() -> list[Any]:
        easel, order = Easel(), []
        gate = threading.Event()

        def work(name: str) -> str:
            gate.wait(10)
            order.append(name)
            return name

        first = asyncio.create_task(easel.work("a", 0, lambda: work("a0")))
        await asyncio.sleep(0.05)
        tasks = [
            asyncio.create_task(easel.work(client, edit, lambda n=f"{client}{edit}": work(n)))  # type: ignore[misc]
            for client, edit in (("a", 1), ("b", 0), ("a", 2), ("b", 2), ("b", 1))
        ]
        await asyncio.sleep(0.05)
        gate.set()
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
        easel.close()
        return [order, [r if isinstance(r, str) else type(r) for r in results]]

    order, results = asyncio.run(play())
    assert order == ["a0", "a2", "b2"]
    assert results == ["a0", Overtaken, Overtaken, "a2", "b2", Overtaken]


def test_few_wait_and_those_that_leave_make_room() -> None:
    async def play() -> str:
        easel, gate = Easel(), threading.Event()
        first = asyncio.create_task(easel.work("first", 0, lambda: gate.wait(10)))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(easel.work(f"c{n}", 0, lambda: None)) for n in range(MOST_WAITING)]
        await asyncio.sleep(0.05)
        with pytest.raises(Busy):
            await easel.work("late", 0, lambda: None)
        waiting[0].cancel()
        await asyncio.sleep(0.05)
        late = asyncio.create_task(easel.work("late", 0, lambda: "late"))
        first.cancel()  # Its work goes on, and nobody gets the model before it ends.
        await asyncio.sleep(0.05)
        assert not late.done()
        gate.set()
        found = await asyncio.wait_for(late, 10)
        easel.close()
        return found

    assert asyncio.run(play()) == "late"


# The verb


def test_the_extra_is_named_where_it_is_missing(p2phd: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "find_spec", lambda _: None)
    outcome = p2phd("studio", run)
    assert (outcome.code, outcome.err) == (
        1,
        "error: the studio needs its extra: pip install 'pix2pixhd_cli[studio]'\n",
    )


def test_a_port_that_is_taken(p2phd: Command, run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        outcome = p2phd("studio", run, "--no-open", "--port", taken.getsockname()[1])
    assert outcome.code == 2 and "Address already in use; name another --port" in outcome.err


def test_it_prints_where_it_is_and_stops(
    run: Path, dataset: Path, p2phd: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def look(url: str) -> None:
        opened.append(url)

        def stop() -> None:
            with httpx.Client(base_url=url.split("#")[0], timeout=30) as client:
                while True:
                    try:
                        opened.append(str(client.get("/api/run").status_code))
                        break
                    except httpx.ConnectError:
                        time.sleep(0.05)
            _thread.interrupt_main()

        threading.Thread(target=stop, daemon=True).start()

    monkeypatch.setattr("webbrowser.open", look)
    outcome = p2phd("studio", run, dataset, "--port", 0, "--host", "0.0.0.0")
    assert opened[1] == "401" and "#token=" in opened[0]
    assert opened[0] in outcome.out and outcome.out.endswith("the studio has stopped\n")
    assert (outcome.code, outcome.err) == (0, "")
