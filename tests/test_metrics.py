"""The measures of pictures, against scikit-image and slow restatements."""

import itertools

import numpy as np
import pytest
import scipy.linalg
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.metrics import confusion, frechet_distance, kernel_distance, psnr, segmentation, ssim


@pytest.fixture
def pair() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    photo = np.cumsum(rng.integers(-9, 10, (40, 56, 3)), 1) + 128
    fake = photo + rng.normal(0, 12, photo.shape)
    return np.clip(fake, 0, 255).astype(np.uint8), np.clip(photo, 0, 255).astype(np.uint8)


def test_psnr_and_ssim_are_scikit_images(pair: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    assert psnr(*pair) == pytest.approx(peak_signal_noise_ratio(*pair), abs=1e-9)
    expected = structural_similarity(
        *pair, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1
    )
    assert ssim(*pair) == pytest.approx(expected, abs=1e-5)
    assert psnr(pair[0], pair[0]) == np.inf and ssim(pair[0], pair[0]) == pytest.approx(1.0)


def slow_kid(real: NDArray[np.float64], fake: NDArray[np.float64]) -> float:
    """As the paper writes it."""
    n, d = real.shape

    def k(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return float(sum(a * b for a, b in zip(x, y, strict=True)) / d + 1) ** 3

    within = sum(k(s[i], s[j]) for s in (real, fake) for i in range(n) for j in range(n) if i != j)
    across = sum(k(x, y) for x, y in itertools.product(real, fake))
    return within / (n * (n - 1)) - 2 * across / n**2


def test_kernel_distance() -> None:
    rng = np.random.default_rng(1)
    real, fake = rng.normal(0, 1, (9, 5)), rng.normal(0.4, 1.2, (9, 5))
    found = kernel_distance(real, fake)
    assert found.value == pytest.approx(slow_kid(real, fake), rel=1e-12)
    without = np.array([slow_kid(np.delete(real, i, 0), np.delete(fake, i, 0)) for i in range(9)])
    assert found.deviation == pytest.approx(np.sqrt(8 / 9 * np.sum((without - np.mean(without)) ** 2)), rel=1e-9)


def test_the_kernel_distance_is_unbiased_and_its_deviation_true() -> None:
    rng = np.random.default_rng(2)
    for shift, factor in ((0.0, np.sqrt(2)), (1.0, 1.0)):
        found = [kernel_distance(rng.normal(0, 1, (40, 6)), rng.normal(shift, 1, (40, 6))) for _ in range(300)]
        values = np.array([one.value for one in found])
        assert shift or abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
        assert np.mean([one.deviation for one in found]) == pytest.approx(factor * values.std(), rel=0.1)


def test_frechet_distance() -> None:
    rng = np.random.default_rng(3)
    real, fake = rng.normal(0, 1, (50, 4)) @ rng.normal(0, 1, (4, 4)), rng.normal(0.5, 2, (50, 4))
    a, b = (np.cov(features.T) for features in (real, fake))
    root = scipy.linalg.sqrtm(a @ b)
    expected = np.sum((real.mean(0) - fake.mean(0)) ** 2) + np.trace(a + b - 2 * root.real)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    few = rng.normal(0, 1, (2, 5, 20))  # Fewer than dimensions: singular, but no failure.
    assert np.isfinite(frechet_distance(*few))


def test_too_few_pictures_are_refused() -> None:
    for measure in (kernel_distance, frechet_distance):
        with pytest.raises(P2PHDError, match="3 pairs of pictures and more, and here are 2"):
            measure(np.zeros((2, 4)), np.zeros((2, 4)))


def test_segmentation() -> None:
    rng = np.random.default_rng(4)
    classes = (7, 2, 30)
    truth, seen = rng.choice([7, 2, 255], (20, 30)), rng.choice([7, 2, 30, 1], (20, 30))
    counts = confusion(truth, seen, classes)
    for row, a in enumerate(classes):
        assert counts[row].tolist() == [
            *(np.sum((truth == a) & (seen == b)) for b in classes),
            np.sum((truth == a) & ~np.isin(seen, classes)),
        ]
    known = truth != 255
    found = segmentation(counts, classes)
    assert found.accuracy == pytest.approx(np.mean(truth[known] == seen[known]))
    iou = {
        i: np.sum((truth == i) & (seen == i)) / np.sum(known & ((truth == i) | (seen == i))) for i in (7, 2)
    }  # Class 30 is nowhere.
    assert found.iou == pytest.approx(iou) and found.mean_iou == pytest.approx(np.mean(list(iou.values())))
    with pytest.raises(P2PHDError, match="no pixel is of a class that the segmenter knows"):
        segmentation(confusion(np.full((2, 2), 255), seen[:2, :2], classes), classes)
