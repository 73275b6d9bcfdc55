"""Parts of one work, done by processes anywhere on a shared folder: whose is what, who is at work, and what is done.

    FOLDER/   2-of-5.lock   2-of-5.json

The lock is held while a part is at work. The record is there from its start; it says what the part is made with, and, at its
end, that it is done. Only parts of one number, made with the same settings from the same inputs, are ever put together.
"""

import hashlib
import json
import os
import shlex
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from pix2pixhd_cli import __version__
from pix2pixhd_cli.data.files import checksum, held, partial_folder, refuse_links, sync, take_lock, write_text
from pix2pixhd_cli.errors import P2PHDError, SettingsError
from pix2pixhd_cli.sealed import read_sealed, seal
from pix2pixhd_cli.settings import InParts, Part, flag_name, parse_part
from pix2pixhd_cli.urls import Location, Url

Item = TypeVar("Item")
Made = dict[str, str]  # Files, each with its SHA-256.
MISSING, STOPPED = "missing", "not finished"
SHOWN = 10


class PartRecord(BaseModel):
    """What is known of a part.

    part: which, as I/N. done: it came to its end. settings: by flag. inputs: what it reads, by what a user calls it. made: its
    files by name, with their checksums.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    done: bool
    settings: dict[str, Any]
    inputs: dict[str, str]
    made: Made


def which_part(settings: InParts, *places: Location) -> Part | None:
    """The part to do, or None for the whole or a merge; raises `SettingsError` if both are asked for, or one at a URL."""
    if settings.part is not None and settings.merge:
        raise SettingsError(f"--part {settings.part} and --merge: a merge comes after all parts; give one of both")
    for place in places:
        if isinstance(place, Url) and (settings.part is not None or settings.merge):
            raise SettingsError(f"{place}: parts need a folder that all of them share; leave --part and --merge out")
    return parse_part(settings.part) if settings.part is not None else None


def share(items: Sequence[Item], part: Part) -> Sequence[Item]:
    """The neighbours that are this part's: all parts together, in order, are all items, and none has two more than another."""
    return items[(part.number - 1) * len(items) // part.of : part.number * len(items) // part.of]


def parts_folder(folder: Path) -> Path:
    """The hidden folder beside `folder` for the parts that it is made in."""
    return partial_folder(folder).with_suffix(".p2phd-parts")


def digest(values: object) -> str:
    """A few digits that stand for what JSON can hold."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def digest_of_files(paths: Iterable[Path]) -> str:
    """A few digits that stand for files: their names, sizes and times."""
    states = [(path.name, path.stat()) for path in paths if path.exists()]
    return digest([(name, state.st_size, state.st_mtime_ns) for name, state in states])


class Parts:
    """The parts of one work.

    Args:
        folder: where their locks and records are.
        command: the verb and its arguments, to tell how to go on.
        settings: the verb's section; how much is worked on at once, and on what, is each part's own affair.
        inputs: what decides the result beside settings, as digests by what a user calls it.
    """

    def __init__(
        self, folder: Path, command: Sequence[str | Path], settings: InParts, inputs: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.command = shlex.join(["p2phd", *map(str, command), *_flags(settings)])
        values = settings.model_dump(mode="json", exclude={"part", "merge", "batch_size", "devices"})
        self.settings = {flag_name("", name, own=True): value for name, value in values.items()}
        self.inputs = {"version of p2phd": __version__, **inputs}

    @contextmanager
    def working(self, part: Part) -> Iterator[Made]:
        """Do a part, which is done if nothing is raised. Yields its files, for the caller to keep and to add to.

        There are some already if it was done before, or begun, with the same settings from the same inputs. Raises `P2PHDError`
        if another process is doing it, or others that would not go with it.
        """
        with held(self.folder, shared=True), self._locked(part):
            old = self._record(part)
            made = dict(old.made) if old is not None and not self._difference(old) else {}
            self.note(part, made)
            self._refuse_strangers(part)
            yield made
            self.note(part, made, done=True)

    def note(self, part: Part, made: Made, *, done: bool = False) -> None:
        """Record how far a part is."""
        record = PartRecord(part=str(part), done=done, settings=self.settings, inputs=self.inputs, made=made)
        write_text(self._path(part, "json"), seal(record.model_dump(mode="json")))

    def said(self, part: Part) -> str:
        """What to do after this part."""
        return f"part {part.number} of {part.of} is done; when all are, `{self.command} --merge`"

    @contextmanager
    def merging(self) -> Iterator[list[tuple[Part, Made]]]:
        """Yield all parts, in order, with their files; their records are gone afterwards.

        Raises `P2PHDError` naming those that are missing, not finished, at work, or made with something else.
        """
        self.require()
        with self._alone():
            yield self._complete()
            self._delete()

    def require(self) -> None:
        """Raise `P2PHDError` unless a part was begun that is not merged."""
        self._clear()
        if not self.folder.is_dir():
            raise P2PHDError(
                f"{self.folder}: there are no parts to merge; `{self.command} --part 1/N` makes the first of N, "
                "if they are not merged already"
            )

    def forget(self) -> None:
        """Delete what is left of parts, before the work is done in one piece; raises `P2PHDError` if one is at work."""
        self._clear()
        if self.folder.is_dir():
            with self._alone():
                self._delete()

    def find(self, part: Part, name: str, made: Made, *roots: Path) -> Path:
        """A part's file, in one of these folders; raises `P2PHDError` if it is not there as the part left it."""
        for root in roots:
            if (root / name).is_file() and checksum(root / name) == made[name]:
                return root / name
        raise P2PHDError(f"{roots[0] / name}: is not as part {part} left it; repeat {self.repeat([part])}")

    def repeat(self, parts: Sequence[Part]) -> str:
        """The command for a part, or for the first of several."""
        return f"`{self.command} --part {parts[0]}`{', and so on,' if len(parts) > 1 else ''} and then merge"

    def _complete(self) -> list[tuple[Part, Made]]:
        """The parts of that number of which all are there, and go with this merge."""
        wrong = []
        for of, records in self._records().items():
            every = [Part(number, of) for number in range(1, of + 1)]
            faults: dict[str, list[Part]] = defaultdict(list)
            for part in every:
                if fault := self._fault(records.get(part)):
                    faults[fault].append(part)
            if not faults:
                return [(part, records[part].made) for part in every]
            wrong += [f"{_listed(those)} {fault}; repeat {self.repeat(those)}" for fault, those in faults.items()]
        raise P2PHDError(f"{self.folder}: {'. '.join(wrong) or f'no part was begun; {self.command} --part 1/N does'}")

    def _fault(self, record: PartRecord | None) -> str:
        """Why a part cannot be merged; empty if it can."""
        if record is None:
            return MISSING
        return self._difference(record) or ("" if record.done else STOPPED)

    def _difference(self, record: PartRecord) -> str:
        """What a part was made with that is another here; empty if there is nothing."""
        for flag, here in self.settings.items():
            if (there := record.settings.get(flag)) != here:
                return f"made with {flag} {_shown(there)} instead of {_shown(here)}"
        for name, here in self.inputs.items():
            if (there := record.inputs.get(name)) != here:
                return f"made from another {name} ({there or 'none'}, and now it is {here})"
        return ""

    def _records(self) -> dict[int, dict[Part, PartRecord]]:
        """The records that can be read, by the number of parts."""
        found: dict[int, dict[Part, PartRecord]] = defaultdict(dict)
        for part in self._named("json"):
            if (record := self._record(part)) is not None:
                found[part.of][part] = record
        return found

    def _record(self, part: Part) -> PartRecord | None:
        try:
            record = read_sealed(self._path(part, "json"), PartRecord)
        except (FileNotFoundError, P2PHDError):
            return None
        return record if record.part == str(part) else None

    def _named(self, suffix: str) -> list[Part]:
        """The parts that have a file with this suffix."""
        found = []
        for path in self.folder.glob(f"*-of-*.{suffix}"):
            try:
                found.append(parse_part(path.stem.replace("-of-", "/")))
            except ValueError:
                continue
        return sorted(found)

    def _path(self, part: Part, suffix: str) -> Path:
        return self.folder / f"{part.number}-of-{part.of}.{suffix}"

    @contextmanager
    def _locked(self, part: Part) -> Iterator[None]:
        """Keep a part to this process; raises `P2PHDError` if another has it."""
        descriptor = os.open(self._path(part, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            if not take_lock(descriptor):
                raise P2PHDError(f"{self.folder}: another process is at work on part {part}; wait for it")
            yield
        finally:
            os.close(descriptor)

    def _refuse_strangers(self, part: Part) -> None:
        """Refuse to work beside parts that would write other things to the same places."""
        for of, records in self._records().items():
            for other, record in records.items():
                if not record.done and (of != part.of or self._difference(record)):
                    with self._locked(other):
                        pass

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse to go on while any part is at work, and keep others from beginning."""
        for part in self._named("lock"):
            with self._locked(part):
                pass
        with held(self.folder):
            yield

    def _delete(self) -> None:
        """Take all records away at once, and then from the disk."""
        self.folder.replace(self._gone)
        sync(self.folder.parent)
        self._clear()

    def _clear(self) -> None:
        refuse_links(self._gone)
        shutil.rmtree(self._gone, ignore_errors=True)

    @property
    def _gone(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}-merged")


def _flags(settings: InParts) -> list[str]:
    """The flags that give these settings, but the part."""
    words = []
    for name, field in type(settings).model_fields.items():
        value, flag = getattr(settings, name), flag_name("", name, own=True)
        if name in ("part", "merge") or value == field.get_default():
            continue
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [f"{flag}={one}" for one in (value if isinstance(value, tuple) else (value,))]
    return words


def _shown(value: object) -> str:
    """A setting's value as a user knows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def _listed(parts: Sequence[Part]) -> str:
    """Part 2/5 is, or parts 2/5, 3/5 are."""
    names = ", ".join(map(str, parts[:SHOWN])) + (f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else "")
    return f"part {names} is" if len(parts) == 1 else f"parts {names} are"
