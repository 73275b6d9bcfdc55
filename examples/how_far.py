"""How far training goes: a step's time on many GPUs, told from what was measured on one machine.

    python examples/how_far.py                          # the table of README's "How far it goes"
    python examples/how_far.py --teraflops 90           # what your GPU does: operations of a step / seconds of a step
    python examples/how_far.py --network 80 --accumulate 4

    step = max(computing, input, file system) + all-reduce

Nothing is taken to overlap but computing with reading ahead. Gradients, 4 bytes for each parameter, go around a ring
of n twice, but for one part in n: over the links within each machine, then between machines.
"""

import argparse
from dataclasses import dataclass
from typing import NamedTuple

COUNTS = (8, 64, 512)


class Work(NamedTuple):
    """A training step for one picture, with the full-size networks; see README for how each number was measured."""

    name: str
    teraflop: float  # Operations, as plain convolutions.
    parameters: float  # Millions.
    megabytes: float  # What is read.
    pictures: float  # That a processor core reads, decodes and flips in a second.


WORKS = (
    Work("512x1024, global", teraflop=5.01, parameters=188.9, megabytes=0.63, pictures=71.0),
    Work("1024x2048, local", teraflop=12.97, parameters=192.1, megabytes=2.24, pictures=15.6),
)


@dataclass(frozen=True)
class Site:
    """What a cluster has; rates in gigabytes per second."""

    teraflops: float = 40.0
    gpus: int = 8
    cores: int = 16
    links: float = 200.0
    network: float = 10.0
    storage: float = 10.0


class Step(NamedTuple):
    """The seconds of each part of a step, and how many pictures it has."""

    computing: float
    input: float
    storage: float
    reduce: float
    pictures: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return max(self.computing, self.input, self.storage) + self.reduce

    @property
    def binds(self) -> str:
        """What takes longest."""
        parts = {
            "computing": self.computing, "input": self.input, "file system": self.storage, "all-reduce": self.reduce
        }  # fmt: skip
        return max(parts, key=lambda name: parts[name])


def step(work: Work, gpus: int, accumulate: int, site: Site) -> Step:
    """A step of one picture on each of `gpus`, `accumulate` times."""
    local, machines = min(gpus, site.gpus), max(1, gpus // site.gpus)
    gigabytes = 4e-3 * work.parameters
    return Step(
        computing=accumulate * work.teraflop / site.teraflops,
        input=accumulate * local / (site.cores * work.pictures),
        storage=accumulate * gpus * work.megabytes / 1e3 / site.storage,
        reduce=_around(local) * gigabytes / site.links + _around(machines) * gigabytes / site.network,
        pictures=accumulate * gpus,
    )


def table(works: tuple[Work, ...], accumulates: tuple[int, ...], site: Site) -> str:
    """Markdown: a row for each work, number of GPUs and `--accumulate`."""
    lines = [
        "| a picture on each GPU | GPUs | `--accumulate` | computing | all-reduce | pictures/s | of perfect | a million | read "
        "| most of a step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for work in works:
        for gpus in COUNTS:
            for accumulate in accumulates:
                one = step(work, gpus, accumulate, site)
                pace = one.pictures / one.seconds
                figures = (
                    f"{one.computing:.3f} s", f"{one.reduce:.3f} s", f"{pace:,.0f}", f"{one.computing / one.seconds:.0%}",
                    f"{1e6 / pace / 3600:.1f} h", f"{pace * work.megabytes / 1e3:.2f} GB/s", one.binds
                )  # fmt: skip
                lines.append(" | ".join((f"| {work.name}", str(gpus), str(accumulate), *figures)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table for a cluster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--teraflops", type=float, default=Site.teraflops, help="what a GPU reaches (default %(default)s)"
    )
    parser.add_argument("--gpus", type=int, default=Site.gpus, help="in a machine (default %(default)s)")
    parser.add_argument("--cores", type=int, default=Site.cores, help="of a machine that read (default %(default)s)")
    for name, where in (("links", "between its GPUs"), ("network", "between machines"), ("storage", "of all files")):
        parser.add_argument(
            f"--{name}", type=float, default=getattr(Site, name), help=f"{where}, GB/s (default %(default)s)"
        )
    parser.add_argument("--accumulate", type=int, nargs="+", default=(1, 4), help="batches a step (default 1 4)")
    chosen = vars(parser.parse_args())
    accumulates = tuple(chosen.pop("accumulate"))
    print(table(WORKS, accumulates, Site(**chosen)))


def _around(members: int) -> float:
    """How often all gradients pass each member of a ring."""
    return 2 * (members - 1) / members


if __name__ == "__main__":
    main()
