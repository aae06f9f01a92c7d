from pathlib import Path

import pytest
from pydantic_settings import BaseSettings, SettingsConfigDict

from observability.configuration import BadConfiguration, load
from observability.settings import ServerSettings, TelemetrySettings


class RoomSettings(BaseSettings):
    """A room's settings."""

    model_config = SettingsConfigDict(
        env_prefix="SIDECACHE_TEST_", env_nested_delimiter="__", frozen=True
    )

    server: ServerSettings = ServerSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    workers: list[str] = []
    limit: int = 3


def read(*arguments: str) -> RoomSettings:
    return load(RoomSettings, "sidecache-test", arguments)


def complaint(*arguments: str) -> str:
    with pytest.raises(BadConfiguration) as refused:
        read(*arguments)
    [line] = refused.value.lines
    assert "\n" not in line
    return line


def test_defaults_need_nothing() -> None:
    """Without flags, environment and file a service has its defaults."""
    assert read().model_dump() == RoomSettings().model_dump()
    assert isinstance(read(), RoomSettings)


def test_the_stronger_source_wins_field_by_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag beats the environment, which beats the file; fields nobody names keep theirs."""
    file = tmp_path / "room.toml"
    file.write_text(
        'limit = 5\nworkers = ["a", "b"]\n'
        '[server]\nlisten = "127.0.0.1:1"\ndrain_grace_s = 1.5\nmax_message_bytes = 2048\n'
    )
    monkeypatch.setenv("SIDECACHE_TEST_SERVER__LISTEN", "127.0.0.1:2")
    monkeypatch.setenv("SIDECACHE_TEST_SERVER__DRAIN_GRACE_S", "2.5")
    settings = read("--config", str(file), "--server.listen", "127.0.0.1:3")
    assert settings.server.listen == "127.0.0.1:3"
    assert settings.server.drain_grace_s == 2.5
    assert settings.server.max_message_bytes == 2048
    assert (settings.limit, settings.workers) == (5, ["a", "b"])


def test_lists_and_switches_as_flags() -> None:
    """A list is given by repeating its flag, a switch by its name."""
    settings = read("--workers", "a", "--workers", "b", "--server.reuse_port")
    assert settings.workers == ["a", "b"]
    assert settings.server.reuse_port


def test_a_bad_value_is_one_line() -> None:
    """The line names the setting, what it got, what it may be and where to set it."""
    line = complaint("--telemetry.trace_sample_ratio", "7")
    assert "telemetry.trace_sample_ratio: got '7'" in line
    assert "less than or equal to 1" in line
    assert "SIDECACHE_TEST_TELEMETRY__TRACE_SAMPLE_RATIO" in line


def test_each_bad_value_has_its_line() -> None:
    """Two mistakes are told at once."""
    with pytest.raises(BadConfiguration) as refused:
        read("--limit", "many", "--telemetry.log_level", "LOUD")
    assert len(refused.value.lines) == 2
    assert any("'DEBUG', 'INFO', 'WARNING' or 'ERROR'" in line for line in refused.value.lines)


def test_unknown_names_are_refused_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt flag, variable or key is told with what it may be, never ignored."""
    assert "--limitt" in complaint("--limitt", "1")
    file = tmp_path / "room.toml"
    file.write_text('[server]\nlisen = "x"\n')
    line = complaint("--config", str(file))
    assert "unknown setting server.lisen; it may be server.listen, " in line
    with monkeypatch.context() as patch:
        patch.setenv("SIDECACHE_TEST_SERVER__LISEN", "x")
        assert "unknown setting server.lisen" in complaint()
    monkeypatch.setenv("SIDECACHE_TEST_LIMITT", "1")
    assert "SIDECACHE_TEST_LIMITT is unknown; it may be SIDECACHE_TEST_LIMIT, " in complaint()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing, malformed or binary file stops the start instead of being skipped."""
    assert "No such file" in complaint("--config", str(tmp_path / "none.toml"))
    file = tmp_path / "bad.toml"
    file.write_text("limit = \n")
    assert f"{file} is not TOML" in complaint("--config", str(file))
    file.write_text("limit = " + "[" * 20_000)
    assert f"{file} is not TOML" in complaint("--config", str(file))
    file.write_bytes(b"\xff\xfe")
    assert f"{file} is not TOML" in complaint("--config", str(file))


def test_a_long_value_is_cut() -> None:
    """A line stays readable whatever it quotes."""
    assert len(complaint("--limit", "9" * 5000 + "x")) < 300


@pytest.mark.parametrize(
    "flags",
    [
        ("--server.drain_grace_s", "-1"),
        ("--server.drain_grace_s", "inf"),
        ("--server.max_message_bytes", "0"),
        ("--telemetry.metrics_interval_s", "0"),
        ("--telemetry.shutdown_timeout_s", "nan"),
    ],
)
def test_limits_are_limits(flags: tuple[str, str]) -> None:
    """No setting can turn a bound off by accident."""
    assert flags[0].removeprefix("--") in complaint(*flags)
