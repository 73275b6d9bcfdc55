"""Feature codes: the choice grammar, K-means, names, and the files."""

import re
from pathlib import Path

import numpy as np
import pytest

from pix2pixhd_cli.data.dataset import DatasetSpec, read_spec
from pix2pixhd_cli.data.labels import majority_classes, tally
from pix2pixhd_cli.data.records import PackedSplit
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.features import ClassStyles, FeatureClusters, FeatureCodes, Rule, Styler, parse_rules
from pix2pixhd_cli.model.pix2pixhd import Batch
from pix2pixhd_cli.painting import Painter
from pix2pixhd_cli.pipeline.cluster import find_styles
from pix2pixhd_cli.settings import ClusterSettings

ROAD, CAR, SKY = 7, 26, 23


@pytest.fixture
def spec(dataset: Path) -> DatasetSpec:
    return read_spec(dataset)


@pytest.fixture
def clusters() -> FeatureClusters:
    def styles(centres: list[list[float]], names: tuple[str, ...]) -> ClassStyles:
        array = np.array(centres, np.float32).reshape(-1, 2)
        return ClassStyles(array, np.ones(len(array), np.int32), names, np.array([0.5, 0.25], np.float32), 0.0)

    return FeatureClusters(
        {
            ROAD: styles([[0, 0], [1, 1]], ("asphalt", "")),
            CAR: styles([[2, 2], [3, 3], [4, 4]], ("", "red", "")),
            SKY: styles([], ()),
        },
        channels=2,
    )


def gate(
    clusters: FeatureClusters | None,
    spec: DatasetSpec,
    *texts: str,
    instance: int = 26003,
    class_id: int = CAR,
    gain: float = 0.0,
) -> tuple[float, list[float]]:
    rules = parse_rules(texts, spec, clusters, 2)
    styler = Styler(rules, clusters, channels=2, gain=gain)
    found = styler.gates("stem", {instance: class_id})[instance]
    return found.gain, found.code.tolist()


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["car=0"], (0.0, [2, 2])),
        (["car=red"], (0.0, [3, 3])),
        (["26=2"], (0.0, [4, 4])),
        (["26003=1"], (0.0, [3, 3])),
        (["instance:26003=2"], (0.0, [4, 4])),
        (["car=0", "26003=1"], (0.0, [3, 3])),
        (["26003=1", "car=0"], (0.0, [2, 2])),
        (["car=mean"], (0.0, [0.5, 0.25])),
        (["car=0.125,-3"], (0.0, [0.125, -3])),
        (["car=photo"], (1.0, [0, 0])),
        (["road=0", "car=1"], (0.0, [3, 3])),
        (["*=photo"], (1.0, [0, 0])),
        (["*=photo", "car=1"], (0.0, [3, 3])),
    ],
)
def test_the_grammar(clusters: FeatureClusters, spec: DatasetSpec, texts: list[str], expected: object) -> None:
    assert gate(clusters, spec, *texts) == expected


def test_an_integer_is_a_class_if_there_is_one_and_else_an_instance(
    clusters: FeatureClusters, spec: DatasetSpec
) -> None:
    rules = parse_rules(["7=0", "7000=0", "instance:7=0"], spec, clusters, 2)
    assert [(rule.class_id, rule.instance) for rule in rules] == [(7, None), (None, 7000), (None, 7)]
    assert rules[2].matches(7, CAR) and not rules[2].matches(8, ROAD)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dragon=0", "there is no class 'dragon' with feature codes; there are road, sky, car"),
        ("car=3", "there is no style '3'; there are 0 … 2, red"),
        ("car=blue", "there is no style 'blue'"),
        ("car", "write TARGET=CHOICE"),
        ("=3", "write TARGET=CHOICE"),
        ("car=", "write TARGET=CHOICE"),
        ("car=1,2,3", "a code here is 2 finite numbers"),
        ("car=nan,1", "a code here is 2 finite numbers"),
        ("car=1.5", "a code here is 2 finite numbers"),
        ("sky=0", "this class has no styles"),
        ("*=0", "styles differ by class"),
        ("26003=red", "an instance's style is an index"),
    ],
)
def test_bad_choices(clusters: FeatureClusters, spec: DatasetSpec, text: str, message: str) -> None:
    with pytest.raises(P2PHDError, match=f"--feature-code {re.escape(text)}: .*{message}"):
        parse_rules([text], spec, clusters, 2)


def test_the_gain_goes_with_the_chosen_code(clusters: FeatureClusters, spec: DatasetSpec) -> None:
    assert gate(clusters, spec, "car=red", gain=0.5) == (0.5, [3, 3])


def test_random_draws_depend_on_seed_picture_and_instance_alone(clusters: FeatureClusters) -> None:
    def draw(seed: int, stem: str, instance: int, hold: bool = False) -> list[float]:
        styler = Styler([], clusters, channels=2, seed=seed, hold=hold)
        others = dict.fromkeys(range(5), CAR)
        return styler.gates(stem, {**others, instance: CAR})[instance].code.tolist()

    assert draw(0, "a", 9) == draw(0, "a", 9)
    seen = [tuple(draw(seed, "a", 9)) for seed in range(30)]
    assert set(seen) == {(2, 2), (3, 3), (4, 4)}
    assert len({tuple(draw(0, stem, 9)) for stem in "abcdefgh"}) > 1
    assert len({tuple(draw(0, "a", i)) for i in range(9, 20)}) > 1
    assert len({tuple(draw(0, stem, 9, hold=True)) for stem in "abcdefgh"}) == 1


def test_classes_without_styles_get_the_mean_or_zero_and_are_remembered(clusters: FeatureClusters) -> None:
    styler = Styler([], clusters, channels=2)
    gates = styler.gates("stem", {1: SKY, 2: 99})
    assert gates[1].code.tolist() == [0.5, 0.25] and gates[2].code.tolist() == [0, 0]
    assert styler.without_styles == {SKY, 99}


def test_absent_targets_are_remembered(clusters: FeatureClusters, spec: DatasetSpec) -> None:
    styler = Styler(parse_rules(["car=0", "road=1"], spec, clusters, 2), clusters, channels=2)
    styler.gates("one", {1: CAR})
    styler.gates("two", {1: CAR, 7: ROAD})
    assert styler.absences == {"car=0": [], "road=1": ["one"]}


def test_files_round_trip(clusters: FeatureClusters, run: Path, tmp_path: Path) -> None:
    clusters.save(tmp_path / "clusters.npz")
    again = FeatureClusters.load(tmp_path / "clusters.npz")
    assert again.channels == 2 and list(again.classes) == list(clusters.classes)
    for identity, styles in clusters.classes.items():
        np.testing.assert_array_equal(again.classes[identity].centres, styles.centres)
        assert again.classes[identity].names == styles.names
    codes = FeatureCodes.load(run / "features.npz")
    codes.save(tmp_path / "features.npz")
    np.testing.assert_array_equal(FeatureCodes.load(tmp_path / "features.npz").stem, codes.stem)
    (tmp_path / "features.npz").write_bytes(b"PK nonsense")
    with pytest.raises(P2PHDError, match=r"features.npz: damaged"):
        FeatureCodes.load(tmp_path / "features.npz")


def test_codes_are_the_encoders_means_over_each_instance(run: Path, packed: Path) -> None:
    codes, painter, split = FeatureCodes.load(run / "features.npz"), Painter(run), PackedSplit(packed, "train")
    assert painter.model.encoder is not None
    expected = sum(len(np.unique(split.example(n).instance)) for n in range(len(split)))
    assert len(codes.label) == expected
    for n in range(len(split)):
        example = split.example(n)
        assert example.photo is not None
        raw = painter.model.encoder(example.photo[None].astype(np.float32) / 127.5 - 1)[0].numpy()
        classes, _ = majority_classes(tally(example.instance, example.label))
        for row in np.flatnonzero(codes.stem == example.stem):
            own = example.instance == codes.instance[row]
            np.testing.assert_allclose(codes.code[row], raw[own].mean(0), atol=1e-5)
            assert codes.label[row] == classes[int(codes.instance[row])]
            assert codes.share[row] == pytest.approx(own.mean())
            ys, xs = np.nonzero(own)
            assert codes.box[row].tolist() == [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]


def fake_codes(code: list[list[float]], label: list[int], share: list[float]) -> FeatureCodes:
    n = len(code)
    return FeatureCodes(
        code=np.array(code, np.float32),
        label=np.array(label, np.int32),
        instance=np.arange(n, dtype=np.int32),
        stem=np.array(["a"] * n),
        share=np.array(share, np.float32),
        box=np.zeros((n, 4), np.int32),
        split=np.array("train"),
        packed=np.array("nowhere"),
        step=np.array(7),
    )


def test_clustering_takes_large_instances_per_class() -> None:
    codes = fake_codes([[0.0], [0.1], [5.0], [5.1], [99.0], [7.0]], [1, 1, 1, 1, 1, 2], [0.5] * 4 + [0.001] * 2)
    found = find_styles(codes, ClusterSettings(clusters=2))
    assert sorted(found.classes[1].centres.ravel().tolist()) == pytest.approx([0.05, 5.05])
    assert found.classes[1].counts.tolist() == [2, 2]
    assert found.classes[1].mean.tolist() == pytest.approx([np.mean([0, 0.1, 5, 5.1, 99])])
    assert len(found.classes[2].centres) == 0 and found.classes[2].mean.tolist() == [7.0]


def test_there_are_never_more_styles_than_different_codes() -> None:
    codes = fake_codes([[1.0], [1.0], [2.0]], [1, 1, 1], [0.5] * 3)
    assert len(find_styles(codes, ClusterSettings(clusters=10)).classes[1].centres) == 2


def test_names_follow_the_nearest_centre(clusters: FeatureClusters, spec: DatasetSpec) -> None:
    def moved(shift: float, order: list[int]) -> FeatureClusters:
        styles = clusters.classes[CAR]
        centres = styles.centres[order] + np.float32(shift)
        return FeatureClusters({CAR: ClassStyles(centres, styles.counts, ("", "", ""), styles.mean, 0.0)}, 2)

    named = clusters.rename(["car:0=white"], spec)
    assert moved(0.1, [2, 1, 0]).inherit_names(named).classes[CAR].names == ("", "red", "white")
    few = FeatureClusters(
        {
            CAR: ClassStyles(
                np.array([[2.1, 2.1]], np.float32), np.ones(1, np.int32), ("",), np.zeros(2, np.float32), 0.0
            )
        },
        2,
    )
    assert few.inherit_names(named).classes[CAR].names == ("white",), "two names, one centre: the nearer"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road:2=x", "road has styles 0 … 1"),
        ("dragon:0=x", "there is no class 'dragon'"),
        ("road=x", "write CLASS:INDEX=NAME"),
        ("road:0", "write CLASS:INDEX=NAME"),
        ("road:1=random", "'random' cannot be a name"),
        ("road:1=7", "'7' cannot be a name"),
        ("road:1=a\x1b", r"'a\\x1b' cannot be a name"),
    ],
)
def test_bad_names(clusters: FeatureClusters, spec: DatasetSpec, text: str, message: str) -> None:
    with pytest.raises(P2PHDError, match=f"--name {text}: .*{message}"):
        clusters.rename([text], spec)


def test_names_can_be_given_again_and_swapped_but_not_shared(clusters: FeatureClusters, spec: DatasetSpec) -> None:
    assert clusters.rename(["road:0=asphalt"], spec).classes[ROAD].names == ("asphalt", "")
    assert clusters.rename(["road:0=", "road:1=asphalt"], spec).classes[ROAD].names == ("", "asphalt")
    with pytest.raises(P2PHDError, match="'asphalt' would be the name of two styles of road"):
        clusters.rename(["road:1=asphalt"], spec)


def test_a_name_can_be_taken_away(clusters: FeatureClusters, spec: DatasetSpec) -> None:
    assert clusters.rename(["road:0="], spec).classes[ROAD].names == ("", "")


def test_rule_without_clusters_needs_none_for_words_and_vectors(spec: DatasetSpec) -> None:
    assert parse_rules(["car=photo"], spec, None, 2)[0] == Rule(
        "car=photo", CAR, None, parse_rules(["car=photo"], spec, None, 2)[0].choice
    )
    with pytest.raises(P2PHDError, match="the run has no styles yet"):
        parse_rules(["car=1"], spec, None, 2)


def test_pooling_uses_the_photo_alone(run: Path, packed: Path) -> None:
    """The label map plays no part in a code: the same photo under other class ids gives the same codes."""
    painter, example = Painter(run), PackedSplit(packed, "train").example(0)
    assert example.photo is not None
    photo = example.photo[None].astype(np.float32) / 127.5 - 1
    maps = [
        painter.model.encode(Batch(label[None], example.instance[None], photo))
        for label in (example.label, example.label * 0)
    ]
    np.testing.assert_array_equal(*maps)
