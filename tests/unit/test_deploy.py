"""What deploy/ ships: settings files that each service accepts."""

from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from cache_svc.settings import CacheSettings
from inference_svc.settings import WorkerSettings
from observability.configuration import load
from router.settings import RouterSettings

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "config"
SETTINGS: dict[str, type[BaseSettings]] = {
    "cache": CacheSettings,
    "worker": WorkerSettings,
    "router": RouterSettings,
}


def test_every_file_belongs_to_a_service() -> None:
    """No settings file is shipped untested."""
    assert {path.stem for path in CONFIG.glob("*.toml")} == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_shipped_settings_file_is_accepted(name: str) -> None:
    """Every field in it exists and has a value it may have."""
    settings = load(SETTINGS[name], name, ["--config", str(CONFIG / f"{name}.toml")])
    assert isinstance(settings, SETTINGS[name])


def test_the_parts_of_the_shipped_files_fit() -> None:
    """The router dials what the others listen on."""
    loaded = {
        name: load(cls, name, ["--config", str(CONFIG / f"{name}.toml")])
        for name, cls in SETTINGS.items()
    }
    router, cache, worker = loaded["router"], loaded["cache"], loaded["worker"]
    assert isinstance(router, RouterSettings)
    assert isinstance(cache, CacheSettings)
    assert isinstance(worker, WorkerSettings)
    assert router.cache == cache.server.listen
    assert router.workers == [worker.server.listen]
