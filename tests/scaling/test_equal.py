"""The same seeded run on one process, and on two under DDP, ZeRO-2 and ZeRO-3: the same weights, metrics and models.

Each strategy is launched once, with its config of accelerate_configs/, and runs all cases one after the other.
"""

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from tests.launching import FOLDER, on_two_processes
from tests.scaling.cases import CASES, logits, run
from tests.trainers.training import load
from trl_ext.trainers.value_function import SeparateCritic, SharedValueHead

CONFIGS = {"ddp": "cpu_2proc", "zero2": "cpu_2proc_zero2", "zero3": "cpu_2proc_zero3"}
# In float32 with SGD: what is left is the order of sums. Weights move by 1e-2 and more.
WEIGHTS = 1e-6
METRICS = 2e-5

FAST = ["cispo", "cispo-lora", "cispo-ema", "ppo", "ppo-lora", "ppo-separate", "hybrid-joint", "hybrid-alternate-lora"]
FULL = [case for name in CASES for case in (name, f"{name}-lora") if case not in FAST]
SAVED = ["ppo", "ppo-separate", "hybrid-alternate-lora"]
RESUMED = ["ppo:resume", "ppo-separate:resume", "hybrid-alternate-lora:resume"]


def launch(strategy, cases, path, folder, config=None):
    """case -> how it ended on two processes."""
    jobs = {
        case: {"folder": f"{folder}/{case}", "resume_at": 2 if case in RESUMED else None}
        if case in (*SAVED, *RESUMED)
        else {}
        for case in cases
    }
    job = {"path": path, "cases": jobs, "results": f"{folder}/results.pt"}
    config = config or FOLDER / f"{CONFIGS[strategy]}.yaml"
    on_two_processes("tests.scaling.on_processes", json.dumps(job), config=config)
    ends = torch.load(job["results"], weights_only=False)
    return {"folder": folder, **{case: {**end, "strategy": strategy} for case, end in ends.items()}}


@pytest.fixture(scope="module")
def one(tiny):
    """A case -> how it ends on one process."""
    ends = {}

    def end(case):
        if case not in ends:
            ends[case] = run(case, tiny, 1)
        return ends[case]

    return end


# the trainers' own tests have DDP, in float64
@pytest.fixture(scope="module", params=[pytest.param("ddp", marks=pytest.mark.full), "zero2", "zero3"])
def two(request, tiny, tmp_path_factory):
    if request.param != "ddp":
        pytest.importorskip("deepspeed")
    folder = str(tmp_path_factory.mktemp(request.param))
    return launch(request.param, FAST, tiny, folder)


@pytest.fixture(scope="module", params=CONFIGS)
def two_full(request, tiny, tmp_path_factory):
    if request.param != "ddp":
        pytest.importorskip("deepspeed")
    folder = str(tmp_path_factory.mktemp(request.param))
    return launch(request.param, [*FULL, *RESUMED], tiny, folder)


def check_equal(case, ours, theirs, path):
    start = load(path).state_dict()
    assert ours["weights"].keys() == theirs["weights"].keys()
    moved = {}
    for name, tensor in ours["weights"].items():
        difference = (theirs["weights"][name] - tensor).abs().max().item()
        assert difference <= WEIGHTS, f"{name}: {difference}"
        if name in start:
            moved[name] = (tensor - start[name]).abs().max().item()
        elif "lora_B" in name or name.startswith("value_function.head"):  # zero at the beginning
            moved[name] = tensor.abs().max().item()
    assert max(moved.values()) > 1e-3
    first, second = theirs["seen"]
    stage = {"ddp": None, "zero2": 2, "zero3": 3}[theirs["strategy"]]
    assert (first["zero_stage"], first["in_parts"]) == (stage, stage == 3)
    assert first == second  # every process logs the same and remembers the same
    assert averages(first) == pytest.approx(averages(ours["seen"][0]), rel=1e-9)
    if "accumulated" in case:  # a mean of means, over other micro-batches
        return
    # over the rows that are kept, some without a gradient where the other process needs as many: docs/lean_update.md
    free = ("entropy", "ratio", "approxkl", "clipfrac") if "gate" in case else ()
    for row, expected in zip(first["log"], ours["seen"][0]["log"], strict=True):
        assert row.keys() == expected.keys()
        compared = {name: value for name, value in row.items() if not any(part in name for part in free)}
        assert compared == pytest.approx({name: expected[name] for name in compared}, rel=METRICS, abs=METRICS)


def averages(seen):
    """All numbers that the rewards of a process remember."""
    return [x for rewards in seen["rewards"] for state in rewards.values() if state for x in state.values()]


@pytest.mark.parametrize("case", FAST)
def test_two_processes_end_where_one_does(one, two, tiny, case):
    check_equal(case, one(case), two[case], tiny)


@pytest.mark.full
@pytest.mark.parametrize("case", FULL)
def test_two_processes_end_where_one_does_in_every_case(one, two_full, tiny, case):
    check_equal(case, one(case), two_full[case], tiny)


@pytest.mark.full
def test_hierarchical_partitioning_ends_where_one_process_does(one, tiny, tmp_path):
    """Both processes are one node, which has a second copy of the weights in two parts."""
    pytest.importorskip("deepspeed")
    config = tmp_path / "hierarchical.yaml"
    text = (FOLDER / "cpu_2proc_zero3.yaml").read_text()
    config.write_text(text.replace('"stage": 3,', '"stage": 3, "zero_hpz_partition_size": 2,'))
    ends = launch("zero3", ["cispo"], tiny, str(tmp_path), config)
    check_equal("cispo", one("cispo"), ends["cispo"], tiny)


def check_saved(case, ended):
    """On one process, by transformers and PEFT alone, and the value function beside it."""
    folder = f"{ended['folder']}/{case}"
    loader = AutoPeftModelForCausalLM if "-lora" in case else AutoModelForCausalLM
    torch.testing.assert_close(logits(loader.from_pretrained(f"{folder}/model")), ended[case]["logits"])
    weights = {
        name.removeprefix("value_function."): tensor
        for name, tensor in ended[case]["weights"].items()
        if name.startswith("value_function.")
    }
    policy = load(ended["path"])
    function = SeparateCritic.from_pretrained(ended["path"]) if "separate" in case else SharedValueHead(policy)
    function.load(Path(folder) / "model")
    assert any(tensor.abs().max() > 1e-3 for tensor in weights.values())
    for name, tensor in function.state_dict().items():
        assert torch.equal(tensor, weights[name])
    if case.startswith("hybrid"):
        merged = AutoModelForCausalLM.from_pretrained(f"{folder}/merged")
        torch.testing.assert_close(logits(merged), ended[case]["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", SAVED)
def test_what_two_processes_save_one_loads(two, tiny, case):
    check_saved(case, {**two, "path": tiny})


@pytest.mark.full
@pytest.mark.parametrize("case", RESUMED)
def test_what_two_processes_save_after_a_resume_one_loads(two_full, tiny, case):
    check_saved(case, {**two_full, "path": tiny})


@pytest.mark.full
@pytest.mark.parametrize("case", RESUMED)
def test_a_run_that_was_resumed_on_two_processes_ends_where_an_unbroken_one_does(one, two_full, tiny, case):
    name = case.split(":")[0]
    for weight, tensor in one(name)["weights"].items():
        assert (two_full[case]["weights"][weight] - tensor).abs().max() <= WEIGHTS
