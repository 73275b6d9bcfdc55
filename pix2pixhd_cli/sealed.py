"""JSON files with a checksum of their own, so that a flipped bit is never taken for a setting."""

import json
import zlib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pix2pixhd_cli.errors import P2PHDError, check_regular, naming
from pix2pixhd_cli.urls import Location

KEY = "checksum"
Model = TypeVar("Model", bound=BaseModel)


def seal(values: Mapping[str, Any]) -> str:
    """The text of a JSON file that holds `values` and, last, their checksum."""
    plain = json.loads(json.dumps(values))
    return json.dumps({**plain, KEY: _checksum(plain)}, indent=1) + "\n"


def unseal(text: str) -> dict[str, Any]:
    """The values of such a file, or of one whose checksum is null; raises `ValueError` if it is not what was written."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
        if values.pop(KEY, "") not in (None, _checksum(values)):
            raise ValueError(f'it does not fit its checksum; if you changed it, make the last line "{KEY}": null')
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return values


def read_sealed(path: Location, model: type[Model]) -> Model:
    """What such a file holds, as `model` has it; raises `FileNotFoundError`, and `P2PHDError` for what is wrong with it."""
    check_regular(path)
    try:
        with naming(path):
            return model.model_validate(unseal(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise P2PHDError(f"{path}: damaged or of another version ({explain(error)})") from None
    except ValueError as error:
        raise P2PHDError(f"{path}: damaged ({error})") from None


def explain(error: ValidationError) -> str:
    """The first thing that is wrong: where it stands, and why."""
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"


def _checksum(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"
