"""`show`: what every folder says of itself, and the command that comes next."""

import shutil
from pathlib import Path

import numpy as np

from pix2pixhd_cli import images
from pix2pixhd_cli.evaluation import Evaluation, Row
from tests.conftest import Command


def test_data_sets_and_packs(p2phd: Command, dataset: Path, packed: Path) -> None:
    said = p2phd("show", dataset)
    assert said.code == 0 and f"next: p2phd pack {dataset} PACKED" in said.out
    for words in (
        f"data set: {dataset}, 35 labels, instance maps",
        "│ train │        6 │           6 │ 32x64",
        "│ 26 │ car",
    ):
        assert words in said.out
    said = p2phd("show", packed)
    assert said.code == 0 and f"next: p2phd train {packed} RUN" in said.out
    assert f"packed data set: {packed}" in said.out and "│ val   │        3 │      1 │" in said.out


def test_a_run_tells_how_far_it_is_and_what_comes_next(
    p2phd: Command, run: Path, begun: Path, packed: Path, tmp_path: Path
) -> None:
    said = p2phd("show", begun)
    assert "trained: step 4 of 6, epoch 2 of 2" in said.out and "last logged: g_gan" in said.out
    assert f"next: p2phd train {packed} {begun} --resume" in said.out
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "clusters.npz").rename(tmp_path / "clusters.npz")
    assert f"next: p2phd cluster {copy}" in p2phd("show", copy).out
    (copy / "features.npz").unlink()
    assert f"next: p2phd encode {copy}" in p2phd("show", copy).out
    shutil.copy(run / "features.npz", copy)
    (tmp_path / "clusters.npz").rename(copy / "clusters.npz")
    row = Row(metric="PSNR (dB)", codes="photo", value=12.345, protocol={})
    Evaluation(version="1", step=6, model="m", averaged=False, split="val", data="d", rows=(row,)).save(
        copy, images.grid([[np.zeros((2, 2, 3), np.uint8)]])
    )
    for where in (str(copy), f"file://{copy}"):
        said = p2phd("show", where)
        assert said.code == 0 and f"next: p2phd generate {where} LABELS OUT" in said.out, said.err
        for words in (
            f"run: {where}, 35 labels, instance maps",
            "networks: global generator, 4 filters, 1 block, 2 discriminators, encoder of 3 numbers",
            "trained: step 6 of 6, epoch 2 of 2",
            "later verbs use: step 6",
            "asphalt",
            "12.35",
        ):
            assert words in said.out, words
        assert "(the best)" in said.out


def test_what_is_none_of_these(p2phd: Command, tmp_path: Path) -> None:
    said = p2phd("show", tmp_path)
    assert said.code == 1 and f"error: {tmp_path}: is no data set, no packed data set and no run" in said.err
