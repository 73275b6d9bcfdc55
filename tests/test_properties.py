"""Whatever text or document comes in, it is read as it should be or refused in good order; hypothesis looks for what is not."""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pix2pixhd_cli.data.dataset import DatasetSpec
from pix2pixhd_cli.data.labels import (
    CITYSCAPES,
    LabelClass,
    UnknownColours,
    draw_polygons,
    ids_from_colours,
    parse_remap,
    plain_classes,
    read_class_table,
)
from pix2pixhd_cli.errors import P2PHDError, SettingsError
from pix2pixhd_cli.features import ClassStyles, FeatureClusters, Styler, parse_rules
from pix2pixhd_cli.sealed import seal, unseal
from pix2pixhd_cli.settings import Settings, fields, load_settings, parse_size, save_settings

EXAMPLES = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SECTIONS = list(Settings.model_fields)
FIELDS = sorted({name for _, name, _ in fields()})
SPEC = DatasetSpec(
    classes=plain_classes(3), labels=4, ignored=(255,), has_instances=True, splits={}, pixels={}, input="labels"
)
STYLES = ClassStyles(np.eye(3, dtype=np.float32), np.ones(3, np.int32), ("red", "", "2b"), np.zeros(3, np.float32), 0.0)
CLUSTERS = FeatureClusters({0: STYLES, 1: STYLES}, 3)

words = (
    st.text(max_size=12)
    | st.text(string.digits, max_size=40)
    | st.sampled_from(["*", "0", "9" * 5000, "-1", "nan", "1e999", "٣"])
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
texts = st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin1"))


def of_fields(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Sections with fields that mostly exist, and values of any kind."""
    names = st.sampled_from(FIELDS) | words
    return st.dictionaries(
        st.sampled_from(SECTIONS) | words, st.dictionaries(names, inner, max_size=4) | inner, max_size=4
    )


@EXAMPLES
@given(of_fields(values))
def test_settings_are_valid_or_refused_and_outlive_being_saved(typed: dict[str, Any]) -> None:
    try:
        found = load_settings(typed)
    except SettingsError as error:
        assert str(error)
        return
    saved = Settings(**unseal(save_settings(found)))
    assert save_settings(saved) == save_settings(found)


@EXAMPLES
@given(st.one_of(texts, of_fields(values).map(lambda made: "\n".join(f"[{s}]\n{v}" for s, v in made.items()))))
def test_any_toml_is_read_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        load_settings(config=path)
    except SettingsError as error:
        assert str(path) in str(error)


@EXAMPLES
@given(st.dictionaries(st.sampled_from([f"{s}__{f}" for s, f, _ in fields()]), words, max_size=3))
def test_any_variable_is_read_or_refused(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(f"P2PHD_{name.upper()}", value.encode("utf-8", "ignore").decode().replace("\0", ""))
        try:
            load_settings()
        except SettingsError as error:
            assert any(f"P2PHD_{name.upper()}" in str(error) for name in variables)


@EXAMPLES
@given(st.dictionaries(words, values), st.binary(min_size=1, max_size=3), st.integers(0, 10_000))
def test_sealed_files_come_back_as_they_were_or_not_at_all(content: dict[str, Any], damage: bytes, place: int) -> None:
    content.pop("checksum", None)
    plain = json.loads(json.dumps(content))
    text = seal(content)
    assert json.dumps(unseal(text)) == json.dumps(plain)
    data = text.encode()
    place %= len(data)
    hit = data[:place] + damage + data[place + len(damage) :]
    try:
        found = unseal(hit.decode("latin1"))
    except ValueError:
        return
    assert json.dumps(found, sort_keys=True) == json.dumps(plain, sort_keys=True)


@EXAMPLES
@given(
    st.lists(
        words | st.tuples(words, words).map("=".join) | st.tuples(words, st.lists(words).map(",".join)).map("=".join)
    )
)
def test_the_grammar_of_feature_codes(choices: list[str]) -> None:
    for clusters in (CLUSTERS, None):
        try:
            rules = parse_rules(choices, SPEC, clusters, 3)
        except P2PHDError as error:
            assert str(error).startswith("--feature-code")
            continue
        assert [rule.text for rule in rules] == choices
        styler = Styler(rules, clusters, channels=3)
        for instance, class_id in ((0, 0), (1000, 1), (2000, 2)):
            try:
                gate = styler.gates("x", {instance: class_id})[instance]
            except P2PHDError:
                continue  # A style's index that this instance's class does not have.
            assert gate.code.shape == (3,) and np.isfinite(gate.code).all() and np.isfinite(gate.gain)


@EXAMPLES
@given(words, words)
def test_pairs_of_ids_and_sizes(left: str, right: str) -> None:
    try:
        found = parse_remap([f"{left}={right}"])
        assert all(0 <= number <= 65535 for pair in found.items() for number in pair)
    except P2PHDError as error:
        assert "--remap" in str(error)
    try:
        size = parse_size(f"{left}x{right}")
        assert size.height == int(left) > 0 and size.width == int(right) > 0
    except ValueError as error:
        assert "is not HEIGHTxWIDTH" in str(error)


classes = st.builds(
    lambda i, name, colour: {"id": i, "name": name, "color": colour},
    st.integers(-2, 1030) | values,
    st.text(string.ascii_letters, min_size=1, max_size=4) | values,
    st.tuples(*[st.integers(0, 255)] * 3).map(list) | values,
)


@EXAMPLES
@given(st.sampled_from(["toml", "csv"]), texts | st.lists(classes, max_size=4))
def test_class_tables(tmp_path: Path, kind: str, content: str | list[dict[str, Any]]) -> None:
    if isinstance(content, list) and kind == "csv":
        content = "id,name,color\n" + "\n".join(",".join(map(str, row.values())) for row in content)
    elif isinstance(content, list):
        rows = ("\n".join(f"{key} = {json.dumps(value)}" for key, value in row.items()) for row in content)
        content = "".join(f"[[classes]]\n{row}\n" for row in rows)
    path = tmp_path / f"classes.{kind}"
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    try:
        table = read_class_table(path)
    except P2PHDError as error:
        assert str(error).startswith(f"--classes {path}: ")
        return
    ids = [c.id for c in table]
    assert ids == sorted(set(ids)) and 0 <= ids[0] <= ids[-1] < 1024
    assert all(c.name for c in table) and len({c.name for c in table}) == len(table)
    assert all(0 <= level <= 255 for c in table for level in c.color)


colours = st.tuples(*[st.integers(0, 3)] * 3)


@EXAMPLES
@given(
    st.lists(colours, min_size=1, max_size=6), st.integers(1, 5), st.integers(1, 5), st.randoms(use_true_random=False)
)
def test_palettes(palette: list[tuple[int, int, int]], height: int, width: int, rng: Any) -> None:
    table = [LabelClass(id=7 * n, name=str(n), color=colour) for n, colour in enumerate(palette)]
    drawn = [
        [rng.choice([*palette, (0, 0, 9)] if rng.random() < 0.1 else palette) for _ in range(width)]
        for _ in range(height)
    ]
    strange = [(r, c) for r in range(height) for c in range(width) if drawn[r][c] == (0, 0, 9)]
    picture = np.array(drawn, np.uint8)
    if not strange:
        expected = [[7 * palette.index(colour) for colour in row] for row in drawn]
        assert ids_from_colours(picture, table).tolist() == expected
        return
    row, column = strange[0]
    with pytest.raises(UnknownColours, match=rf"^{len(strange)} pixels .* first at row {row}, column {column}$"):
        ids_from_colours(picture, table)


sides = st.integers(-50, 50) | st.floats(-1e3, 1e3) | values
things = st.fixed_dictionaries(
    {"label": st.sampled_from(["car", "road", "cargroup", "license plate", "ufo"]) | values},
    optional={"polygon": st.lists(st.tuples(sides, sides).map(list), max_size=5) | values, "deleted": values},
)
documents = values | st.fixed_dictionaries(
    {
        "imgWidth": st.integers(1, 40) | values,
        "imgHeight": st.integers(1, 40) | values,
        "objects": st.lists(things) | values,
    }
)


@EXAMPLES
@given(documents)
def test_polygons(document: Any) -> None:
    try:
        label, instance = draw_polygons(document, CITYSCAPES, most=10_000)
    except ValueError as error:
        assert str(error)
        return
    assert label.shape == instance.shape == (int(document["imgHeight"]), int(document["imgWidth"]))
    assert set(np.unique(label)) <= {0, 7, 26}
    assert (np.where(instance >= 1000, instance // 1000, instance) == label).all()
