"""Errors that say what to do: each also inherits the standard type that a caller would catch."""

import difflib
from collections.abc import Iterable


class TrlExtError(Exception):
    """Base of every error that trl-ext raises on purpose. The message is one line and names the remedy."""


class ConfigError(TrlExtError, ValueError):
    """A configuration value is out of range, or two values contradict each other."""


class DatasetError(TrlExtError, ValueError):
    """A dataset lacks a column, has no rows, or holds the wrong type."""


class ModelNotFoundError(TrlExtError, OSError):
    """A model is neither a folder here nor a model that can be fetched."""


class OutputDirError(TrlExtError, OSError):
    """The output folder cannot be written."""


class TrlContractError(TrlExtError, ImportError):
    """The installed TRL does not have the hooks that trl-ext hangs on."""


class MissingExtraError(TrlExtError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""


class RewardError(TrlExtError, RuntimeError):
    """A reward could not score a batch: a missing column, an exception in a scorer, a wrong number of scores."""


class CheckpointError(TrlExtError, OSError):
    """A checkpoint cannot be written, or a run cannot go on from it; names the file."""


class ActionError(TrlExtError, ValueError):
    """A model's text is no action of the environment. The message is written for the model, which may try again."""


class EnvironmentStepError(TrlExtError, RuntimeError):
    """An environment returned something that is no observation or no step: its episode has failed."""


class EpisodeFailuresError(TrlExtError, RuntimeError):
    """More episodes failed than a rollout's `max_failures` allows; the message has the first of them."""


class ServerError(TrlExtError, ConnectionError):
    """A rollout server did not start, is not there, or turns this worker away."""


def choices(name: str, known: Iterable[str]) -> str:
    """What an error about an unknown name says of those that are known: the close ones, or all where none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names)
    return f"close ones: {', '.join(close)}" if close else f"there are: {', '.join(names)}"
