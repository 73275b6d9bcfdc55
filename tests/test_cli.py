"""The command line: every option comes from a field, help teaches, and a typed flag reaches the settings."""

import re

import pytest

from pix2pixhd_cli import __version__
from pix2pixhd_cli.settings import fields, flag_name
from tests.conftest import Command

SECTIONS = {
    "prepare": ["prepare"],
    "pack": ["pack"],
    "train": ["train", "generator", "discriminator", "encoder", "loss"],
    "encode": ["encode"],
    "cluster": ["cluster"],
    "generate": ["generate"],
}


@pytest.mark.parametrize("verb", SECTIONS)
def test_help_shows_every_field_of_a_verbs_sections(p2phd: Command, verb: str) -> None:
    outcome = p2phd(verb, "--help")
    assert outcome.code == 0
    shown = set(re.findall(r"--[a-z0-9-]+", outcome.out))
    wanted = {flag_name(s, f, own=s == verb) for s, f, _ in fields() if s in SECTIONS[verb]}
    assert wanted <= shown
    extra = {flag for flag in shown - wanted if not flag.startswith("--no-")}
    assert extra <= {"--config", "--help", "--resume", "--dry-run", "--init-from", "--name"}
    for section in SECTIONS[verb]:
        assert f"{section.capitalize()} (environment: P2PHD_{section.upper()}__" in outcome.out


def test_help_shows_types_ranges_and_defaults(p2phd: Command) -> None:
    out = p2phd("train", "--help").out
    assert re.search(r"--epochs .*1<=x<=1000000.*Epochs at the full learning.*default: 100", out)
    assert re.search(r"--beta1 .*x>=0.*\(< 1\)", out)
    assert re.search(r"--flip +--no-flip", out)
    assert re.search(r"--layout .*One of cityscapes, pix2pixhd, pairs\.", p2phd("prepare", "--help").out)


def test_version_and_bare_help(p2phd: Command) -> None:
    assert p2phd("--version").out.strip() == f"p2phd {__version__}"
    out = p2phd("--help").out
    positions = [out.index(f" {verb} ") for verb in SECTIONS]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "a", "b", "--epochs", "many"], "'--epochs'"),
        (["train", "a", "b", "--epochs", "0"], "'--epochs'"),
        (["train", "a", "b", "--learning-rate", "-1"], "--learning-rate: input should be greater than 0"),
        (["train", "a", "b", "--crop", "512"], "--crop: '512' is not HEIGHTxWIDTH"),
        (["prepare", "a", "b", "--layout", "coco"], "'--layout'"),
        (["train", "a", "b", "--no-such-flag"], "--no-such-flag"),
        (["train", "a"], "RUN"),
        (["paint"], "paint"),
        (["train", "a", "b", "--config", "nowhere.toml"], "nowhere.toml: no such file"),
    ],
)
def test_usage_errors_name_the_flag_and_exit_with_two(p2phd: Command, arguments: list[str], message: str) -> None:
    outcome = p2phd(*arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_quiet_prints_nothing_but_warnings(p2phd: Command, city: object, tmp_path: object) -> None:
    assert p2phd("--quiet", "prepare", city, f"{tmp_path}/ds").out == ""
    assert p2phd("prepare", city, f"{tmp_path}/ds2").out != ""
