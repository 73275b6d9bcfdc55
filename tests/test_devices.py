"""Several devices and several workers: the same training, and clear words when something is missing."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from pix2pixhd_cli.devices import take_devices
from pix2pixhd_cli.errors import P2PHDError, SettingsError
from pix2pixhd_cli.meeting import Cluster, meet, read_cluster
from pix2pixhd_cli.pipeline import train as train_module
from pix2pixhd_cli.pipeline.train import train
from pix2pixhd_cli.settings import load_settings, save_settings
from tests.conftest import Command
from tests.test_equality import same_training, settings
from tests.test_training import arrays, metrics, same_run

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "examples" / "cluster"
sys.path.insert(0, str(CLUSTER))

from local import free_addresses, start  # noqa: E402

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": "1"}
NETWORKS: dict[str, dict[str, object]] = {
    "generator": {"filters": 4, "downsamplings": 2, "blocks": 1},
    "discriminator": {"filters": 4, "layers": 2, "scales": 2},
    "encoder": {"filters": 4, "downsamplings": 2},
    "loss": {"reconstruction": 1.0},
}
TRAINED: dict[str, object] = {"decay_epochs": 0, "sample_every": 100, "log_every": 1, "report": False}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)


# Several devices.

ON_TWO: dict[str, dict[str, object]] = {
    "two": {"batch_size": 1, "epochs": 7},
    "twice two": {"batch_size": 1, "accumulate": 2, "epochs": 2},
    "odd": {"batch_size": 2, "epochs": 2, "ema": 0.9},  # Of six examples, four to a step: the last holds two, one idle.
    "half": {"batch_size": 1, "epochs": 2, "precision": "mixed_float16"},
    "pool": {"batch_size": 1, "epochs": 1, "pool_size": 2},
    "lost": {"batch_size": 1, "epochs": 9, "learning_rate": 1e30},
}


@pytest.fixture(scope="module")
def on_two(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("devices")
    asked = {
        name: {**NETWORKS, "train": {**TRAINED, "devices": "2", "checkpoint_every": 100, **chosen}}
        for name, chosen in ON_TWO.items()
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.on_devices", "2", packed, folder],
        input=json.dumps(asked), env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return folder, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("two", {"batch_size": 2, "epochs": 7}),
        ("twice two", {"batch_size": 4, "epochs": 2}),
        ("odd", {"batch_size": 4, "epochs": 2, "ema": 0.9}),
        ("half", {"batch_size": 2, "epochs": 2, "precision": "mixed_float16"}),
    ],
)
def test_two_devices_are_one_with_a_larger_batch(
    packed: Path, on_two: tuple[Path, str], tmp_path: Path, name: str, chosen: dict[str, object]
) -> None:
    train(packed, tmp_path / "run", settings(**chosen))
    if name != "half":
        same_training(on_two[0] / name, tmp_path / "run", packed)
        return
    ours, theirs = metrics(on_two[0] / name), metrics(tmp_path / "run")
    assert [line["g_feat"] for line in ours] == pytest.approx([line["g_feat"] for line in theirs], rel=2e-2)
    assert "loss_scale" in ours[-1]


def test_losses_that_are_no_numbers_are_named_on_several_devices(on_two: tuple[Path, str]) -> None:
    assert re.search(r"error: step \d: [gd]_\w+ is (nan|-?inf), on \w+, \w+; nothing was saved", on_two[1])
    assert "Traceback" not in on_two[1]


def test_devices_are_shown_and_a_pool_is_refused(on_two: tuple[Path, str]) -> None:
    assert "2 devices in all" in on_two[1] and "device: CPU:0, CPU:1" in on_two[1]
    assert "--pool-size: a history of fakes is kept on one device" in on_two[1]


def test_a_run_goes_on_with_other_devices(packed: Path, on_two: tuple[Path, str]) -> None:
    run = on_two[0] / "two"
    with pytest.raises(SettingsError, match="trained with 2 examples a step"):
        train(packed, run, settings(batch_size=1, epochs=8), resume=True)
    train(packed, run, settings(batch_size=2, epochs=8), resume=True)
    assert metrics(run)[-1]["step"] == 24
    assert load_settings(run=run).train.devices == "auto"


def test_devices_that_are_not_there_are_refused(p2phd: Command, packed: Path, tmp_path: Path) -> None:
    for count in (1, 3):
        outcome = p2phd("train", packed, tmp_path / "run", "--devices", count)
        assert outcome.code == 2
        assert outcome.err == f"error: --devices {count}: there are no GPUs here; leave it out to work on the CPU\n"
    outcome = p2phd("train", packed, tmp_path / "run", "--devices", "gpu")
    assert outcome.code == 2 and "'gpu' is not auto, cpu or a number of GPUs" in outcome.err
    assert not (tmp_path / "run").exists()
    assert take_devices("cpu").devices == ("CPU:0",)


# Several workers.


class Workers:
    """Two workers that train, with what they say."""

    def __init__(self, packed: Path, run: Path, *flags: object, second: tuple[object, ...] = ()) -> None:
        config = run.with_name("settings.toml")
        config.write_text(toml({**NETWORKS, "train": {**TRAINED, "batch_size": 1, "epochs": 7, "checkpoint_every": 2}}))
        command = [sys.executable, "-m", "pix2pixhd_cli", "train", packed, run, "--config", config, *flags]
        addresses = free_addresses(2)
        commands = [[str(word) for word in (*command, *more)] for more in ((), second)]
        with pytest.MonkeyPatch.context() as patch:
            for name in ("PYTHONPATH", "TF_NUM_INTRAOP_THREADS"):
                patch.setenv(name, ENVIRONMENT[name])
            self.processes = [start(commands[n], addresses, n) for n in range(2)]

    def wait(self, seconds: float = 120) -> list[tuple[int, str]]:
        """Each one's exit code and what it printed."""
        found = []
        for process in self.processes:
            said = process.communicate(timeout=seconds)[0]
            found.append((process.returncode, said))
        return found


def toml(sections: dict[str, dict[str, object]]) -> str:
    lines = []
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines)


@pytest.fixture
def stopping() -> Iterator[list[Workers]]:
    """Workers that no test may leave behind."""
    started: list[Workers] = []
    yield started
    for workers in started:
        for process in workers.processes:
            process.kill()


def wait_for_step(run: Path, step: int, workers: Workers) -> None:
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / f"step-{step:08d}").exists():
        if time.monotonic() > deadline or workers.processes[0].poll() is not None:
            pytest.fail(f"step {step} was not reached: {workers.wait()}")
        time.sleep(0.02)


@pytest.fixture(scope="module")
def by_two(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str]]]:
    run = tmp_path_factory.mktemp("workers") / "run"
    return run, Workers(packed, run).wait()


def test_two_workers_are_one_with_a_larger_batch(
    packed: Path, by_two: tuple[Path, list[tuple[int, str]]], tmp_path: Path
) -> None:
    run, said = by_two
    assert [code for code, _ in said] == [0, 0], said
    assert "worker 1 of 2, the chief, with 1 device, 2 devices in all" in said[0][1]
    assert "worker 2 of 2 with 1 device" in said[1][1]
    train(packed, tmp_path / "run", settings(batch_size=2, epochs=7))
    same_training(run, tmp_path / "run", packed)


def test_workers_that_are_stopped_or_killed_end_where_they_would_have(
    packed: Path, by_two: tuple[Path, list[tuple[int, str]]], tmp_path: Path, stopping: list[Workers]
) -> None:
    run = tmp_path / "run"

    def begin(*flags: object) -> Workers:
        stopping.append(Workers(packed, run, *flags))
        return stopping[-1]

    workers = begin()
    wait_for_step(run, 4, workers)
    workers.processes[1].send_signal(signal.SIGTERM)
    for code, said in workers.wait():
        assert code == 143 and re.search(r"stopped and saved at step \d+ of 21; go on with", said), said
    for step, victim in ((8, 1), (14, 0)):
        workers = begin("--resume")
        wait_for_step(run, step, workers)
        workers.processes[victim].kill()
        struck = time.monotonic()
        code, said = workers.wait(60)[1 - victim]
        assert code == 1 and "error: another worker stopped or cannot be reached" in said, said
        assert "Traceback" not in said and time.monotonic() - struck < 60
    assert [code for code, _ in begin("--resume").wait()] == [0, 0]
    assert metrics(run) == metrics(by_two[0])
    ours, theirs = arrays(run), arrays(by_two[0])
    assert ours["model/weights.npz"] == theirs["model/weights.npz"]
    assert ours["checkpoints/step-00000021/training.npz"] == theirs["checkpoints/step-00000021/training.npz"]
    same = {name for name in ours if name in theirs}
    assert all(ours[name] == theirs[name] for name in same)


def test_workers_that_disagree_are_refused(packed: Path, tmp_path: Path, stopping: list[Workers]) -> None:
    stopping.append(Workers(packed, tmp_path / "run", second=("--generator-filters", 8)))
    for code, said in stopping[-1].wait():
        assert code == 1 and re.search(
            r"error: worker 2 at 127.0.0.1:\d+ has --generator-filters 8, and the chief 4; start", said
        ), said
        assert "Traceback" not in said
    assert not (tmp_path / "run" / "settings.json").exists()


TERMS = {"p2phd": "1", "data with checksum": "a", "--epochs": "7"}


def meeting(*terms: dict[str, str] | None, seconds: float = 10) -> list[str]:
    """What each worker hears that comes with its terms, or comes with the chief's and leaves at once."""
    cluster = tuple(free_addresses(len(terms)))
    heard = [""] * len(terms)

    def come(number: int) -> None:
        try:
            meet(Cluster(cluster, number), terms[number] or TERMS, time.monotonic() + seconds)
        except P2PHDError as error:
            heard[number] = str(error)

    chief = threading.Thread(target=come, args=(0,))
    chief.start()
    for number in (n for n, of_one in enumerate(terms) if of_one is None):
        call(cluster[0], {"cluster": cluster, "index": number, "terms": TERMS})
    workers = [threading.Thread(target=come, args=(n,)) for n, of_one in enumerate(terms) if n and of_one is not None]
    for worker in workers:
        worker.start()
    for one in (chief, *workers):
        one.join()
    return heard


def call(address: str, said: object) -> None:
    """Say something to the chief, once it listens, and leave."""
    host, _, port = address.rpartition(":")
    while True:
        with suppress(ConnectionRefusedError), socket.create_connection((host, int(port))) as line:
            line.sendall(json.dumps(said).encode() + b"\n")
            return


def test_workers_that_agree_meet() -> None:
    assert meeting(TERMS, TERMS, TERMS) == ["", "", ""]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"--epochs": "8"}, "has --epochs 8, and the chief 7; start all workers with the same command"),
        ({"data with checksum": "b", "--epochs": "8"}, "has data with checksum b, and the chief a"),
        ({"more": "1"}, "has more 1, and the chief unknown"),
    ],
)
def test_the_first_difference_is_told_to_all(changed: dict[str, str], words: str) -> None:
    heard = meeting(TERMS, TERMS, TERMS | changed)
    assert len(set(heard)) == 1 and heard[0].startswith("worker 3 at 127.0.0.1:") and words in heard[0]


def test_who_came_and_left_is_missed_and_may_come_again() -> None:
    chief, second, third = meeting(TERMS, TERMS, None, seconds=1.5)
    assert "no worker came from 127.0.0.1:" in chief and chief.count("127.0.0.1") == 1
    assert "the chief at" in second and not third


@pytest.mark.parametrize("said", [None, 7, {}, {"cluster": 1}, {"cluster": [], "index": 1, "terms": {}}])
def test_strangers_do_not_disturb_the_meeting(said: object) -> None:
    cluster = tuple(free_addresses(2))
    workers = [threading.Thread(target=meet, args=(Cluster(cluster, n), TERMS, time.monotonic() + 20)) for n in (0, 1)]
    workers[0].start()
    call(cluster[0], said)
    if said == {}:
        for index in (0, 2, "x", None):
            call(cluster[0], {"cluster": cluster, "index": index, "terms": TERMS})
    workers[1].start()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


@pytest.mark.parametrize("answer", [b"7\n", b"{}\n", b'"x"\n', b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_stranger_at_the_chiefs_address_is_no_chief(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        cluster = (f"127.0.0.1:{server.getsockname()[1]}", *free_addresses(1))

        def reply() -> None:
            with suppress(OSError):
                while True:
                    with server.accept()[0] as line:
                        line.recv(4096)
                        line.sendall(answer)

        threading.Thread(target=reply, daemon=True).start()
        with pytest.raises(P2PHDError, match=f"the chief at {cluster[0]} cannot be reached"):
            meet(Cluster(cluster, 1), TERMS, time.monotonic() + 1)


def test_what_workers_must_have_alike(packed: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So much that none trains from other weights, or only pretends to."""
    heard: list[dict[str, str]] = []

    def stop(*arguments: Any) -> None:
        heard.append(arguments[-1])
        raise P2PHDError("enough")

    monkeypatch.setattr(train_module, "gather_team", stop)
    copy = shutil.copytree(run, tmp_path / "copy")
    cases: list[dict[str, Any]] = [{}, {"dry_run": True}, {"init_from": run}, {"init_from": copy}]
    for keywords in cases:
        with pytest.raises(P2PHDError, match="enough"):
            train(packed, tmp_path / "new", load_settings(run=run), **keywords)
    plain, dry, *started = heard
    assert {name for name in plain if plain[name] != dry[name]} == {"--dry-run"}
    assert {name for name in plain if plain[name] != started[0][name]} == {"--init-from with checksum"}
    assert started[0] == started[1]


def test_a_worker_that_is_lost_while_tensorflow_waits_is_told() -> None:
    """TensorFlow holds the interpreter while it waits, as does a sleep in C."""
    code = "import ctypes\nfrom pix2pixhd_cli import devices\nwith devices._watched(0.2): ctypes.PyDLL(None).sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: another worker stopped or cannot be reached")


def test_workers_that_do_not_come_are_named(
    p2phd: Command, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, nowhere = free_addresses(2)
    for number, expected in ((0, f"no worker came from {nowhere}"), (1, f"the chief at {here} cannot be reached")):
        addresses = [here, nowhere]
        task = {"type": "worker", "index": number}
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": addresses}, "task": task}))
        outcome = p2phd("train", packed, tmp_path / "run", "--join-minutes", 0.02)
        assert outcome.code == 1 and f"error: TF_CONFIG: {expected}" in outcome.err, outcome.err
    monkeypatch.setenv(
        "TF_CONFIG", json.dumps({"cluster": {"worker": ["192.0.2.1:1", "no.such.host.invalid:2"]}, "task": task})
    )
    outcome = p2phd("train", packed, tmp_path / "run", "--join-minutes", 0.02)
    assert outcome.code == 1 and "no.such.host.invalid:2 cannot be used by this worker" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not of the form"),
        ("[]", "is not of the form"),
        ('{"cluster": {"worker": ["a:1"]}}', "is not of the form"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "x"}}', "is not of the form"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1e999}}', "is not of the form"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "'a' is not HOST:PORT"),
        ('{"cluster": {"worker": ["a:0"]}, "task": {"type": "worker", "index": 0}}', "with a port from 1 to 65535"),
        ('{"cluster": {"worker": ["a:65536"]}, "task": {"type": "worker", "index": 0}}', "'a:65536' is not HOST:PORT"),
        ('{"cluster": {"worker": ["a..b:1"]}, "task": {"type": "worker", "index": 0}}', "'a..b:1' is not HOST:PORT"),
        (
            '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
            "two workers have one address",
        ),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "there is no worker 1"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}', "there is no chief 0"),
        ('{"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}', "more than one chief"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}', "no use for ps"),
    ],
)
def test_clusters_that_are_none(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"TF_CONFIG: .*{message}"):
        read_cluster(text)


def test_clusters() -> None:
    assert read_cluster(None) is None and read_cluster("") is None
    text = '{"cluster": {"chief": ["c:1"], "worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}'
    assert read_cluster(text) == Cluster(("c:1", "a:1", "b:2"), 2)


def test_a_cluster_of_one_is_no_cluster(
    packed: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}')
    train(packed, tmp_path / "run", load_settings(run=run))
    same_run(tmp_path / "run", run)
    assert save_settings(load_settings(run=run)) == save_settings(load_settings(run=tmp_path / "run"))


# Examples.


def test_the_local_script_runs_two_workers(
    packed: Path, by_two: tuple[Path, list[tuple[int, str]]], tmp_path: Path
) -> None:
    """As README has it; of a run at a URL, the chief alone has a copy."""
    run, config = tmp_path / "run", by_two[0].with_name("settings.toml")
    train_command: list[str | Path] = [sys.executable, "-m", "pix2pixhd_cli", "train", packed, f"file://{run}"]
    done = subprocess.run(
        [sys.executable, CLUSTER / "local.py", "2", *train_command, "--config", config, "--epochs", "2"],
        env={**ENVIRONMENT, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[0] worker 1 of 2" in done.stdout and "[1] worker 2 of 2" in done.stdout
    assert metrics(run)[:6] == metrics(by_two[0])[:6]


def stub(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_slurm_script_names_every_worker_and_comes_back(tmp_path: Path) -> None:
    stub(tmp_path / "bin", "scontrol", 'if [ "$1" = show ]; then echo a1; echo a2; else echo "$@"; fi')
    stub(tmp_path / "bin", "srun", 'shift; for n in 0 1; do SLURM_PROCID=$n "$@" || code=$?; done; exit "${code:-0}"')
    stub(tmp_path / "bin", "p2phd", 'echo "$TF_CONFIG|$*|$SRUN_CPUS_PER_TASK"; exit 143')
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "P2PHD_CLUSTER": str(CLUSTER)}
    environment |= {
        "SLURM_JOB_NODELIST": "a[1-2]",
        "SLURM_JOB_ID": "77",
        "SLURM_SUBMIT_DIR": "/",
        "SLURM_CPUS_PER_TASK": "32",
    }
    done = subprocess.run(
        ["bash", CLUSTER / "slurm.sh", "packed", "my run"], env=environment, capture_output=True, text=True, check=False
    )
    *workers, last = done.stdout.splitlines()
    assert done.returncode == 143 and last == "requeue 77", done
    for number, line in enumerate(workers):
        text, arguments, cores = line.split("|")
        assert read_cluster(text) == Cluster(("a1:2222", "a2:2222"), number)
        assert (arguments, cores) == ("train packed my run --resume", "32")
    assert len(workers) == 2


def test_the_kubernetes_job_names_every_worker(tmp_path: Path) -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    template = job["spec"]["template"]["spec"]
    container = template["containers"][0]
    assert service["metadata"]["name"] == template["subdomain"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(container["env"][0]["value"])
    stub(tmp_path / "bin", "p2phd", 'echo "$TF_CONFIG"')
    for number in range(2):
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "WORKERS": "2",
            "JOB_COMPLETION_INDEX": str(number),
        }
        done = subprocess.run(
            [*container["command"], *container["args"]], env=environment, capture_output=True, text=True, check=True
        )
        assert read_cluster(done.stdout) == Cluster(("p2phd-0.p2phd:2222", "p2phd-1.p2phd:2222"), number)
