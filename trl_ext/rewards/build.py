"""From a spec to TRL reward callables."""

import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_ext.errors import ConfigError, MissingExtraError, RewardError, TrlExtError
from trl_ext.rewards.composites import combine
from trl_ext.rewards.postprocess import EMANormalize, Scores
from trl_ext.rewards.spec import Node, load_spec, parse
from trl_ext.rewards.text import as_text

Spec = dict[str, Any] | str | Path


@dataclass
class Batch:
    """What a reward is called with, as text. `fallback_target` stands in for a target column that is missing."""

    texts: list[str]
    prompts: list[str]
    columns: dict[str, list[Any]]
    fallback_target: list[Any] | None = None


class Reward:
    """A TRL reward callable made from a spec: a leaf that scores, or a composite of others. Pickles.

    `__name__` is unique within a spec: TRL logs by it. `.children` are the components of a composite.
    """

    def __init__(self, node: Node, plugins: Sequence[str] = ()):
        self.spec, self.common, self.type, self.plugins = node.spec, node.common, node.type, tuple(plugins)
        self.__name__ = node.common.name or node.type
        self.children = [Reward(child, plugins) for child in node.children]
        self._options = node.options
        self._errors = 0
        self._scorer: Callable[..., Any] | None = None
        self._per_completion = True
        if node.reward_type is not None:
            try:
                self._scorer = node.reward_type.make(**node.options)
            except ValueError as error:
                raise ConfigError(f"{node.path}: {error}") from None
            self._per_completion = node.reward_type.per_completion
            self._extra = node.reward_type.extra or "rewards"
            self._parameters = inspect.signature(self._scorer).parameters

    def __call__(
        self,
        completions: list[Any],
        prompts: list[Any] | None = None,
        completion_ids: Any = None,
        trainer_state: Any = None,
        log_extra: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        environments: Any = None,
        **columns: list[Any],
    ) -> Scores:
        """One float or None per completion; completions and prompts are text or chat, as TRL passes them."""
        texts = [as_text(completion) for completion in completions]
        batch = Batch(texts, [as_text(prompt) for prompt in prompts or [""] * len(texts)], columns)
        return self._scores(batch, log_metric)

    def score(self, response: str, target: Any, prompt: str = "", item: dict[str, Any] | None = None) -> float:
        """The score of one response; NaN where it cannot be scored. `item` is a row of the dataset.

        `target` stands in for every target column that `item` does not have.
        """
        columns = {key: [value] for key, value in (item or {}).items()}
        (score,) = self._scores(Batch([response or ""], [prompt], columns, [target]), None)
        return math.nan if score is None else score

    def state_dict(self) -> dict[str, Any]:
        """What training has to keep: the averages of every `ema_normalize`, by name and place."""
        state = {f"{self.__name__}/{place}": step.state_dict() for place, step in self._averages()}
        for child in self.children:
            state |= {f"{self.__name__}/{key}": value for key, value in child.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for place, step in self._averages():
            step.load_state_dict(state[f"{self.__name__}/{place}"])
        prefix = f"{self.__name__}/"
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for child in self.children:
            child.load_state_dict(inner)

    def _averages(self) -> list[tuple[int, EMANormalize]]:
        return [(i, step) for i, step in enumerate(self.common.postprocess) if isinstance(step, EMANormalize)]

    def __reduce__(self) -> Any:
        return _rebuild, (self.spec, self.plugins, [part.__name__ for part in _walk(self)], self.state_dict())

    def _scores(self, batch: Batch, log_metric: Callable[[str, float], None] | None) -> Scores:
        scores: Scores = [None] * len(batch.texts)
        rows = [i for i in range(len(scores)) if self._applies(batch.columns, i)]
        if self._scorer is None:
            parts = [child._scores(batch, log_metric) for child in self.children]
            weights = [child.common.weight for child in self.children]
            combined = combine(self.type, parts, weights, self._options)
            for child, part in zip(self.children, parts, strict=True):
                known = [score for score in part if score is not None]
                if log_metric is not None and known:
                    log_metric(f"reward_components/{child.__name__}", sum(known) / len(known))
            for i in rows:
                scores[i] = combined[i]
        elif rows:
            for i, score in zip(rows, self._guarded(batch, rows), strict=True):
                scores[i] = score
        for step in self.common.postprocess:
            scores = step(scores)
        return [None if score is None or not math.isfinite(score) else score for score in scores]

    def _applies(self, columns: dict[str, list[Any]], row: int) -> bool:
        for name, wanted in self.common.when.items():
            if name not in columns:
                raise RewardError(f"{self.__name__}: 'when' needs column {name!r}, the batch has {sorted(columns)}")
            if columns[name][row] not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def _guarded(self, batch: Batch, rows: list[int]) -> Scores:
        try:
            return self._score_rows(batch, rows)
        except TrlExtError:
            raise  # the spec, the dataset or the model do not fit: no error of one batch
        except ImportError as error:
            raise MissingExtraError(
                f"{self.__name__} needs {error.name}: pip install 'trl-ext[{self._extra}]'"
            ) from None
        except Exception as error:
            self._errors += 1
            if self.common.on_error == "none" and self._errors <= self.common.max_errors:
                return [None] * len(rows)
            budget = f" (batch {self._errors} of at most {self.common.max_errors} that may raise)"
            reason = f"{type(error).__name__}: {error}" + (budget if self.common.on_error == "none" else "")
            raise RewardError(f"{self.__name__} cannot score a batch: {reason}") from error

    def _score_rows(self, batch: Batch, rows: list[int]) -> Scores:
        texts = [batch.texts[i] for i in rows]
        if self.common.extract is not None:
            texts = [self.common.extract(text) for text in texts]
        arguments: dict[str, list[Any]] = {"completions": texts}
        if "prompts" in self._parameters:
            arguments["prompts"] = [batch.prompts[i] for i in rows]
        if "target" in self._parameters:
            targets = self._targets(batch, rows)
            if targets is not None:
                arguments["target"] = targets
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._parameters.values())
        for name, column in batch.columns.items():
            if name not in arguments and name != "target" and (takes_all or name in self._parameters):
                arguments[name] = [column[i] for i in rows]
        return self._score_once(arguments)

    def _targets(self, batch: Batch, rows: list[int]) -> list[Any] | None:
        names = [self.common.target] if isinstance(self.common.target, str) else self.common.target
        columns = []
        for name in names:
            column = batch.columns.get(name, batch.fallback_target)
            if column is None:
                if self._parameters["target"].default is None:
                    return None
                raise RewardError(
                    f"{self.__name__}: needs column {name!r} with the references, the batch has "
                    f'{sorted(batch.columns)}: name one with "target" in the spec'
                )
            columns.append([column[i] for i in rows])
        return columns[0] if len(columns) == 1 else [list(references) for references in zip(*columns, strict=True)]

    def _score_once(self, arguments: dict[str, list[Any]]) -> Scores:
        """Call the scorer, repeated rows of the batch left out where a row's score depends on that row alone."""
        keys = [repr(row) for row in zip(*arguments.values(), strict=True)]
        first = {key: i for i, key in reversed(list(enumerate(keys)))} if self._per_completion else {}
        distinct = sorted(first.values()) if first else list(range(len(keys)))
        assert self._scorer is not None
        scores = list(self._scorer(**{name: [column[i] for i in distinct] for name, column in arguments.items()}))
        if len(scores) != len(distinct):
            raise RewardError(f"{self.__name__} returned {len(scores)} scores for {len(distinct)} completions")
        known = {i: None if score is None else float(score) for i, score in zip(distinct, scores, strict=True)}
        return [known[first[key] if first else i] for i, key in enumerate(keys)]


def make_reward(spec: Spec, plugins: Sequence[str | Path] = ()) -> Reward:
    """One TRL reward callable from a spec: a dict, a JSON string or the path of a JSON file.

    `plugins` are Python files of the user's own that register more reward types; they are executed.

    Raises:
        ConfigError: what in the spec is wrong, where, and what is allowed.
    """
    paths = [str(plugin) for plugin in plugins]
    load_plugins(paths)
    reward = Reward(parse(load_spec(spec)), paths)
    _name_apart(reward)
    return reward


def make_reward_funcs(spec: Spec, plugins: Sequence[str | Path] = ()) -> tuple[list[Reward], list[float]]:
    """`(reward_funcs, reward_weights)` for a TRL trainer: one function per component of a `weighted_sum`.

    TRL then logs each component by its name. The weights are divided by their sum, as `make_reward` does, so that both
    train the same. Any other spec, and a sum with a `postprocess` or a `when` of its own, is one function of weight 1.

    Raises:
        ConfigError: as `make_reward`.
    """
    reward = make_reward(spec, plugins)
    if reward.type != "weighted_sum" or reward.common.postprocess or reward.common.when:
        return [reward], [1.0]
    weights = [child.common.weight for child in reward.children]
    return reward.children, [weight / (sum(weights) or 1.0) for weight in weights]


_loaded_plugins: set[Path] = set()


def load_plugins(paths: Sequence[str]) -> None:
    """Execute Python files, each once, for the reward types that they register.

    Raises:
        ConfigError: a file is missing or raises.
    """
    for path in map(Path, paths):
        if path.resolve() in _loaded_plugins:
            continue
        module_spec = importlib.util.spec_from_file_location(f"trl_ext_plugin_{path.stem}", path)
        if not path.is_file() or module_spec is None or module_spec.loader is None:
            raise ConfigError(f"plugin {str(path)!r}: no such Python file")
        try:
            module_spec.loader.exec_module(importlib.util.module_from_spec(module_spec))
        except Exception as error:
            raise ConfigError(f"plugin {str(path)!r} raises {type(error).__name__}: {error}") from error
        _loaded_plugins.add(path.resolve())


def _walk(reward: Reward) -> list[Reward]:
    return [reward, *(part for child in reward.children for part in _walk(child))]


def _name_apart(reward: Reward) -> None:
    """Give parts of the same name a number: TRL would merge their metrics."""
    taken: set[str] = set()
    for part in _walk(reward):
        name, number = part.__name__, 2
        while part.__name__ in taken:
            part.__name__ = f"{name}_{number}"
            number += 1
        taken.add(part.__name__)


def _rebuild(spec: dict[str, Any], plugins: Sequence[str], names: list[str], state: dict[str, Any]) -> Reward:
    reward = make_reward(spec, plugins)
    for part, name in zip(_walk(reward), names, strict=True):
        part.__name__ = name
    reward.load_state_dict(state)
    return reward
