"""A tenant's limits in the router's keys file.

::

    [[tenants]]
    tenant = "acme"
    weight = 2.0
    tokens_per_minute = 100000
    requests_per_minute = 600
    max_in_flight = 64

Routers read a changed file by themselves, within seconds.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from sidecache.durable_file import locked, write_atomically
from sidecache.errors import InvalidRequest, SetupError
from sidecache.keys_file import LOCK_WAIT_S, check_tenant, lock_path, read_keys_text

COUNTS = ("tokens_per_minute", "requests_per_minute", "max_in_flight")
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000.0
_TABLE = re.compile(r"^\s*\[", re.MULTILINE)


def set_limits(path: Path, *, tenant: str, limits: Mapping[str, float | None]) -> None:
    """Write a tenant's limits; those not named stay, and None takes one away.

    Everything else in the file stays as it was written.

    Raises:
        InvalidRequest: not a tenant's name, or a value that a limit may not have.
        SetupError: the file cannot be written, or is not a keys file.
    """
    check_tenant(tenant)
    for name, value in limits.items():
        _check(name, value)
    try:
        with locked(lock_path(path), wait_s=LOCK_WAIT_S):
            text = read_keys_text(path)
            write_atomically(path, _with_limits(text, tenant, limits).encode())
    except TimeoutError as error:
        raise SetupError(str(error)) from error
    except OSError as error:
        raise SetupError(f"cannot write the keys file {path}: {error.strerror}") from error


def _check(name: str, value: float | None) -> None:
    if value is None:
        return
    if name == "weight":
        if not (math.isfinite(value) and MIN_WEIGHT <= value <= MAX_WEIGHT):
            raise InvalidRequest(
                f"{value:g}; may be {MIN_WEIGHT:g} to {MAX_WEIGHT:g}", field="weight"
            )
    elif value < 1:
        raise InvalidRequest(f"{value}; may be 1 or more", field=name)


def _with_limits(text: str, tenant: str, limits: Mapping[str, float | None]) -> str:
    """The text with the tenant's table replaced where it stands, or added at the end."""
    starts = [match.start() for match in _TABLE.finditer(text)]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        table = _tenant_table(text[start:end])
        if table.get("tenant") == tenant:
            comments = [line for line in text[start:end].splitlines() if line.startswith("#")]
            written = _table(tenant, {**table, **limits})
            kept = "".join(f"{line}\n" for line in comments)
            gap = "\n" if end < len(text) and not kept else ""
            return text[:start] + written + kept + gap + text[end:]
    return text + ("\n" if text else "") + _table(tenant, limits)


def _tenant_table(block: str) -> dict[str, object]:
    """What a block of the file says of a tenant; empty: it is about something else."""
    try:
        tables = tomllib.loads(block).get("tenants")
    except tomllib.TOMLDecodeError:  # an array over several lines, cut in the middle
        return {}
    return tables[0] if isinstance(tables, list) and isinstance(tables[0], dict) else {}


def _table(tenant: str, limits: Mapping[str, object]) -> str:
    lines = ["[[tenants]]", f'tenant = "{tenant}"']
    lines += [f"{n} = {limits[n]}" for n in ("weight", *COUNTS) if limits.get(n) is not None]
    return "\n".join(lines) + "\n"
