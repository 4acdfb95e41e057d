import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from trl_ext import make_scheduler
from trl_ext.errors import ConfigError
from trl_ext.optim import list_schedulers

RATE = 0.2
TOTAL = 40


def sgd(rate: float = RATE, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=rate, **options)


def curve(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int = TOTAL) -> list[float]:
    """The learning rate that each optimizer step of a run sees, and the one after the last."""
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


# The formulas, as functions of the step `t` after the warm-up, the steps `n` after it and the rate `r`.


def cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def restarts(t: int, first: int, factor: int, low: float, high: float) -> float:
    length = first
    while t >= length:
        t, length = t - length, length * factor
    return low + (high - low) * cosine(t / length)


def triangle(t: int, up: int, down: int) -> float:
    t %= up + down
    return t / up if t <= up else 1 - (t - up) / down


def stable_then(t: int, n: int, decay: int, shape: Callable[[float], float]) -> float:
    return 1.0 if t < n - decay else shape((t - (n - decay)) / decay)


@dataclass
class Curve:
    name: str
    formula: Callable[[int, int, float], float]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}


CURVES = [
    Curve("none", lambda t, n, r: r),
    Curve("constant", lambda t, n, r: r),
    Curve("constant_with_warmup", lambda t, n, r: r),
    Curve("linear", lambda t, n, r: r * (1 - t / n)),
    Curve("cosine", lambda t, n, r: r * cosine(t / n)),
    Curve("cosine", lambda t, n, r: r * cosine(3 * t / n), {"NUM_CYCLES": 1.5}),
    Curve("cosine_with_restarts", lambda t, n, r: 0.0 if t >= n else r * cosine(3 * t / n % 1), {"num_cycles": 3}),
    Curve("polynomial", lambda t, n, r: 1e-7 + (r - 1e-7) * (1 - t / n)),
    Curve("poly", lambda t, n, r: 0.01 + (r - 0.01) * (1 - t / n) ** 2, {"POLY_POWER": "2", "lr_end": 0.01}),
    Curve("inverse_sqrt", lambda t, n, r: r / math.sqrt((t + 25) / 25), {"timescale": 25}),
    Curve("cosine_with_min_lr", lambda t, n, r: r * (0.1 + 0.9 * cosine(t / n))),
    Curve("cosine_with_min_lr", lambda t, n, r: 0.05 + (r - 0.05) * cosine(t / n), {"min_lr": 0.05}),
    Curve("cosine_warmup_with_min_lr", lambda t, n, r: r * (0.3 + 0.7 * cosine((t + 1) / n)), {"min_lr_rate": 0.3}),
    Curve("warmup_stable_decay", lambda t, n, r: r * stable_then(t, n, 4, cosine)),
    Curve(
        "warmup_stable_decay",
        lambda t, n, r: r * stable_then(t, n, 10, lambda share: 0.2 + 0.8 * (1 - math.sqrt(share))),
        {"num_decay_steps": 10, "decay_type": "1-sqrt", "min_lr_ratio": 0.2},
    ),
    Curve("step", lambda t, n, r: r * 0.1 ** (t // math.ceil(n / 3))),
    Curve("step", lambda t, n, r: r * 0.5 ** (t // 7), {"STEP_SIZE": 7, "GAMMA": "0.5"}),
    Curve("multistep", lambda t, n, r: r * 0.1 ** ((t >= math.ceil(n / 2)) + (t >= math.ceil(3 * n / 4)))),
    Curve("exponential", lambda t, n, r: r * 0.01 ** (t / n)),
    Curve("exponential", lambda t, n, r: r * 0.9**t, {"gamma": 0.9}),
    Curve("cosineannealing", lambda t, n, r: r * cosine(t / n)),
    Curve("cosineannealing", lambda t, n, r: 0.01 + (r - 0.01) * cosine(t / 9), {"T_MAX": 9, "MIN_LR": "1e-2"}),
    Curve("cosineannealing_warm_restarts", lambda t, n, r: restarts(t, math.ceil(n / 7), 2, 0.0, r)),
    Curve(
        "cosineannealing_warm_restarts",
        lambda t, n, r: restarts(t, 6, 1, 0.01, r),
        {"T0": 6, "T_MULT": 1, "eta_min": 0.01},
    ),
    Curve("cyclic", lambda t, n, r: r * (0.1 + 0.9 * triangle(t, math.ceil(n / 4), math.ceil(n / 4)))),
    Curve(
        "cyclic",
        lambda t, n, r: 0.1 + 0.3 * triangle(t, 4, 8) / 2 ** (t // 12),
        {"base_lr": 0.1, "max_lr": 0.4, "step_size_up": 4, "step_size_down": 8, "mode": "triangular2"},
    ),
    Curve("lambda", lambda t, n, r: r * (1 - t / n)),
    Curve("lambda", lambda t, n, r: r * (0.25 + 0.75 * (1 - t / n)), {"LR_FLOOR": 0.25}),
    Curve("lambda", lambda t, n, r: r * 0.8 / (1 + t), {"lr_lambda": lambda step: 0.8 / (1 + step)}),
]


def expected(case: Curve, step: int, warmup: int) -> float:
    if case.name == "cosine_warmup_with_min_lr" and step < warmup:
        return RATE * (step + 1) / warmup
    if step < warmup:
        first = case.options.get("min_lr_ratio", 0)  # where `warmup_stable_decay` begins and ends
        return case.formula(0, TOTAL - warmup, RATE) * (first + (1 - first) * step / warmup)
    return case.formula(step - warmup, TOTAL - warmup, RATE)


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("case", CURVES, ids=lambda case: f"{case.name}{len(case.options) or ''}")
def test_every_step_of_a_curve_is_the_formula(case, warmup):
    optimizer = sgd()
    scheduler = make_scheduler(optimizer, case.spec, num_training_steps=TOTAL, warmup_steps=warmup)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = curve(optimizer, scheduler)
    assert found == pytest.approx([expected(case, step, warmup) for step in range(TOTAL + 1)], abs=1e-12)
    assert scheduler.get_last_lr() == [found[-1]]


def one_cycle(step: int, peak: float, shape: Callable[[float], float], start: float = RATE / 25) -> float:
    """Smith's: up to the peak, then down to start / 1e4 at the last step of the run."""
    if step <= peak:
        return start + (RATE - start) * (1 - shape(step / peak))
    return RATE / 25e4 + (RATE - RATE / 25e4) * shape((step - peak) / (TOTAL - 1 - peak))


@pytest.mark.parametrize(("strategy", "shape"), [("cos", cosine), ("linear", lambda share: 1 - share)])
@pytest.mark.parametrize(("warmup", "peak"), [(0, 0.3 * TOTAL - 1), (1, 1), (9, 9)])
def test_one_cycle_is_the_formula_and_peaks_at_the_end_of_a_warmup(strategy, shape, warmup, peak):
    optimizer = sgd()
    spec = {"SCHEDULER": "OneCycle", "ANNEAL_STRATEGY": strategy}
    scheduler = make_scheduler(optimizer, spec, num_training_steps=TOTAL, warmup_steps=warmup)
    found = curve(optimizer, scheduler)[:TOTAL]  # the rate after the last step of the run is used by nobody
    assert found == pytest.approx([one_cycle(step, peak, shape) for step in range(TOTAL)], abs=1e-12)


def test_one_cycle_takes_the_shape_that_it_is_told():
    optimizer = sgd()
    spec = {"name": "onecycle", "max_lr": 0.6, "div_factor": 3, "final_div_factor": 2, "pct_start": 0.5}
    found = curve(optimizer, make_scheduler(optimizer, {**spec, "three_phase": False}, num_training_steps=TOTAL))
    assert (found[0], max(found), found[TOTAL - 1]) == pytest.approx((0.2, 0.6, 0.1))
    assert found.index(max(found)) == TOTAL // 2 - 1


def test_reduce_on_plateau_follows_the_metric():
    optimizer = sgd()
    scheduler = make_scheduler(optimizer, {"name": "reduce_on_plateau", "FACTOR": 0.5, "PATIENCE": 1, "MIN_LR": 0.03})
    found = []
    for metric in (3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        scheduler.step(metric)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05, 0.03, 0.03])


def test_greedy_rises_while_the_metric_improves_and_falls_where_it_does_not():
    optimizer = sgd()
    scheduler = make_scheduler(optimizer, {"name": "greedy", "factor": 0.5, "patience": 1, "min_lr": 0.01})
    found = []
    for metric in (3.0, 2.0, 1.0, 1.0, 1.0, 1.0):
        scheduler.step(metric)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.2, 0.2])


def test_every_name_has_a_curve_in_these_tests():
    by_metric = {"reduce_on_plateau", "reduce_lr_on_plateau", "greedy"}
    assert set(list_schedulers()) == {case.name for case in CURVES} | {"onecycle"} | by_metric


@pytest.mark.parametrize("name", ["linear", "cosineannealing", "onecycle"])
def test_a_ratio_is_as_many_steps_rounded_up(name):
    curves = []
    for options in ({"warmup_steps": 5}, {"warmup_ratio": 0.11}, {"WARMUP_RATIO": "0.11"}, {"NUM_WARMUP_STEPS": 5}):
        optimizer = sgd()
        spec = {"name": name, "STEPS_PER_EPOCH": 20, "EPOCHS": 2, **options}
        curves.append(curve(optimizer, make_scheduler(optimizer, spec)))
    assert curves[0] == curves[1] == curves[2] == curves[3]
    assert curves[0][5] == pytest.approx(RATE)


def test_milestones_count_from_the_start_of_the_run():
    optimizer = sgd()
    spec = {"name": "multistep", "MILESTONES": "12, 20", "GAMMA": 0.5}
    found = curve(optimizer, make_scheduler(optimizer, spec, warmup_steps=10))
    assert found[10:13] == pytest.approx([RATE, RATE, RATE / 2])
    assert found[19:21] == pytest.approx([RATE / 2, RATE / 4])


def test_the_groups_keep_their_own_rates():
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    for name in ("linear", "cosineannealing", "cyclic", "onecycle", "step"):
        optimizer = torch.optim.AdamW([{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:], "lr": 0.3}])
        scheduler = make_scheduler(optimizer, name, num_training_steps=TOTAL, warmup_steps=5)
        for _ in range(TOTAL - 1):
            optimizer.step()
            scheduler.step()
            first, second = (group["lr"] for group in optimizer.param_groups)
            assert second == pytest.approx(3 * first), name


@pytest.mark.parametrize("name", ["cyclic", "onecycle"])
def test_momentum_is_cycled_where_there_is_one(name):
    weight = nn.Parameter(torch.ones(3))
    plain = sgd()
    make_scheduler(plain, name, num_training_steps=TOTAL)
    assert plain.param_groups[0]["momentum"] == 0
    adagrad = torch.optim.Adagrad([weight])
    make_scheduler(adagrad, name, num_training_steps=TOTAL)  # torch's own default raises here
    adamw = torch.optim.AdamW([weight], betas=(0.5, 0.7))
    scheduler = make_scheduler(adamw, {"name": name, "max_momentum": 0.95}, num_training_steps=TOTAL)
    assert adamw.param_groups[0]["betas"] == (0.95, 0.7)
    for _ in range(5):
        adamw.step()
        scheduler.step()
    assert 0.8 < adamw.param_groups[0]["betas"][0] < 0.95
    with pytest.raises(ConfigError, match="optimizer must support momentum"):
        make_scheduler(adagrad, {"name": name, "CYCLE_MOMENTUM": "true"}, num_training_steps=TOTAL)


def trained(spec: dict[str, Any], steps: int, state: bytes | None = None) -> tuple[list[Any], bytes]:
    """Adam for `steps` steps on a fixed loss, from a checkpoint as the Trainer writes it; what it saw, a checkpoint."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4))
    optimizer = torch.optim.Adam([weight], lr=0.05)
    warmup = 0 if spec["name"] in ("reduce_on_plateau", "greedy") else 6
    scheduler = make_scheduler(optimizer, spec, num_training_steps=20, warmup_steps=warmup)
    if state is not None:
        loaded = torch.load(io.BytesIO(state), weights_only=True)
        weight.data = loaded["weight"]
        optimizer.load_state_dict(loaded["optimizer"])
        scheduler.load_state_dict(loaded["scheduler"])
    seen: list[Any] = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        optimizer.step()
        scheduler.step(*([loss.item() // 1] if warmup == 0 else []))
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["betas"], scheduler.get_last_lr()[0], weight.tolist()))
    buffer = io.BytesIO()
    states = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "weight": weight.data}
    torch.save(states, buffer)
    return seen, buffer.getvalue()


PLATEAU = Curve("reduce_on_plateau", lambda t, n, r: r, {"patience": 1, "factor": 0.5})
GREEDY = Curve("greedy", lambda t, n, r: r, {"patience": 1, "factor": 0.5, "smooth": True})


@pytest.mark.parametrize("cut", [3, 6, 13])
@pytest.mark.parametrize(
    "case",
    [*CURVES, Curve("onecycle", lambda t, n, r: r), PLATEAU, GREEDY],
    ids=lambda case: f"{case.name}{len(case.options) or ''}",
)
def test_a_run_that_is_resumed_ends_as_an_unbroken_one(case, cut):
    whole, _ = trained(case.spec, 20)
    before, state = trained(case.spec, cut)
    after, _ = trained(case.spec, 20 - cut, state)
    assert before + after == whole


NINE = {"num_training_steps": 9}


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("cosin", {}, "no scheduler 'cosin'; close ones: cosine"),
        ("zzz", {}, "no scheduler 'zzz'; there are: constant, "),
        (3, {}, "scheduler = 3: must be a name, or a dict with a 'name'"),
        ({"lr": 1}, {}, "scheduler = {'lr': 1}: must have one 'name', a string"),
        ({"name": "linear", "SCHEDULER": "cosine"}, {}, "must have one 'name'"),
        ("{bad", {}, "scheduler: this is not JSON: "),
        ("linear", {}, "scheduler 'linear' needs num_training_steps"),
        ("onecycle", {}, "scheduler 'onecycle' needs num_training_steps"),
        ("step", {}, "scheduler 'step' needs num_training_steps or step_size"),
        ("lambda", {}, "scheduler 'lambda' needs num_training_steps or lr_lambda"),
        ({"name": "warmup_stable_decay", "num_stable_steps": 3}, {}, "needs num_training_steps or num_decay_steps"),
        ("linear", {"num_training_steps": 0}, "num_training_steps = 0: must be a whole number, at least 1"),
        ("linear", {"num_training_steps": -5}, "num_training_steps = -5: must be a whole number, at least 1"),
        ("linear", {"num_training_steps": 2.5}, "num_training_steps = 2.5: must be a whole number"),
        (
            "linear",
            {**NINE, "warmup_steps": -1},
            "warmup_steps = -1: must be a whole number, at",
        ),
        (
            "linear",
            {**NINE, "warmup_steps": 9},
            "a warm-up of 9 steps must be shorter than the run, 9",
        ),
        (
            "linear",
            {**NINE, "warmup_ratio": 1.0},
            "warmup_ratio = 1.0: must be at least 0 and less than",
        ),
        ("linear", {**NINE, "warmup_ratio": -0.1}, "warmup_ratio = -0.1: must be at least 0"),
        (
            "linear",
            {**NINE, "warmup_ratio": 0.1, "warmup_steps": 3},
            "warmup_steps or warmup_ratio, not",
        ),
        ("inverse_sqrt", {"warmup_ratio": 0.1}, "warmup_ratio needs num_training_steps"),
        ("linear", {"num_training_steps": float("nan")}, "num_training_steps = nan: must be a whole number"),
        (
            {"name": "linear", "num_training_steps": 8},
            NINE,
            "is 8 in the spec and 9 as an argument",
        ),
        ({"name": "linear", "steps_per_epoch": 8}, {}, "give num_training_steps, or steps_per_epoch and epochs"),
        ({"name": "step", "GAMMA": 0.5, "gamma": 0.5}, {}, "'GAMMA' and 'gamma' are one option, given twice"),
        (
            {"name": "cosineannealing", "T_max": 5, "MIN_LR": 0, "eta_min": 0},
            {},
            "'MIN_LR' and 'eta_min' are one",
        ),
        ({"name": "step", "gama": 0.5}, {}, "no option 'gama'; did you mean gamma? known ones: step_size, gamma, "),
        ({"name": "constant", "power": 2}, {}, "no option 'power'; known ones: num_training_steps, warmup_steps"),
        ({"name": "step", "step_size": 0}, {}, "step_size = 0: must be a whole number, at least 1"),
        ({"name": "step", "step_size": 5, "gamma": -1}, {}, "gamma = -1: must be a number greater than 0"),
        ({"name": "step", "step_size": 5, "gamma": "fast"}, {}, "gamma = 'fast': must be a number"),
        ({"name": "step", "step_size": 5, "gamma": float("nan")}, {}, "gamma = nan: must be finite"),
        ({"name": "cosineannealing", "T_max": 0}, {}, "T_max = 0: must be a whole number, at least 1"),
        ({"name": "multistep", "milestones": [9, 5]}, {}, "milestones = (9, 5): must rise"),
        (
            {"name": "multistep", "milestones": [9, 12]},
            {"warmup_steps": 9},
            "a milestone = 9.0: must be a whole",
        ),
        ({"name": "multistep", "milestones": "soon"}, {}, "milestones = 'soon': must be a list of whole numbers"),
        ({"name": "cyclic", "mode": "square"}, NINE, "scheduler 'cyclic': mode is invalid"),
        ({"name": "onecycle", "pct_start": 2}, NINE, "Expected float between 0 and 1 pct_start"),
        (
            {"name": "onecycle", "pct_start": 0.5},
            {**NINE, "warmup_steps": 2},
            "pct_start or a warm-up",
        ),
        ({"name": "onecycle", "three_phase": 1}, NINE, "three_phase = 1: must be true or false"),
        ({"name": "reduce_on_plateau", "factor": 1.5}, {}, "scheduler 'reduce_on_plateau': Factor should be < 1.0"),
        ("reduce_on_plateau", {"warmup_steps": 5}, "has no warm-up: a Trainer steps it at evaluations only"),
        ({"name": "lambda", "lr_lambda": "__import__('os')"}, {}, "must be a Python function; text is not executed"),
        ({"name": "lambda", "lr_lambda": abs, "lr_floor": 0.1}, {}, "give lr_lambda or lr_floor, not both"),
        ({"name": "lambda", "lr_floor": 2}, NINE, "lr_floor = 2: must be from 0 to 1"),
        (
            {"name": "polynomial", "lr_end": 5},
            NINE,
            "lr_end (5) must be smaller than initial lr (0.2)",
        ),
        ({"name": "cosine_with_min_lr", "min_lr": 0.1, "min_lr_rate": 0.1}, NINE, "Only one of"),
        (
            {"name": "warmup_stable_decay", "num_decay_steps": 8},
            {**NINE, "warmup_steps": 2},
            "more than",
        ),
        ({"name": "warmup_stable_decay", "decay_type": "x"}, NINE, "Unknown decay type: x"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(spec, arguments, message):
    with pytest.raises(ConfigError) as caught:
        make_scheduler(sgd(), spec, **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_spec_may_be_json():
    optimizer = sgd()
    scheduler = make_scheduler(optimizer, '{"name": "Step", "step_size": 2, "gamma": 0.5}')
    assert curve(optimizer, scheduler, 4) == pytest.approx([0.2, 0.2, 0.1, 0.1, 0.05])


class Wrapper:
    """DeepSpeed's optimizer, as far as a scheduler sees it: the groups of the one inside, and no `defaults`."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups


@pytest.mark.parametrize("name", ["cyclic", "polynomial", "linear"])
def test_the_optimizer_may_be_wrapped(name):
    plain, wrapped = sgd(), sgd()
    found = curve(wrapped, make_scheduler(Wrapper(Wrapper(wrapped)), name, num_training_steps=TOTAL))
    assert found == curve(plain, make_scheduler(plain, name, num_training_steps=TOTAL))
