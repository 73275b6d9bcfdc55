"""Starting networks from another run: a local enhancer around a trained global generator, or the same networks once more.

The global run gives its generator without the last layer, its discriminators as the coarse ones, and its encoder, which from
then on is frozen and works at the global run's resolution (paper, section 3.2).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import keras

from pix2pixhd_cli.errors import SettingsError
from pix2pixhd_cli.model.generators import GlobalGenerator, LocalEnhancer
from pix2pixhd_cli.model.pix2pixhd import Pix2PixHD
from pix2pixhd_cli.runs import Run
from pix2pixhd_cli.settings import Settings, flag_name, settings_of_run
from pix2pixhd_cli.urls import Location


def resolve_encoder(settings: Settings, source: Location, *, asked: bool | None) -> Settings:
    """Take over whether there is an encoder and whether it is frozen; `asked` is what the user said of it, if anything.

    Raises `SettingsError` if the user wants an encoder where the source has none, or the reverse.
    """
    given = settings_of_run(source)
    if asked is not None and asked != bool(given.encoder.enabled):
        state = "an encoder" if given.encoder.enabled else "no encoder"
        raise SettingsError(f"--encoder-enabled is {asked}, but {source} was trained with {state}")
    finer = settings.generator.kind == "local" and given.generator.kind == "global"
    frozen = bool(given.encoder.enabled) and (finer or given.encoder.frozen)
    encoder = settings.encoder.model_copy(update={"enabled": given.encoder.enabled, "frozen": frozen})
    return settings.model_copy(update={"encoder": encoder})


def start_from(model: Pix2PixHD, settings: Settings, source: Path) -> int:
    """Copy the weights that `source` has for `model`, and return after which step it had them.

    Raises `SettingsError` naming the setting that does not fit.
    """
    run = Run(source)
    given = settings_of_run(source)
    for problem in _misfits(settings, given, run):
        raise SettingsError(f"{problem} of {source}, which --init-from names")
    other, step = run.load_networks(given)
    _copy_generator(other.generator, model.generator)
    if model.encoder is not None and other.encoder is not None:
        _copy(other.encoder.weights, model.encoder.weights)
    if run.has_discriminator and model.discriminator is not None and other.discriminator is not None:
        ours, theirs = model.discriminator.discriminators, other.discriminator.discriminators
        for coarse, fitting in zip(reversed(theirs), reversed(ours), strict=False):
            _copy(coarse.weights, fitting.weights)
    return step


def _misfits(settings: Settings, given: Settings, run: Run) -> Iterator[str]:
    """What keeps the source's weights from fitting, in the words of the flags."""
    ours, theirs = settings.generator, given.generator
    pairs = [("generator", name) for name in ("norm", "upsampling", "boundary", "downsamplings", "blocks")]
    pairs += [("discriminator", name) for name in ("filters", "layers") if run.has_discriminator]
    if given.encoder.enabled:
        pairs += [("encoder", name) for name in ("filters", "downsamplings", "channels", "pooling")]
    if ours.kind == theirs.kind:
        pairs += [("generator", name) for name in ("filters", "enhancers", "local_blocks")]
    elif ours.kind == "global":
        yield "--generator-kind is global, which cannot start from the local enhancer"
    elif ours.filters << ours.enhancers != theirs.filters:
        fitting = theirs.filters >> ours.enhancers
        yield f"--generator-filters is {ours.filters}, but must be {fitting} to fit {theirs.filters} filters"
    for section, name in pairs:
        have, want = (getattr(getattr(one, section), name) for one in (settings, given))
        if have != want:
            yield f"{flag_name(section, name, own=False)} is {have}, which does not fit the {want}"
    if run.has_discriminator and settings.discriminator.scales < given.discriminator.scales:
        yield f"--discriminator-scales is {settings.discriminator.scales}, fewer than the {given.discriminator.scales}"


def _copy_generator(theirs: GlobalGenerator | LocalEnhancer, ours: GlobalGenerator | LocalEnhancer) -> None:
    if type(theirs) is type(ours):
        _copy(theirs.weights, ours.weights)
        return
    for source, target in zip(theirs.trunk, ours.trunk, strict=True):
        _copy(source.weights, target.weights)


def _copy(source: Sequence[keras.Variable], target: Sequence[keras.Variable]) -> None:
    for theirs, ours in zip(source, target, strict=True):
        ours.assign(theirs)
