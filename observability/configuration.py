"""A service's settings from flags, environment and file; one clear line for a bad one."""

import argparse
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsError,
)

S = TypeVar("S", bound=BaseSettings)

_MAX_SHOWN = 80


class BadConfiguration(Exception):
    """Settings that cannot be used.

    Attributes:
        lines: one for each bad value: its name, what it got, what it may be.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


def load(settings_class: type[S], program: str, arguments: Sequence[str]) -> S:
    """The settings; a flag beats the environment, which beats the --config file.

    Args:
        settings_class: with env_prefix and env_nested_delimiter in its model_config.
        program: for --help.
        arguments: without the program's name: --server.listen ADDRESS,
            --config FILE.toml and so on.

    Raises:
        BadConfiguration: a value is bad, a name is unknown, or the file cannot be read.
        SystemExit: after --help.
    """
    file, flags = split_file(arguments)
    _refuse_unknown_variables(settings_class, os.environ)
    from_file = _with_file(settings_class, _read(file) if file else {})
    try:
        return from_file(
            _cli_parse_args=flags,
            _cli_prog_name=f"{program} [--config FILE.toml]",
            _cli_exit_on_error=False,
            _cli_implicit_flags=True,
            _cli_avoid_json=True,
        )
    except ValidationError as error:
        raise BadConfiguration(
            [_line(settings_class, detail) for detail in error.errors(include_url=False)]
        ) from error
    except SettingsError as error:
        raise BadConfiguration([" ".join(str(error).split())]) from error


def split_file(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The --config file, if one is named, and the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE.toml")
    chosen, flags = parser.parse_known_args(arguments)
    return chosen.config, flags


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfiguration([f"--config {path}: {error.strerror}"]) from error
    except (ValueError, RecursionError) as error:  # malformed TOML, or not UTF-8
        raise BadConfiguration([f"--config {path} is not TOML: {error}"]) from error


def _with_file(settings_class: type[S], values: Mapping[str, Any]) -> type[S]:
    """The same settings with a file's values as their weakest source."""

    class WithFile(settings_class):  # type: ignore[valid-type,misc]  # a class made from a class
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            strong = super().settings_customise_sources(
                settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings
            )
            return (*strong, InitSettingsSource(settings_cls, dict(values)))

    WithFile.__doc__ = settings_class.__doc__
    return WithFile


def _refuse_unknown_variables(
    settings_class: type[BaseSettings], environment: Mapping[str, str]
) -> None:
    """pydantic-settings reads the variables it knows and ignores the misspelt ones."""
    prefix = (settings_class.model_config.get("env_prefix") or "").upper()
    delimiter = settings_class.model_config.get("env_nested_delimiter") or "__"
    if not prefix:
        return
    known = {name.upper() for name in settings_class.model_fields}
    unknown = [
        name
        for name in sorted(environment)
        if name.upper().startswith(prefix)
        and name.upper().removeprefix(prefix).split(delimiter.upper())[0] not in known
    ]
    if unknown:
        may_be = ", ".join(f"{prefix}{name}" for name in sorted(known))
        raise BadConfiguration(
            [f"environment variable {name} is unknown; it may be {may_be}" for name in unknown]
        )


def _line(settings_class: type[BaseSettings], detail: ErrorDetails) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown setting {name}; it may be {', '.join(_siblings(settings_class, detail))}"
    if detail["type"] == "missing":
        return f"setting {name} is missing: {_where(settings_class, name)}"
    got = repr(detail["input"])
    if len(got) > _MAX_SHOWN:
        got = f"{got[:_MAX_SHOWN]}…"
    rule = detail["msg"][:1].lower() + detail["msg"][1:]
    return f"setting {name}: got {got}; {rule} ({_where(settings_class, name)})"


def _where(settings_class: type[BaseSettings], name: str) -> str:
    prefix = settings_class.model_config.get("env_prefix") or ""
    delimiter = settings_class.model_config.get("env_nested_delimiter") or "__"
    return f"--{name} or {prefix}{name.replace('.', delimiter).upper()}"


def _siblings(settings_class: type[BaseModel], detail: ErrorDetails) -> list[str]:
    """The names that may stand where the unknown one does."""
    model: type[BaseModel] = settings_class
    path = [str(part) for part in detail["loc"][:-1]]
    for part in path:
        field = model.model_fields.get(part)
        model = next(_models(field.annotation), model) if field else model
    return [".".join((*path, name)) for name in model.model_fields]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings models inside an annotation such as `TlsSettings | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)
