"""Makes the model in the box: the quickstart's recipe on more streets and with seven times its steps, eight styles a class.

    python examples/make_toy_run.py          # about twenty minutes on two cores; works in ./toy_run_in_making

It writes `examples/toy_run` (what painting, `show` and the studio need of the run, without checkpoints), `examples/streets` (a
few streets that were not trained on) and `examples/three_styles.png`, and says how well the styles are obeyed.
"""

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from quickstart import Judge, make_run, p2phd, report
from toy_city import draw_city

from pix2pixhd_cli import images
from pix2pixhd_cli.data.dataset import read_example, read_spec
from pix2pixhd_cli.features import FeatureCodes
from pix2pixhd_cli.runs import Run

HERE = Path(__file__).parent
COPIED = ("settings.json", "dataset.json", "model", "clusters.npz", "clusters.png")
LOOKS = (
    ("road=asphalt", "car=red", "building=ochre"),
    ("road=cobbles", "car=blue", "building=brick"),
    ("road=asphalt", "car=white", "building=mint"),
)


def main() -> None:
    """Train, copy, draw streets, and paint one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("toy_run_in_making"), help="folder to work in")
    parser.add_argument("--to", type=Path, default=HERE, help="folder for the results")
    arguments = parser.parse_args()
    longer = ("--epochs", 24, "--decay-epochs", 24, "--sample-every", 2000, "--checkpoint-every", 2000)
    judge = make_run(arguments.out, streets=500, train=longer, cluster=("--clusters", 8))
    hand_on(judge.run, arguments.to / "toy_run")
    make_streets(arguments.out / "streets_city", arguments.to / "streets")
    three_styles(judge, arguments.to / "streets").save(arguments.to / "three_styles.png")
    sys.exit(0 if report(judge) else 1)


def hand_on(run: Path, folder: Path) -> None:
    """Copy what a run needs to paint, without where its data lay."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in COPIED:
        (shutil.copytree if (run / name).is_dir() else shutil.copy)(run / name, folder / name)
    Run(folder).save_sources(Run(run).sources().model_copy(update={"packed": None}))
    replace(FeatureCodes.load(run / "features.npz"), packed=np.array("")).save(folder / "features.npz")


def make_streets(city: Path, dataset: Path) -> None:
    """Draw and prepare streets of another seed."""
    draw_city(city, train=0, val=4, seed=1)
    p2phd("prepare", city, dataset)
    shutil.rmtree(dataset / ".prepared")  # Of use where a data set is prepared again.


def three_styles(judge: Judge, streets: Path) -> images.Sheet:
    """One street in three looks, beside its label map."""
    spec = read_spec(streets)
    street = read_example(streets, spec, "val", spec.entries("val")[0])
    row = [images.colour_labels(street.label, spec.classes), *(judge.paint(street, *look) for look in LOOKS)]
    return images.grid([row], ["label map", *(", ".join(look) for look in LOOKS)], scale=3)


if __name__ == "__main__":
    main()
