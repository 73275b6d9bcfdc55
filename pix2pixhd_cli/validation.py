"""How a training fares on examples that it does not see: what is measured, which checkpoint is best, and when to stop."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from pix2pixhd_cli.data.records import PackedSplit
from pix2pixhd_cli.judges import perceptual_distance
from pix2pixhd_cli.metrics import closeness
from pix2pixhd_cli.model.perceptual import Vgg
from pix2pixhd_cli.settings import TrainSettings

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
PREFIX = "eval_"  # Of the names in metrics.jsonl.
BETTER = {"psnr": 1, "ssim": 1, "perceptual": -1}  # Whether more or less is.


class Validation:
    """The reconstructions of a held-out split during a training, and how they fared.

    Args:
        split: the held-out split.
        chosen: how many of its examples, which number decides, and how long to wait for a better one.
        vgg: the perceptual loss's network, if it is on.
    """

    def __init__(self, split: PackedSplit, chosen: TrainSettings, vgg: Vgg | None) -> None:
        self.split = split
        self.count = min(chosen.evaluate_limit, len(split))
        self.by = chosen.best_by or ("perceptual" if vgg is not None else "ssim")
        self._patience = chosen.patience
        self._distance = perceptual_distance(vgg) if vgg is not None else None
        self._best: float | None = None
        self.waited = 0  # Evaluations since the best one.

    def measure(self, pairs: Iterable[Pair]) -> dict[str, float]:
        """The means over pairs of a reconstruction and its photo, uint8 [H, W, 3] each, by name."""
        found: dict[str, list[float]] = {name: [] for name in BETTER}
        for fake, photo in pairs:
            for name, value in closeness(fake, photo, self._distance).items():
                found[name].append(value)
        return {name: float(np.mean(values)) for name, values in found.items() if values}

    def follow(self, values: dict[str, float]) -> bool:
        """Take note of an evaluation; returns whether it is the best so far."""
        score = self.score(values)
        better = self._best is None or score < self._best
        self._best, self.waited = (score, 0) if better else (self._best, self.waited + 1)
        return better

    def score(self, values: dict[str, float]) -> float:
        """What decides, as a number of which less is better."""
        return -BETTER[self.by] * values[self.by]

    @property
    def is_over(self) -> bool:
        """Whether there was no better one for as long as is waited for."""
        return bool(self._patience) and self.waited >= self._patience

    def recall(self, lines: Iterable[Mapping[str, float]]) -> None:
        """Take note of the evaluations that were logged."""
        for line in lines:
            values = {name.removeprefix(PREFIX): value for name, value in line.items() if name.startswith(PREFIX)}
            if self.by in values:
                self.follow(values)


def logged(values: dict[str, float]) -> dict[str, float]:
    """The same by their names in `metrics.jsonl`."""
    return {f"{PREFIX}{name}": value for name, value in values.items()}


def told(values: dict[str, float]) -> str:
    """The same in words."""
    names: dict[str, Callable[[float], str]] = {
        "psnr": "PSNR {:.2f} dB".format,
        "ssim": "SSIM {:.4f}".format,
        "perceptual": "perceptual distance {:.4f}".format,
    }
    return ", ".join(names[name](value) for name, value in values.items())
