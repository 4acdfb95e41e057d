import sys

import pytest

from tests.agents.echo import Echo
from trl_ext.agents import registry
from trl_ext.agents.registry import list_environments, make_environment, register_environment
from trl_ext.errors import ConfigError


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(registry, "_ENVIRONMENTS", dict(registry._ENVIRONMENTS))


@pytest.mark.parametrize("name", list_environments())
def test_every_environment_that_ships_is_made_and_has_players(name):
    environment = make_environment(name)
    assert {"random", "scripted"} <= set(environment.players)
    assert environment.reset(**environment.rows(1)[0])


def test_an_environment_is_found_by_module_and_class():
    assert make_environment("tests.agents.echo:Echo", turns_needed=3).turns_needed == 3


def test_a_module_of_the_current_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_of_this_test.py").write_text("from tests.agents.echo import Echo\n")
    assert isinstance(make_environment("mine_of_this_test:Echo"), Echo)


def test_an_environment_can_be_registered():
    register_environment("echo", Echo)
    register_environment("later", "tests.agents.echo:Echo")
    assert isinstance(make_environment("echo"), Echo)
    assert isinstance(make_environment("later"), Echo)
    assert "echo" in list_environments()


class Greeter:
    """Text in, text out, with Gymnasium's interface and nothing of ours."""

    def reset(self, seed=None, options=None):
        return f"hello {seed}", {}

    def step(self, action):
        return f"you said {action}", 1.0, True, False, {"success": action == "hi"}


def test_an_environment_of_gymnasium_is_found_too():
    environment = make_environment("tests.agents.test_registry:Greeter")
    assert environment.reset(**environment.rows(1, seed=3)[0]) == "hello 3"
    assert environment.step("hi") == ("you said hi", 1.0, True, False, {"success": True})
    assert environment.players == {}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("game_2049", {}, "no environment 'game_2049'; close ones: game_2048"),
        ("no.such.module:X", {}, "cannot be imported"),
        ("tests.agents.echo:Missing", {}, "cannot be imported"),
        ("tests.agents.echo:Step", {}, "environment 'tests.agents.echo:Step' with {}: "),
        ("collections:OrderedDict", {}, "has no methods 'reset' and 'step'"),
        ("grid_world", {"size": 9}, "environment 'grid_world' with {'size': 9}: "),
    ],
)
def test_what_cannot_be_made_is_one_line(name, options, message):
    with pytest.raises(ConfigError) as error:
        make_environment(name, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
