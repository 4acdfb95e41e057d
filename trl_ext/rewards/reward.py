"""The callable that TRL gets: a tree of components that score a batch."""

import inspect
import json
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from trl_ext.errors import ConfigError, MissingExtraError, RewardError, TrlExtError
from trl_ext.rewards.background import at_once, in_background
from trl_ext.rewards.cache import ScoreCache
from trl_ext.rewards.composites import combine
from trl_ext.rewards.plugins import load_plugins
from trl_ext.rewards.postprocess import EMANormalize, Scores
from trl_ext.rewards.spec import Node, load_spec, parse
from trl_ext.rewards.text import as_text


@dataclass
class Batch:
    """What a reward is called with, as text. `fallback_target` stands in for a target column that is missing.

    `source` is the list of completions as it came. `scores` takes what each part of the reward gave, by its name.
    """

    texts: list[str]
    prompts: list[str]
    columns: dict[str, list[Any]]
    fallback_target: list[Any] | None = None
    source: Any = None
    scores: dict[str, Scores] = field(default_factory=dict)

    def same(self, other: "Batch") -> bool:
        """Whether both are of one step: TRL calls one function after the other with the same lists."""
        return (
            self.source is other.source is not None
            and (self.texts, self.prompts, self.columns.keys()) == (other.texts, other.prompts, other.columns.keys())
            and all(column is other.columns[name] for name, column in self.columns.items())
        )


class Reward:
    """A TRL reward callable made from a spec: a leaf that scores, or a composite of others. Pickles.

    `__name__` is unique within a spec: TRL logs by it. `.children` are the components of a composite. `.siblings` are
    the functions that the trainer has beside this one, if they are of one spec.

    Leaves that wait for something else (a server, other processes) start before the others compute, each in a thread
    of its own. Postprocessors run in the caller's thread, in an order that the spec decides: they may talk to other
    processes.
    """

    def __init__(self, node: Node, plugins: Sequence[str] = ()):
        self.spec, self.common, self.type, self.plugins = node.spec, node.common, node.type, tuple(plugins)
        self.__name__ = node.common.name or node.type
        self.children = [Reward(child, plugins) for child in node.children]
        self.siblings: list[Reward] = []
        self._options = node.options
        self._errors = 0
        self._scorer: Callable[..., Any] | None = None
        self._per_completion, self._waits = True, False
        self._started: tuple[Batch, Future[Scores]] | None = None
        self._seen: Batch | None = None
        self._unwanted = False
        self._one_at_a_time = threading.Lock()
        self._cache: ScoreCache | None = None
        if node.reward_type is not None:
            try:
                self._scorer = node.reward_type.make(**node.options)
            except ValueError as error:
                raise ConfigError(f"{node.path}: {error}") from None
            self._per_completion, self._waits = node.reward_type.per_completion, node.reward_type.waits
            if node.common.cache is not None:
                if not self._per_completion:
                    raise ConfigError(f"{node.path}.cache: {node.type!r} compares the completions of a batch")
                options = {key: value for key, value in node.options.items() if key in node.spec}
                self._cache = ScoreCache(node.common.cache, [node.reward_type.name, options])
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
        return self._run(_batch(completions, prompts, columns), log_metric)

    def breakdown(
        self, completions: list[Any], prompts: list[Any] | None = None, **columns: list[Any]
    ) -> dict[str, Scores]:
        """The scores of this reward and of every part of it, by name, each computed once."""
        batch = _batch(completions, prompts, columns)
        self._run(batch, None)
        return {part.__name__: batch.scores[part.__name__] for part in self.parts()}

    def parts(self) -> list["Reward"]:
        """This reward and all its components, in the order of the spec."""
        return [self, *(part for child in self.children for part in child.parts())]

    def score(self, response: str, target: Any, prompt: str = "", item: dict[str, Any] | None = None) -> float:
        """The score of one response; NaN where it cannot be scored. `item` is a row of the dataset.

        `target` stands in for every target column that `item` does not have.
        """
        columns = {key: [value] for key, value in (item or {}).items()}
        (score,) = self._run(Batch([response or ""], [prompt], columns, [target]), None)
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
        return _rebuild, (self.spec, self.plugins, [part.__name__ for part in self.parts()], self.state_dict())

    def _run(self, batch: Batch, log_metric: Callable[[str, float], None] | None) -> Scores:
        leaves = [part for function in self.siblings or [self] for part in function.parts() if part._scorer is not None]
        for leaf in leaves:
            if leaf._waits:
                leaf._start(batch, in_background)
        if self.siblings and self.waits:  # the trainer asks for the others only after this one
            for leaf in leaves:
                if not leaf._waits:
                    leaf._start(batch, at_once)
        return self._scores(batch, log_metric)

    @property
    def waits(self) -> bool:
        """Whether any part of it waits for a server or other processes."""
        return any(part._waits for part in self.parts())

    def _start(self, batch: Batch, run: Callable[[Callable[[], Scores]], "Future[Scores]"]) -> None:
        """Let a leaf begin before it is asked, once for a batch."""
        if self._seen is not None and self._seen.same(batch):
            return
        if self._started is not None:  # nobody asked for the last one: the trainer does not have this function
            self._unwanted, self._started = True, None
        self._seen = batch
        if not self._unwanted:
            self._started = batch, run(lambda: self._leaf_scores(batch))

    def _scores(self, batch: Batch, log_metric: Callable[[str, float], None] | None) -> Scores:
        if self._scorer is not None:
            started, self._started, self._seen = self._started, None, batch
            ahead = started is not None and (started[0] is batch or started[0].same(batch))
            scores = started[1].result() if started is not None and ahead else self._leaf_scores(batch)
        else:
            scores = self._combined(batch, log_metric)
        for step in self.common.postprocess:
            scores = step(scores)
        scores = [None if score is None or not math.isfinite(score) else score for score in scores]
        batch.scores[self.__name__] = scores
        return scores

    def _combined(self, batch: Batch, log_metric: Callable[[str, float], None] | None) -> Scores:
        for child in sorted(self.children, key=lambda child: child.waits):  # those that compute first
            child._scores(batch, log_metric)
        parts = [batch.scores[child.__name__] for child in self.children]
        for child, part in zip(self.children, parts, strict=True):
            known = [score for score in part if score is not None]
            if log_metric is not None and known:
                log_metric(f"reward_components/{child.__name__}", sum(known) / len(known))
        combined = combine(self.type, parts, [child.common.weight for child in self.children], self._options)
        return [score if self._applies(batch.columns, i) else None for i, score in enumerate(combined)]

    def _leaf_scores(self, batch: Batch) -> Scores:
        if not self.common.when and batch.texts:
            return self._guarded(batch, range(len(batch.texts)))
        scores: Scores = [None] * len(batch.texts)
        rows = [i for i in range(len(scores)) if self._applies(batch.columns, i)]
        if rows:
            for i, score in zip(rows, self._guarded(batch, rows), strict=True):
                scores[i] = score
        return scores

    def _applies(self, columns: dict[str, list[Any]], row: int) -> bool:
        for name, wanted in self.common.when.items():
            if name not in columns:
                raise RewardError(f"{self.__name__}: 'when' needs column {name!r}, the batch has {sorted(columns)}")
            if columns[name][row] not in (wanted if isinstance(wanted, list) else [wanted]):
                return False
        return True

    def _guarded(self, batch: Batch, rows: Sequence[int]) -> Scores:
        try:
            return self._within_limit(lambda: self._score_rows(batch, rows))
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

    def _within_limit(self, work: Callable[[], Scores]) -> Scores:
        limit = self.common.timeout
        if limit is None:
            return work()

        def alone() -> Scores:  # a scorer that still hangs in the last batch is not entered a second time
            with self._one_at_a_time:
                return work()

        try:
            return in_background(alone).result(limit)
        except TimeoutError as error:
            raise TimeoutError(str(error) or f"no scores within timeout = {limit:g} s") from None

    def _score_rows(self, batch: Batch, rows: Sequence[int]) -> Scores:
        texts = _at(batch.texts, rows)
        if self.common.extract is not None:
            texts = [self.common.extract(text) for text in texts]
        arguments: dict[str, list[Any]] = {"completions": texts}
        if "prompts" in self._parameters:
            arguments["prompts"] = _at(batch.prompts, rows)
        if "target" in self._parameters:
            targets = self._targets(batch, rows)
            if targets is not None:
                arguments["target"] = targets
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self._parameters.values())
        for name, column in batch.columns.items():
            if name not in arguments and name != "target" and (takes_all or name in self._parameters):
                arguments[name] = _at(column, rows)
        return self._score_once(arguments)

    def _targets(self, batch: Batch, rows: Sequence[int]) -> list[Any] | None:
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
            columns.append(_at(column, rows))
        return columns[0] if len(columns) == 1 else [list(references) for references in zip(*columns, strict=True)]

    def _score_once(self, arguments: dict[str, list[Any]]) -> Scores:
        """Call the scorer, repeated rows of the batch left out where a row's score depends on that row alone."""
        count = len(arguments["completions"])
        if not self._per_completion:
            return self._call(arguments, list(range(count)))
        origin = _origins(*arguments.values())
        distinct = list(dict.fromkeys(origin))
        stored: dict[int, str | None] = {}
        known: dict[int, float | None] = {}
        if self._cache is not None:
            for row in distinct:
                stored[row] = self._cache.key({name: column[row] for name, column in arguments.items()})
            found = self._cache.read(name for name in stored.values() if name is not None)
            known = {row: found[name] for row, name in stored.items() if name in found}
        new = [row for row in distinct if row not in known] if known else distinct
        scores = self._call(arguments, new) if new else []
        known.update(zip(new, scores, strict=True))
        if self._cache is not None:
            fresh = {stored[row]: score for row, score in zip(new, scores, strict=True)}
            self._cache.write({name: score for name, score in fresh.items() if name is not None and score is not None})
        return [known[row] for row in origin]

    def _call(self, arguments: dict[str, list[Any]], rows: Sequence[int]) -> Scores:
        assert self._scorer is not None
        scores = list(self._scorer(**{name: _at(column, rows) for name, column in arguments.items()}))
        if len(scores) != len(rows):
            raise RewardError(f"{self.__name__} returned {len(scores)} scores for {len(rows)} completions")
        return [None if score is None else float(score) for score in scores]


def _batch(completions: list[Any], prompts: list[Any] | None, columns: dict[str, list[Any]]) -> Batch:
    texts, prompts = (
        [value if type(value) is str else as_text(value) for value in values]
        for values in (completions, prompts or [""] * len(completions))
    )
    return Batch(texts, prompts, columns, source=completions)


def _at(column: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    """The values of some rows, which are in order, or of all."""
    return list(column) if len(rows) == len(column) else [column[i] for i in rows]


def _origins(texts: list[str], *columns: list[Any]) -> list[int]:
    """For each row of a batch the first that is the same: itself, where there is none before it."""
    others = [_identities(column) for column in columns]
    first: dict[Any, int] = {}
    origin = [first.setdefault(text, row) for row, text in enumerate(texts)]
    if others and len(first) < len(texts):
        for row, same in enumerate(origin):
            if same != row and any(other[same] != other[row] for other in others):
                origin[row] = first.setdefault((texts[row], *(other[row] for other in others)), row)
    return origin


def _identities(column: list[Any]) -> list[Any]:
    """Something to look each value up by: a text is its own, and each other object of the column is read once.

    What JSON cannot hold (images, tensors) is equal to itself alone.
    """
    if set(map(type, column)) == {str}:
        return column
    known: dict[int, Any] = {}
    for value in column:
        if id(value) not in known:
            try:
                known[id(value)] = value if isinstance(value, str) else ("as JSON", json.dumps(value))
            except (TypeError, ValueError):
                known[id(value)] = ("by itself", id(value))
    return [known[id(value)] for value in column]


def _rebuild(spec: dict[str, Any], plugins: Sequence[str], names: list[str], state: dict[str, Any]) -> Reward:
    load_plugins(plugins)
    reward = Reward(parse(load_spec(spec)), plugins)
    for part, name in zip(reward.parts(), names, strict=True):
        part.__name__ = name
    reward.load_state_dict(state)
    return reward
