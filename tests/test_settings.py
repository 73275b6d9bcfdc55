"""One typed settings object: where values come from, who wins, and what is refused."""

import re
import tomllib
from pathlib import Path

import pytest

from pix2pixhd_cli.errors import SettingsError
from pix2pixhd_cli.options import settings_toml
from pix2pixhd_cli.settings import Settings, fields, load_settings, parse_size, save_settings
from tests.conftest import Command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.toml"
    path.write_text("[train]\nepochs = 11\nseed = 12\nbatch_size = 13\n[generator]\nfilters = 14\n")
    return path


def test_default() -> None:
    assert load_settings().train.epochs == 100


def test_file_alone(file: Path) -> None:
    assert load_settings(config=file).train.epochs == 11


def test_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PHD_TRAIN__EPOCHS", "21")
    assert load_settings().train.epochs == 21


def test_flag_alone() -> None:
    assert load_settings({"train": {"epochs": 31}}).train.epochs == 31


def test_all_are_merged_key_by_key(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PHD_TRAIN__EPOCHS", "21")
    monkeypatch.setenv("P2PHD_TRAIN__SEED", "22")
    settings = load_settings({"train": {"epochs": 31}}, file)
    assert (settings.train.epochs, settings.train.seed, settings.train.batch_size) == (31, 22, 13)
    assert (settings.generator.filters, settings.train.decay_epochs) == (14, 100)


def test_settings_of_a_run_lie_below_files_and_above_defaults(tmp_path: Path, file: Path) -> None:
    kept = Settings(train={"epochs": 5, "learning_rate": 0.5}, generator={"filters": 14})
    (tmp_path / "settings.json").write_text(save_settings(kept))
    settings = load_settings(config=file, run=tmp_path)
    assert (settings.train.epochs, settings.train.learning_rate, settings.train.beta1) == (11, 0.5, 0.5)


def test_contradicting_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(save_settings(Settings()))
    with pytest.raises(SettingsError, match=r"--generator-filters is 8, but the run was trained with 64"):
        load_settings({"generator": {"filters": 8}}, run=tmp_path)
    with pytest.raises(SettingsError, match=r"--beta1 is 0.8"):
        load_settings({"train": {"beta1": 0.8}}, run=tmp_path, resume=True)
    assert load_settings({"train": {"epochs": 8}}, run=tmp_path, resume=True).train.epochs == 8


def test_lists_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PHD_PREPARE__IGNORE_ID", "0, 255")
    monkeypatch.setenv("P2PHD_GENERATE__FEATURE_CODE", "road=1")
    settings = load_settings()
    assert settings.prepare.ignore_id == (0, 255)
    assert settings.generate.feature_code == ("road=1",)
    monkeypatch.setenv("P2PHD_GENERATE__FEATURE_CODE", '["road=0.1,-0.4,0.9", "car=1"]')
    assert load_settings().generate.feature_code == ("road=0.1,-0.4,0.9", "car=1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepoch = 3", r"\[train\] epoch in .*some.toml: unknown; known are epochs,"),
        ("[training]\nepochs = 3", r"\[training\] in .*some.toml: unknown; known are prepare,"),
        ("[train]\nepochs = 'many'", r"\[train\] epochs in .*some.toml: input should be a valid integer"),
        ("[prepare]\nsize = '512'", r"\[prepare\] size in .*: '512' is not HEIGHTxWIDTH"),
        ("train = 3", r"\[train\] in .*some.toml"),
        ("train]", r"--config .*some.toml"),
    ],
)
def test_bad_files_are_refused_by_name(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings(config=file)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("P2PHD_TRAIN__EPOCHS", "many", "P2PHD_TRAIN__EPOCHS: input should be a valid integer"),
        ("P2PHD_TRAIN__EPOCHS", "0", "P2PHD_TRAIN__EPOCHS: input should be greater than or equal to 1"),
        ("P2PHD_TRAIN__EPOCH", "3", "P2PHD_TRAIN__EPOCH: unknown"),
        ("P2PHD_TRAIN_EPOCHS", "3", "P2PHD_TRAIN_EPOCHS: there is no section"),
        ("P2PHD_TRIAN__EPOCHS", "3", "P2PHD_TRIAN__EPOCHS: there is no section 'trian'"),
    ],
)
def test_bad_variables_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        load_settings()


def test_settings_exit_with_two(p2phd: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PHD_TRAIN__EPOCHS", "many")
    outcome = p2phd("config", "show")
    assert outcome.code == 2
    assert outcome.err.startswith("error: P2PHD_TRAIN__EPOCHS") and outcome.err.count("\n") == 1


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().train.epochs = 3  # type: ignore[misc]


def test_config_show_names_the_source_of_each_value(
    p2phd: Command, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PHD_TRAIN__SEED", "22")
    rows = {
        line.split("│")[1].strip(): line
        for line in p2phd("config", "show", "--config", file).out.splitlines()
        if "│" in line
    }
    assert "P2PHD_TRAIN__SEED" in rows["train.seed"] and " 22 " in rows["train.seed"]
    assert "some.toml" in rows["train.epochs"] and " 11 " in rows["train.epochs"]
    assert "default" in rows["train.beta1"]
    assert len([name for name in rows if "." in name]) == len(list(fields()))


def test_config_init_writes_a_file_that_changes_nothing(p2phd: Command, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    assert p2phd("config", "init", path).code == 0
    assert load_settings(config=path) == Settings()
    assert p2phd("config", "init", path).code == 1


def test_every_line_of_config_init_is_valid_once_uncommented(tmp_path: Path) -> None:
    settable = [line for line in settings_toml().splitlines() if re.match(r"\[|# [a-z_0-9]+ = ", line)]
    path = tmp_path / "all.toml"
    path.write_text("\n".join(line.removeprefix("# ") for line in settable))
    values = tomllib.loads(path.read_text())
    assert {(s, f) for s in values for f in values[s]} == {(s, f) for s, f, _ in fields()}
    settings = load_settings(config=path)
    for section, name, field in fields():
        if field.get_default() is not None:
            assert getattr(getattr(settings, section), name) == field.get_default()


def test_parse_size() -> None:
    assert parse_size("512x1024") == (512, 1024)
    for text in ("512", "x", "0x5", "5x", "-1x5", "1.5x2"):
        with pytest.raises(ValueError, match="HEIGHTxWIDTH"):
            parse_size(text)
