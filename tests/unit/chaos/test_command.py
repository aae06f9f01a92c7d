"""``python -m chaos``: what it lists, shows and refuses."""

import importlib
import inspect
import json

import pytest

from chaos.__main__ import main
from chaos.experiments import EXPERIMENTS


def test_lists_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, with what it claims."""
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_shows_an_experiment_that_the_chaos_toolkit_can_resolve(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every activity names a function that exists and takes exactly the arguments given."""
    assert main(["show", name]) == 0
    shown = json.loads(capsys.readouterr().out)
    extension = shown["extensions"][0]
    activities = [
        *shown["steady-state-hypothesis"]["probes"],
        *shown["method"],
        *shown["rollbacks"],
        *extension["proof"]["probes"],
        *extension["invariant"]["probes"],
        *extension["stop-conditions"],
        extension["recovery"]["probe"],
    ]
    assert shown["configuration"].keys() == {"stage"}
    for activity in activities:
        provider = activity["provider"]
        function = getattr(importlib.import_module(provider["module"]), provider["func"])
        inspect.signature(function).bind(**provider["arguments"])
        assert ("tolerance" in activity) == (activity["type"] == "probe")


@pytest.mark.parametrize("arguments", [["run"], ["run", "nonsense"], ["show", "nonsense"]])
def test_refuses_what_it_does_not_know(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown name is an error that says which names there are."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "cache-killed" in capsys.readouterr().err
