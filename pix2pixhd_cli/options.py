"""Settings fields become Typer options: name, type, range, choices, help, default and environment variable.

No option is written twice: a verb names the sections it reads, and `with_settings` gives it one option per field.
"""

import functools
import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import typer
from pydantic.fields import FieldInfo
from rich.markup import escape

from pix2pixhd_cli.settings import Settings, Values, env_name, fields, flag_name, load_settings, off
from pix2pixhd_cli.urls import Location

RunRule = Callable[[dict[str, Any]], Location | None]
CONFIG = typer.Option(
    "--config", metavar="FILE.toml", help="Read settings from a TOML file; flags and environment win."
)


def with_settings(
    *sections: str, run: RunRule = lambda _: None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option per field of `sections` (its own first) and hand it the merged `settings`.

    `run` names, from the command's other arguments, the run whose settings lie below all others.
    """
    declared = {
        f"{section}__{name}": (section, name, field)
        for section in sections
        for s, name, field in fields()
        if s == section
    }

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = {name: p for name, p in inspect.signature(function).parameters.items() if name != "settings"}

        @functools.wraps(function)
        def command(**values: Any) -> None:
            context, config = values.pop("context"), values.pop("config")
            typed: Values = {}
            for key, (section, name, _) in declared.items():
                value = values.pop(key)
                if context.get_parameter_source(key).name == "COMMANDLINE":
                    typed.setdefault(section, {})[name] = value
            settings = load_settings(typed, config, run(values), resume=bool(values.get("resume")))
            function(**values, settings=settings)

        parameters = [
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values()),
            inspect.Parameter(
                "config", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[Path | None, CONFIG], default=None
            ),
            *(
                _parameter(key, *declaration, own=declaration[0] == sections[0])
                for key, declaration in declared.items()
            ),
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def settings_table() -> str:
    """Every setting as a Markdown table, for the README."""
    rows = ["| setting | flag | type | default | what it does |", "|---|---|---|---|---|"]
    for section, name, field in fields():
        own = section not in ("generator", "discriminator", "encoder", "loss")
        cells = (
            f"`{section}.{name}`",
            f"`{flag_name(section, name, own)}`",
            type_text(field),
            f"`{default_text(field)}`" if default_text(field) else "",
            field.description or "",
        )
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def settings_toml() -> str:
    """Every setting as a commented TOML file that changes nothing until a line is uncommented.

    Settings without a default show an example.
    """
    lines = ["# p2phd settings. Uncomment what you want to change; flags and environment variables win over this file."]
    for section, declaration in Settings.model_fields.items():
        model = declaration.annotation
        lines += ["", f"# {(model.__doc__ or '').splitlines()[0]}" if model else "", f"[{section}]"]
        for _, name, field in (entry for entry in fields() if entry[0] == section):
            lines += [f"# {field.description} ({type_text(field)})", f"# {name} = {_toml_value(_example(field))}"]
    return "\n".join(lines) + "\n"


def type_text(field: FieldInfo) -> str:
    """A field's type and range in words: `integer ≥ 1`, `a, b or c`."""
    annotation, repeatable = _plain_type(field.annotation)
    if get_origin(annotation) is Literal:
        text = ", ".join(get_args(annotation))
    else:
        text = {int: "integer", float: "number", bool: "switch", str: "text", Path: "path"}[annotation]
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{signs[key]} {value}" for key, value in _bounds(field).items()]
    return " ".join([text, ", ".join(bounds)]).strip() + (", repeatable" if repeatable else "")


def default_text(field: FieldInfo) -> str:
    """A field's default as a user would type it; empty where there is none."""
    default = field.get_default()
    if default is None or default == ():
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _parameter(key: str, section: str, name: str, field: FieldInfo, own: bool) -> inspect.Parameter:
    """One settings field as the parameter of a Typer command."""
    annotation, repeatable = _plain_type(field.annotation)
    flag = flag_name(section, name, own)
    default = field.get_default()
    bounds = _bounds(field)
    option = typer.Option(
        list(default) or None if isinstance(default, tuple) else default,
        f"{flag}/{off(flag)}" if annotation is bool else flag,
        help=escape(_help(field, annotation)),
        rich_help_panel=_panel(section),
        show_default=bool(default_text(field)),
        min=bounds.get("ge"),
        max=bounds.get("le"),
        metavar=_metavar(field, annotation),
    )
    kind: Any = list[annotation] if repeatable else annotation  # type: ignore[valid-type]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=kind | None, default=option)


def _panel(section: str) -> str:
    """A section's heading in the help, with the environment variables of its options."""
    first = next(name for s, name, _ in fields() if s == section)
    return f"{section.capitalize()} (environment: {env_name(section, first)} …)"


def _help(field: FieldInfo, annotation: Any) -> str:
    """The description, with the choices, and the bounds that Typer does not show."""
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    strict = [f"{sign} {_bounds(field)[key]:g}" for key, sign in (("gt", ">"), ("lt", "<")) if key in _bounds(field)]
    extra = [f"One of {', '.join(choices)}."] if choices else []
    return " ".join([field.description or "", *extra, *(f"({', '.join(strict)})" for _ in strict[:1])])


def _metavar(field: FieldInfo, annotation: Any) -> str | None:
    """What to type: HEIGHTxWIDTH or OLD=NEW where the help says so."""
    if get_origin(annotation) is Literal:
        return "CHOICE"
    if annotation is not str:
        return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(annotation)
    words = (word.strip(".,;:") for word in (field.description or "").split())
    return next((w for w in words if ("x" in w or "=" in w) and w.replace("x", "").replace("=", "").isupper()), "TEXT")


def _plain_type(annotation: Any) -> tuple[Any, bool]:
    """Strip `| None`, annotations and tuples: the type of one value, and whether there may be several."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if hasattr(annotation, "__metadata__"):
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is tuple:
        return _plain_type(get_args(annotation)[0])[0], True
    return annotation, False


def _bounds(field: FieldInfo) -> dict[str, float]:
    bounds: dict[str, float] = {}
    for item in field.metadata:
        for key, kind in (
            ("ge", annotated_types.Ge),
            ("gt", annotated_types.Gt),
            ("le", annotated_types.Le),
            ("lt", annotated_types.Lt),
        ):
            if isinstance(item, kind):
                bounds[key] = getattr(item, key)
    return bounds


def _example(field: FieldInfo) -> object:
    """The default, or what a value could look like where there is none."""
    default = field.get_default()
    return default if default is not None else (field.examples or [""])[0]


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return str(value) if isinstance(value, int | float) else f'"{value}"'
