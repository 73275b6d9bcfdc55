"""What pictures are judged by: closeness to a photo, likeness of distributions, and what a segmenter sees in them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pix2pixhd_cli.errors import P2PHDError

Picture = NDArray[np.uint8]
MOST_PSNR = 100.0  # What equal pictures count as where means are taken, in dB.
SSIM_WINDOW = 11  # Pixels; no picture may be smaller.
FEWEST = 3  # Pictures that a distribution is told from.


class Estimate(NamedTuple):
    """A value, and the standard deviation with which it was estimated."""

    value: float
    deviation: float


class Segmentation(NamedTuple):
    """accuracy: the share of pixels seen as what they are. iou: by class, of those that are there. mean_iou: its mean."""

    accuracy: float
    mean_iou: float
    iou: dict[int, float]


def psnr(fake: Picture, photo: Picture) -> float:
    """Peak signal to noise ratio in dB of two pictures, uint8 [H, W, 3]; infinite for equal ones."""
    error = np.mean((fake.astype(np.float64) - photo) ** 2)
    return float(10 * np.log10(255.0**2 / error)) if error else float("inf")


def ssim(fake: Picture, photo: Picture) -> float:
    """Structural similarity of two pictures, uint8 [H, W, 3], at least 11 pixels wide and high: the mean over their channels.

    Gaussian window of 11 pixels, sigma 1.5; K1 0.01, K2 0.03. Source: Wang et al., "Image Quality Assessment" (2004).
    """
    return float(tf.image.ssim(*(tf.constant(picture, tf.float32) for picture in (fake, photo)), max_val=255.0))


def closeness(fake: Picture, photo: Picture, distance: Callable[[Picture, Picture], float] | None) -> dict[str, float]:
    """How near a picture comes to its photo, by name: PSNR, SSIM where they are large enough for it, and `distance` if given."""
    found = {"psnr": min(MOST_PSNR, psnr(fake, photo))}
    if min(fake.shape[:2]) >= SSIM_WINDOW:
        found["ssim"] = ssim(fake, photo)
    if distance is not None:
        found["perceptual"] = distance(fake, photo)
    return found


def kernel_distance(real: NDArray[np.floating], fake: NDArray[np.floating]) -> Estimate:
    """The kernel distance (KID) of features, floats [N, D] each, of N photos and of their N fakes; 0 for one distribution.

    It is the unbiased estimate of the squared maximum mean discrepancy under the kernel (x · y / D + 1)³, which may be
    negative; its deviation is the jackknife's, leaving out a pair at a time, which is up to √2 too large where both
    distributions are the same. Source: Bińkowski et al., "Demystifying MMD GANs" (2018). Raises `P2PHDError` for fewer than
    three pairs.
    """
    count = _enough(real, fake)
    xx, yy, xy = (_cubic(a, b) for a, b in ((real, real), (fake, fake), (real, fake)))
    np.fill_diagonal(xx, 0.0)
    np.fill_diagonal(yy, 0.0)

    def estimate(within: NDArray[np.float64], across: NDArray[np.float64], n: int) -> NDArray[np.float64]:
        return within / (n * (n - 1)) - 2 * across / n**2

    own, cross = xx + yy, xy.sum(0) + xy.sum(1) - np.diag(xy)
    whole = estimate(own.sum(), xy.sum(), count)
    without = estimate(own.sum() - 2 * own.sum(0), xy.sum() - cross, count - 1)
    deviation = np.sqrt((count - 1) / count * np.sum((without - without.mean()) ** 2))
    return Estimate(float(whole), float(deviation))


def frechet_distance(real: NDArray[np.floating], fake: NDArray[np.floating]) -> float:
    """The squared Fréchet distance of two normal distributions that have the means and covariances of features, [N, D] each.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule" (2017). It is called FID only of Inception's
    features, and is biased where N is small beside D. Raises `P2PHDError` for fewer than three pairs.
    """
    _enough(real, fake)
    (mean, spread), (mean_fake, spread_fake) = (
        (features.mean(0), np.cov(features, rowvar=False)) for features in (real.astype(float), fake.astype(float))
    )
    values, vectors = np.linalg.eigh(spread)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ spread_fake @ root), 0.0)).sum()
    return float(np.sum((mean - mean_fake) ** 2) + np.trace(spread) + np.trace(spread_fake) - 2 * shared)


def confusion(truth: NDArray[np.integer], seen: NDArray[np.integer], classes: Sequence[int]) -> NDArray[np.int64]:
    """Pixels by what they are and what they are seen as, int64 [C, C + 1]; the last column is for no class of these.

    Both maps are class ids [H, W]; pixels that are none of `classes` are left out.
    """
    ids = np.sort(np.asarray(classes))
    order = np.argsort(np.asarray(classes))

    def places(ids_of: NDArray[np.integer]) -> NDArray[np.intp]:
        found = np.minimum(np.searchsorted(ids, ids_of), len(ids) - 1)
        return np.where(ids[found] == ids_of, order[found], len(ids))

    rows, columns = places(truth).ravel(), places(seen).ravel()
    wanted = rows < len(ids)
    counts = np.bincount(rows[wanted] * (len(ids) + 1) + columns[wanted], minlength=len(ids) * (len(ids) + 1))
    return counts.reshape(len(ids), len(ids) + 1)


def segmentation(counts: NDArray[np.integer], classes: Sequence[int]) -> Segmentation:
    """Pixel accuracy and intersection over union from a confusion [C, C + 1]; raises `P2PHDError` if it is empty."""
    right, there, seen = np.diag(counts), counts.sum(1), counts[:, :-1].sum(0)
    if not there.any():
        raise P2PHDError("no pixel is of a class that the segmenter knows; look at --segmenter-classes")
    iou = {
        identity: float(right[n] / (there[n] + seen[n] - right[n])) for n, identity in enumerate(classes) if there[n]
    }
    return Segmentation(float(right.sum() / there.sum()), float(np.mean(list(iou.values()))), iou)


def _enough(real: NDArray[np.floating], fake: NDArray[np.floating]) -> int:
    if len(real) != len(fake) or len(real) < FEWEST:
        raise P2PHDError(f"distributions are told from {FEWEST} pairs of pictures and more, and here are {len(real)}")
    return len(real)


def _cubic(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = (a.astype(np.float64) @ b.astype(np.float64).T / a.shape[1] + 1.0) ** 3
    return values
