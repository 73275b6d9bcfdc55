"""The run directory: settings, metrics, checkpoints, samples, and the model that later verbs load.

run/   settings.json  dataset.json  sources.json  metrics.jsonl  checkpoints/step-00001000/  model/  samples/
"""

import json
import shutil
from pathlib import Path
from typing import Any

import tensorflow as tf

from pix2pixhd_cli.data.dataset import DatasetSpec, parse_spec
from pix2pixhd_cli.data.pictures import write_text
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.model.build import Optimizers, build_model
from pix2pixhd_cli.model.layers import blank_weights
from pix2pixhd_cli.model.pix2pixhd import Pix2PixHD
from pix2pixhd_cli.settings import Settings, save_settings


class Run:
    """One training run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"
        self.model = folder / "model"
        self.features = folder / "features.npz"
        self.clusters = folder / "clusters.npz"

    def create(self, settings: Settings, spec: DatasetSpec, **sources: object) -> None:
        """Write what a run starts with; `settings.json`, which makes it a run, comes last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "dataset.json", spec.model_dump_json(indent=1) + "\n")
        self.save_sources(**sources)
        self.save_settings(settings)

    def save_settings(self, settings: Settings) -> None:
        """Keep the settings the run was made with."""
        write_text(self.folder / "settings.json", save_settings(settings))

    def save_section(self, settings: Settings, section: str) -> None:
        """Change one section of the run's settings and leave what training wrote."""
        path = self.folder / "settings.json"
        kept = json.loads(path.read_text(encoding="utf-8"))
        kept[section] = getattr(settings, section).model_dump(mode="json")
        write_text(path, json.dumps(kept, indent=1) + "\n")

    def save_sources(self, **sources: object) -> None:
        """Record where things came from, over what was recorded before: paths, checksums, names."""
        path = self.folder / "sources.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for name, source in sources.items():
            kept[name] = str(source.resolve()) if isinstance(source, Path) else source
        write_text(path, json.dumps(kept, indent=1) + "\n")

    @property
    def exists(self) -> bool:
        """Whether training has begun here."""
        return (self.folder / "settings.json").exists()

    def spec(self) -> DatasetSpec:
        """The description of the data it was trained on."""
        path = self.folder / "dataset.json"
        if not path.exists():
            raise P2PHDError(f"{self.folder}: no trained run here (dataset.json is missing)")
        return parse_spec(path.read_text(encoding="utf-8"), path)

    def packed(self) -> Path:
        """Where the packed data lay when training began."""
        path = self.source("packed")
        if not path:
            raise P2PHDError(f"{self.folder}: does not know its packed data set; name it after RUN")
        if not Path(path).exists():
            raise P2PHDError(f"{path}: the packed data set is not there any more; if it moved, name it after RUN")
        return Path(path)

    def init_from(self) -> Path | None:
        """The run that this one's networks started from, if any."""
        path = self.source("init_from")
        return Path(path) if path else None

    def source(self, name: str) -> Any:
        """What the run recorded of one of its sources, or None."""
        path = self.folder / "sources.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")).get(name)
        except (OSError, ValueError, AttributeError):
            raise P2PHDError(f"{path}: missing or damaged") from None

    def load_model(self, settings: Settings) -> Pix2PixHD:
        """Generator and encoder with their trained weights."""
        spec = self.spec()
        with blank_weights():
            model = build_model(settings, labels=spec.labels, ignored=spec.ignored, training=False)
        for name, network in model.networks.items():
            path = self.model / f"{name}.weights.h5"
            if not path.exists():
                raise P2PHDError(f"{self.folder}: has no trained model yet ({path.name} is missing); train it first")
            try:
                network.load_weights(path)
            except (OSError, ValueError, KeyError) as error:
                raise P2PHDError(
                    f"{path}: damaged, or not of this run's settings ({str(error).splitlines()[0]})"
                ) from None
        return model

    def save_model(self, model: Pix2PixHD) -> None:
        """Write what later verbs need: the weights of generator and encoder."""
        staging = self.folder / "model.partial"
        staging.mkdir(parents=True, exist_ok=True)
        self.model.mkdir(exist_ok=True)
        for name, network in model.networks.items():
            if name != "discriminator":
                path = staging / f"{name}.weights.h5"
                network.save_weights(path)
                path.replace(self.model / path.name)
        staging.rmdir()

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step-[0-9]*[0-9]"))

    def last_step(self) -> int:
        """The step of the last checkpoint; 0 without one."""
        found = self.checkpoints()
        return int(found[-1].name.removeprefix("step-")) if found else 0

    def save_checkpoint(self, state: tf.train.Checkpoint, step: int, keep: int) -> None:
        """Write a checkpoint beside its name, rename it, and delete all but the newest `keep`."""
        target = self.folder / "checkpoints" / f"step-{step:08d}"
        staging = target.with_name(f".{target.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        state.write(str(staging / "state"))
        shutil.rmtree(target, ignore_errors=True)
        staging.replace(target)
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)

    def restore_checkpoint(self, state: tf.train.Checkpoint) -> int:
        """Restore the newest checkpoint and return its step; 0, with nothing restored, if there is none."""
        step = self.last_step()
        if step:
            folder = self.checkpoints()[-1]
            try:
                state.read(str(folder / "state")).assert_consumed()
            except (AssertionError, tf.errors.OpError, ValueError) as error:
                raise P2PHDError(
                    f"{folder}: damaged, or not of this run's settings ({str(error).splitlines()[0]})"
                ) from None
        return step

    def restore_networks(self, model: Pix2PixHD) -> None:
        """Restore the networks alone from the newest checkpoint; one that it does not hold keeps its weights."""
        if not self.checkpoints():
            raise P2PHDError(f"{self.folder}: has no checkpoint to start from; train it first")
        folder = self.checkpoints()[-1]
        try:
            state = network_state(model)
            state.read(str(folder / "state")).expect_partial().assert_nontrivial_match()
        except (AssertionError, tf.errors.OpError, ValueError) as error:
            raise P2PHDError(f"{folder}: damaged, or not of its settings ({str(error).splitlines()[0]})") from None

    @property
    def has_discriminator(self) -> bool:
        """Whether the newest checkpoint holds one; an imported run may have come without."""
        found = self.checkpoints()
        return bool(found) and any(
            n.startswith("discriminator/") for n, _ in tf.train.list_variables(str(found[-1] / "state"))
        )

    def start_metrics(self, step: int) -> None:
        """Drop what was logged after `step`, so that a resumed run logs every step once."""
        if not self.metrics.exists():
            return
        lines = [line for line in self.metrics.read_text(encoding="utf-8").splitlines() if line]
        write_text(self.metrics, "".join(f"{line}\n" for line in lines if _step(line) <= step))

    def log(self, values: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def sample(self, step: int) -> Path:
        """Where the sample picture of a step goes."""
        return self.folder / "samples" / f"step-{step:08d}.png"


def checkpoint_state(model: Pix2PixHD, optimizers: Optimizers) -> tf.train.Checkpoint:
    """Everything that a training needs to go on exactly."""
    named = {
        f"{name}_optimizer": optimizer for name, optimizer in optimizers._asdict().items() if optimizer is not None
    }
    pool = {"pool": model.pool} if model.pool is not None else {}
    return tf.train.Checkpoint(**_variables(model), **named, **pool)


def network_state(model: Pix2PixHD) -> tf.train.Checkpoint:
    """The networks' weights alone."""
    return tf.train.Checkpoint(**_variables(model))


def _variables(model: Pix2PixHD) -> dict[str, list[tf.Variable]]:
    """Every network's weights as plain lists: a checkpoint does not look into the lists of layers that Keras keeps."""
    return {name: [weight.value for weight in network.weights] for name, network in model.networks.items()}


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # A line cut short is dropped.
