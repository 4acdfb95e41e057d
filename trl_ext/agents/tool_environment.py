"""An environment for TRL's `environment_factory`: its actions as tools, the sum of its rewards as the reward."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from trl_ext.agents.environment import Environment, as_text
from trl_ext.errors import ActionError, ConfigError

OVER = "The episode is over."


def tool_environment(factory: Callable[[], Environment]) -> type:
    """A class to pass as `environment_factory=`, whose tools are `Environment.tools` and nothing else.

    TRL takes every public method for a tool, which `step` is not. `reset` returns the first observation, which TRL
    appends to the prompt; `get_reward` the sum of the rewards of all steps; a tool that is called after the end of the
    episode changes nothing.

    Raises:
        ConfigError: the environment has no tools, or its `reset` is a coroutine function, which TRL does not await.
    """
    probe = factory()
    name = type(probe).__name__
    if not probe.tools:
        raise ConfigError(f"{name} has no tools: TRL's environment_factory needs at least one")
    if inspect.iscoroutinefunction(probe.reset):
        raise ConfigError(f"{name}.reset is a coroutine function, which TRL's environment_factory does not await")
    methods = {tool.__name__: _delegate(tool) for tool in probe.tools}
    probe.close()
    return type(name, (_ToolEnvironment,), {**methods, "_factory": staticmethod(factory), "__doc__": probe.__doc__})


class _ToolEnvironment:
    _factory: Callable[[], Environment]

    def __init__(self) -> None:
        self._environment = self._factory()
        self._environment.step = self._booked(self._environment.step)  # type: ignore[method-assign]
        self._reward, self._over = 0.0, False

    def reset(self, **row: Any) -> str:
        self._reward, self._over = 0.0, False
        return as_text(self._environment.reset(**row))

    def get_reward(self) -> float:
        return self._reward

    def _booked(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """`step`, with its reward added up: the tools call it."""

        @functools.wraps(step)
        def booked(action: Any) -> Any:
            return self._book(step(action))

        @functools.wraps(step)
        async def booked_later(action: Any) -> Any:
            return self._book(await step(action))

        return booked_later if inspect.iscoroutinefunction(step) else booked

    def _book(self, step: Any) -> Any:
        _, reward, terminated, truncated, _ = step
        self._reward += float(reward)
        self._over = bool(terminated or truncated)
        return step

    def _invalid(self, error: ActionError) -> str:
        return as_text(self._book(self._environment.invalid(error))[0])


def _delegate(tool: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the name, signature and docstring of a bound method, which calls it on the wrapped one."""
    name = tool.__name__

    @functools.wraps(_function(tool))
    def call(self: _ToolEnvironment, *args: Any, **kwargs: Any) -> Any:
        try:
            return OVER if self._over else getattr(self._environment, name)(*args, **kwargs)
        except ActionError as error:
            return self._invalid(error)

    @functools.wraps(_function(tool))
    async def call_later(self: _ToolEnvironment, *args: Any, **kwargs: Any) -> Any:
        try:
            return OVER if self._over else await getattr(self._environment, name)(*args, **kwargs)
        except ActionError as error:
            return self._invalid(error)

    return call_later if inspect.iscoroutinefunction(tool) else call


def _function(tool: Any) -> Callable[..., Any]:
    if not inspect.ismethod(tool):
        raise ConfigError(f"tool {tool!r}: must be a bound method of the environment")
    return tool.__func__
