"""Feature codes, feature clusters, and the grammar of `--feature-code`.

A feature code is the mean of the encoder's features over one instance; clusters of them per class are the styles that a
user chooses from (paper, section 3.4).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pix2pixhd_cli.data.arrays import open_arrays, write_arrays
from pix2pixhd_cli.data.dataset import DatasetSpec
from pix2pixhd_cli.data.files import is_text
from pix2pixhd_cli.data.labels import MAX_CLASSES
from pix2pixhd_cli.errors import P2PHDError
from pix2pixhd_cli.settings import whole_number

LARGEST = float(np.finfo(np.float32).max)
LARGEST_CODE = 1e18  # Beyond that squares are infinite.
LARGEST_ARRAY = 1 << 28  # Bytes, of feature codes out of a small file.
RESERVED = ("random", "mean", "photo")
# The arrays of both files: their type, and a letter for each of their sides.
CODES = {
    "code": ("<f4", "NC"),
    "label": ("<i4", "N"),
    "instance": ("<i4", "N"),
    "stem": ("U", "N"),
    "share": ("<f4", "N"),
    "box": ("<i4", "N4"),
    "split": ("U", ""),
    "packed": ("U", ""),
    "step": ("<i8", ""),
}
STYLES = {
    "label": ("<i4", "K"),
    "centre": ("<f4", "KC"),
    "count": ("<i4", "K"),
    "name": ("U", "K"),
    "class_label": ("<i4", "L"),
    "class_mean": ("<f4", "LC"),
    "class_inertia": ("<f8", "L"),
    "step": ("<i8", ""),
}


@dataclass(frozen=True)
class FeatureCodes:
    """The codes of N instances.

    code: float32 [N, C]. label: class ids, int32 [N]. instance: instance ids, int32 [N]. stem: the picture each comes
    from, text [N]. share: of its picture, float32 [N]. box: top, left, bottom, right in pixels, int32 [N, 4].
    split, packed: where the pictures are, text []. step: of the training that the encoder had then, int64 [].
    """

    code: NDArray[np.float32]
    label: NDArray[np.int32]
    instance: NDArray[np.int32]
    stem: NDArray[np.str_]
    share: NDArray[np.float32]
    box: NDArray[np.int32]
    split: NDArray[np.str_]
    packed: NDArray[np.str_]
    step: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write `features.npz`."""
        write_arrays(path, ((name, getattr(self, name)) for name in CODES), compress=True)

    @classmethod
    def load(cls, path: Path) -> "FeatureCodes":
        """Read `features.npz`; raises `P2PHDError`."""
        advice = f"`p2phd encode {path.parent}` makes them"
        missing = f"no feature codes yet ({path.name} is missing); {advice}"
        return cls(**read_layout(path, CODES, missing, most=LARGEST_ARRAY))


@dataclass(frozen=True)
class ClassStyles:
    """The styles of one class.

    centres: float32 [k, C], k may be 0. counts: instances in each, int32 [k]. names: one per centre, empty where it has
    none. mean: of all codes of the class, float32 [C]. inertia: K-means' sum of squared distances.
    """

    centres: NDArray[np.float32]
    counts: NDArray[np.int32]
    names: tuple[str, ...]
    mean: NDArray[np.float32]
    inertia: float

    def title(self, index: int) -> str:
        """A style's index and name."""
        return f"{index} {self.names[index]}".strip()


@dataclass(frozen=True)
class FeatureClusters:
    """The styles of every class that was seen, by class id; `step` is the training's when the codes were made."""

    classes: dict[int, ClassStyles]
    channels: int
    step: int = 0

    def save(self, path: Path) -> None:
        """Write `clusters.npz`: one row per centre, one row per class."""
        styles = list(self.classes.items())
        empty = np.zeros((0, self.channels), np.float32)
        arrays = {
            "label": np.array([i for i, s in styles for _ in s.centres], np.int32),
            "centre": np.concatenate([empty, *(s.centres for _, s in styles)]),
            "count": np.array([n for _, s in styles for n in s.counts], np.int32),
            "name": np.array([name for _, s in styles for name in s.names], np.str_),
            "step": np.array(self.step, np.int64),
            "class_label": np.array([i for i, _ in styles], np.int32),
            "class_mean": np.concatenate([empty, *(s.mean[None] for _, s in styles)]),
            "class_inertia": np.array([s.inertia for _, s in styles], np.float64),
        }
        write_arrays(path, arrays.items())

    @classmethod
    def load(cls, path: Path) -> "FeatureClusters":
        """Read `clusters.npz`; raises `P2PHDError`."""
        advice = f"`p2phd cluster {path.parent}` makes them"
        data = read_layout(path, STYLES, f"no styles yet ({path.name} is missing); {advice}")
        classes: dict[int, ClassStyles] = {}
        if (
            len(set(data["class_label"].tolist())) != len(data["class_label"])
            or len(data["class_label"]) > MAX_CLASSES + 1
        ):
            raise P2PHDError(f"{path}: damaged (a class stands there twice, or there are too many); make it again")
        for n, identity in enumerate(data["class_label"].tolist()):
            own = data["label"] == identity
            names = [name for name in data["name"][own].tolist() if name]
            if not all(map(_can_be_a_name, names)) or len(set(names)) < len(names):
                raise P2PHDError(f"{path}: damaged (it holds names that styles cannot have); make it again")
            classes[identity] = ClassStyles(
                centres=data["centre"][own],
                counts=data["count"][own],
                names=tuple(map(str, data["name"][own])),
                mean=data["class_mean"][n],
                inertia=float(data["class_inertia"][n]),
            )
        return cls(classes, int(data["centre"].shape[1]), int(data["step"]))

    def rename(self, texts: Iterable[str], spec: DatasetSpec) -> "FeatureClusters":
        """Name styles by `CLASS:INDEX=NAME`; an empty name takes it away. Raises `P2PHDError`."""
        classes = dict(self.classes)
        for text in texts:
            target, equals, name = text.partition("=")
            class_text, _, index_text = target.rpartition(":")
            found, index = spec.class_named(class_text), whole_number(index_text)
            flag = f"--name {text}"
            if not equals or not class_text or index is None:
                raise P2PHDError(f"{flag}: write CLASS:INDEX=NAME, such as road:0=asphalt")
            if found is None or found.id not in classes:
                raise P2PHDError(f"{flag}: {unknown_class(class_text, spec, self)}")
            styles = classes[found.id]
            if index >= len(styles.centres):
                raise P2PHDError(f"{flag}: {class_text} has styles 0 … {len(styles.centres) - 1}")
            if not _can_be_a_name(name):
                raise P2PHDError(f"{flag}: {name!r} cannot be a name: choose a word")
            names = (*styles.names[:index], name, *styles.names[index + 1 :])
            classes[found.id] = replace(styles, names=names)
        for identity, styles in classes.items():
            twice = [name for name in styles.names if name and styles.names.count(name) > 1]
            if twice:
                raise P2PHDError(
                    f"{twice[0]!r} would be the name of two styles of {spec.class_name(identity)}; see --name"
                )
        return replace(self, classes=classes)

    def inherit_names(self, old: "FeatureClusters") -> "FeatureClusters":
        """Give every named style of `old` to the nearest new centre of its class, the closest pairs first."""
        classes = dict(self.classes)
        for identity, styles in old.classes.items():
            if identity in classes and old.channels == self.channels:
                classes[identity] = _inherit(classes[identity], styles)
        return replace(self, classes=classes)


def _inherit(new: ClassStyles, old: ClassStyles) -> ClassStyles:
    pairs = sorted(
        (float(np.linalg.norm(new.centres[n] - old.centres[o])), o, n)
        for o, name in enumerate(old.names)
        if name
        for n in range(len(new.centres))
    )
    names, given = [""] * len(new.centres), set()
    for _, o, n in pairs:
        if o not in given and not names[n]:
            names[n] = old.names[o]
            given.add(o)
    return replace(new, names=tuple(names))


class Choice(NamedTuple):
    """What stands right of `TARGET=`: a cluster by index, a vector, or a word."""

    kind: Literal["cluster", "vector", "random", "mean", "photo"]
    number: int = 0
    vector: tuple[float, ...] = ()


class Rule(NamedTuple):
    """One `--feature-code TARGET=CHOICE`, resolved; it speaks of a class, an instance, or (neither) of everything."""

    text: str
    class_id: int | None
    instance: int | None
    choice: Choice

    def matches(self, instance: int, class_id: int) -> bool:
        """Whether it speaks of this instance."""
        if self.instance is not None:
            return self.instance == instance
        return self.class_id is None or self.class_id == class_id


class Gate(NamedTuple):
    """One instance's k and b in feature = k · E(photo) + b."""

    gain: float
    code: NDArray[np.float32]


def parse_rules(texts: Iterable[str], spec: DatasetSpec, clusters: FeatureClusters | None, channels: int) -> list[Rule]:
    """Read every TARGET=CHOICE; raises `P2PHDError` for what the run does not have."""
    rules = []
    for text in texts:
        target, equals, choice = text.partition("=")
        if not equals or not target or not choice:
            raise P2PHDError(f"--feature-code {text}: write TARGET=CHOICE, such as car=3, road=asphalt or 26003=random")
        class_id, instance = _parse_target(text, target, spec, clusters)
        rules.append(
            Rule(text, class_id, instance, _parse_choice(text, choice, class_id, instance, clusters, channels))
        )
    return rules


def _parse_target(
    text: str, target: str, spec: DatasetSpec, clusters: FeatureClusters | None
) -> tuple[int | None, int | None]:
    """(class id, None), (None, instance id), or (None, None) for everything."""
    if target == "*":
        return None, None
    prefix, _, number = target.partition(":")
    if prefix == "instance" and (identity := whole_number(number)) is not None:
        return None, identity
    found = spec.class_named(target)
    if found is not None:
        return found.id, None
    if (identity := whole_number(target)) is not None:
        return None, identity
    raise P2PHDError(f"--feature-code {text}: {unknown_class(target, spec, clusters)}")


def _parse_choice(
    text: str, choice: str, class_id: int | None, instance: int | None, clusters: FeatureClusters | None, channels: int
) -> Choice:
    if choice in RESERVED:
        return Choice(choice)  # type: ignore[arg-type]
    parts = choice.split(",")
    index = whole_number(choice)
    if len(parts) > 1 or (_is_number(choice) and index is None):
        if len(parts) != channels or not all(_is_number(part) for part in parts):
            raise P2PHDError(
                f"--feature-code {text}: a code here is {channels} finite numbers, such as {','.join(['0.1'] * channels)}"
            )
        return Choice("vector", vector=tuple(map(float, parts)))
    if clusters is None:
        raise P2PHDError(
            f"--feature-code {text}: the run has no styles yet; `p2phd encode` and `p2phd cluster` find them"
        )
    if class_id is None and instance is None:
        raise P2PHDError(f"--feature-code {text}: styles differ by class; * takes random, mean, photo or a vector")
    if class_id is not None:
        return Choice("cluster", style_index(f"--feature-code {text}", choice, clusters.classes.get(class_id)))
    if index is not None:
        return Choice("cluster", index)  # The instance's class is known only with the picture.
    raise P2PHDError(f"--feature-code {text}: an instance's style is an index, random, mean, photo or a vector")


def style_index(flag: str, choice: str, styles: ClassStyles | None) -> int:
    """A style's index from its index or name; raises `P2PHDError` naming `flag`."""
    count = len(styles.centres) if styles is not None else 0
    if styles is None or not count:
        raise P2PHDError(f"{flag}: this class has no styles (no instance of it was large enough); use mean or a vector")
    if choice in styles.names:
        return styles.names.index(choice)
    index = whole_number(choice)
    if index is not None and index < count:
        return index
    named = [name for name in styles.names if name]
    raise P2PHDError(
        f"{flag}: there is no style {choice!r}; there are 0 … {count - 1}{', ' if named else ''}{', '.join(named)}"
    )


class Styler:
    """Decides k and b of every instance, and remembers what the user should be told.

    Args:
        rules: of `--feature-code`, later ones winning.
        clusters: the run's styles, or None.
        channels: numbers in a code.
        gain: k where no rule says otherwise.
        seed, hold: of random choices; with `hold` the picture's stem plays no part.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        clusters: FeatureClusters | None,
        *,
        channels: int,
        gain: float = 0.0,
        seed: int = 0,
        hold: bool = False,
    ) -> None:
        self.rules = rules
        self.clusters = clusters
        self.channels = channels
        self.gain = gain
        self.seed = seed
        self.hold = hold
        self.without_styles: set[int] = set()
        self.absences: dict[str, list[str]] = {rule.text: [] for rule in rules}
        self.pictures = 0

    def needs_photo(self) -> bool:
        """Whether any choice looks at the photo."""
        return self.gain != 0 or any(rule.choice.kind == "photo" for rule in self.rules)

    def gates(
        self,
        stem: str,
        instances: Mapping[int, int],
        extra: Sequence[Rule] = (),
        brought: Mapping[int, NDArray[np.float32]] = {},
    ) -> dict[int, Gate]:
        """k and b of each instance of a picture, given as instance id -> class id.

        `extra` rules come last. Codes that were `brought` by instance give way to rules alone.
        """
        if not extra:
            self.pictures += 1
            for rule in self.rules:
                if not any(rule.matches(*pair) for pair in instances.items()):
                    self.absences[rule.text].append(stem)
        own = [Rule("the scene's", None, i, Choice("vector", vector=tuple(code))) for i, code in brought.items()]
        rules = [*own, *self.rules, *extra]
        return {i: self._gate(stem, i, c, [rule for rule in rules if rule.matches(i, c)]) for i, c in instances.items()}

    def _gate(self, stem: str, instance: int, class_id: int, rules: Sequence[Rule]) -> Gate:
        choice = rules[-1].choice if rules else Choice("random")
        styles = self.clusters.classes.get(class_id) if self.clusters is not None else None
        if choice.kind == "photo":
            return Gate(1.0, np.zeros(self.channels, np.float32))
        if choice.kind == "vector":
            return Gate(self.gain, np.array(choice.vector, np.float32))
        if choice.kind == "cluster":
            index = style_index(f"--feature-code {rules[-1].text}", str(choice.number), styles)
            assert styles is not None
            return Gate(self.gain, styles.centres[index])
        if choice.kind == "mean" or styles is None or not len(styles.centres):
            if styles is None or choice.kind != "mean":
                self.without_styles.add(class_id)
            return Gate(self.gain, styles.mean if styles is not None else np.zeros(self.channels, np.float32))
        return Gate(self.gain, styles.centres[self._draw(stem, instance, len(styles.centres))])

    def _draw(self, stem: str, instance: int, count: int) -> int:
        """A number below `count` from seed, stem and instance id alone."""
        text = f"{self.seed}/{'' if self.hold else stem}/{instance}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % count


def unknown_class(text: str, spec: DatasetSpec, clusters: FeatureClusters | None) -> str:
    """What to say of a class that is not there."""
    known = sorted(clusters.classes) if clusters is not None else [c.id for c in spec.classes]
    shown = ", ".join(spec.class_name(i) for i in known[:40])
    return f"there is no class {text!r} with feature codes; there are {shown}"


def _can_be_a_name(text: str) -> bool:
    """Whether a style may be called that; an empty text stands for no name."""
    return is_text(text) and text not in RESERVED and not {",", "="} & set(text) and not _is_number(text)


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) <= LARGEST
    except ValueError:
        return False


def read_layout(
    path: Path, layout: Mapping[str, tuple[str, str]], missing: str, *, most: int = 0
) -> dict[str, NDArray[Any]]:
    """Arrays of which each is as `layout` has it: its type (U is text), and a letter for each side, the same number throughout.

    `most` is what a compressed array may take in bytes. Raises `P2PHDError`, with `missing` if there is no file.
    """
    arrays: dict[str, NDArray[Any]] = {}
    sides = {"4": 4}
    try:
        with open_arrays(path) as file:
            for name, (dtype, letters) in layout.items():
                found = arrays[name] = file.read(name, most=most)
                if not _holds(found, dtype, len(letters)) or any(
                    sides.setdefault(*pair) != pair[1] for pair in zip(letters, found.shape, strict=True)
                ):
                    raise P2PHDError(f"{path}: damaged ({name} is not what it must be); make it again")
    except FileNotFoundError:
        raise P2PHDError(f"{path.parent}: {missing}") from None
    return arrays


def _holds(array: NDArray[Any], dtype: str, ndim: int) -> bool:
    """Whether there are numbers of this type of which none is huge, or text (U), in so many dimensions."""
    if array.ndim != ndim or (array.dtype.kind != "U" if dtype == "U" else array.dtype != dtype):
        return False
    try:
        return all(map(is_text, array.flat)) if dtype == "U" else bool((np.abs(array) < LARGEST_CODE).all())
    except (ValueError, SystemError):
        return False  # There are numbers in it that are no characters.
