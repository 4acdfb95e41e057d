import inspect
import json
import math
import queue
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel
from trl import GRPOConfig, GRPOTrainer

import trl_ext.agents
from tests.agents.per_turn import UNDISCOUNTED, Keeping, returns
from tests.agents.talk import ROWS, AsyncTalk, Faulty, Talk
from tests.launching import on_two_processes
from tests.trainers.training import config, load, make_trainer, weights
from trl_ext import CISPOConfig, CISPOTrainer, PPOConfig, PPOTrainer
from trl_ext.agents.environment_reward import environment_reward
from trl_ext.agents.rollout import environment_rollout
from trl_ext.agents.trajectory import TrajectoryRecorder, read_trajectories
from trl_ext.builtin.tiny_model import tiny_model, tiny_tokenizer
from trl_ext.errors import ConfigError, DatasetError, EpisodeFailuresError, RewardError
from trl_ext.trainers._trl_contract import ATTRIBUTES, HOOKS

TRAINERS = {
    "GRPO": (GRPOTrainer, GRPOConfig),
    "CISPO": (CISPOTrainer, CISPOConfig),
    "PPO": (PPOTrainer, PPOConfig),
}


def trainer_for(path, name="CISPO", environment=Talk, rollout=None, rows=ROWS, config_options=None, **options):
    trainer_class, config_class = TRAINERS.get(name, name)
    rollout = {"max_turns": 5, "max_turn_tokens": 6, "step_timeout": 20.0, **(rollout or {})}
    defaults = {"max_completion_length": 60, "max_steps": 3}
    if issubclass(config_class, PPOConfig):
        defaults |= {"num_generations": 1, "num_ppo_epochs": 1}
    args = config(config_class, **{**defaults, **(config_options or {})})
    defaults = {"reward_funcs": [environment_reward], "train_dataset": rows}
    rollout_func = environment_rollout(environment, **rollout)
    trainer = make_trainer(trainer_class, path, args, rollout_func=rollout_func, **{**defaults, **options})
    trainer.rollout = rollout_func  # our trainers wrap the one that they call
    return trainer


def play(trainer, rows):
    """The rollout function's answer for these rows, as a trainer of ours asks for it."""
    rows = [dict(row) for row in rows]
    trainer.rollout_rows = rows
    return trainer.rollout_func([row["prompt"] for row in rows], trainer)


def fresh_logps(model, trajectory, temperature):
    ids = torch.tensor([trajectory.prompt_ids + trajectory.completion_ids])
    with torch.no_grad():
        logps = torch.log_softmax(model(ids).logits[0, :-1] / temperature, -1)
    return logps.gather(1, ids[0, 1:, None]).squeeze(1)[-len(trajectory.completion_ids) :]


def test_every_token_is_the_sampled_one_with_its_logprob_and_the_mask_marks_exactly_those(tiny):
    """200 random episodes: what `generate` gave, piece by piece, and a fresh forward of the whole episode."""
    trainer = trainer_for(tiny, config_options={"temperature": 0.7, "top_p": 0.9, "max_completion_length": 45})
    sampled, generate = {}, trainer._generate_single_turn

    def remember(prefixes, *args, **kwargs):
        ids, logps = generate(prefixes, *args, **kwargs)
        sampled.update({(tuple(p), tuple(new)): None for p, new in zip(prefixes, ids, strict=True)})
        return ids, logps

    trainer._generate_single_turn = remember
    encoded, tokenizer = [], trainer.processing_class
    with pytest.MonkeyPatch.context() as patch:
        call = type(tokenizer).__call__
        patch.setattr(
            type(tokenizer), "__call__", lambda self, text, **kw: encoded.append(text) or call(self, text, **kw)
        )
        output = play(trainer, ROWS.select(range(200)))

    said = set()
    for row, one in enumerate(output["trajectory"]):
        assert output["completion_ids"][row] is one.completion_ids
        assert len(one.completion_ids) == len(one.mask) == len(one.logprobs) <= 45
        mask = torch.tensor(one.mask, dtype=torch.bool)
        difference = (torch.tensor(one.logprobs) - fresh_logps(trainer.model, one, 0.7)).abs()
        assert difference[mask].max() <= 1e-4
        assert not torch.tensor(one.logprobs)[~mask].any()
        place, turns = 0, [message["content"] for message in one.messages]
        for text, next_text in zip(turns[1::2], [*turns[2::2], None], strict=False):
            end = place + next((n for n, m in enumerate(one.mask[place:]) if m == 0), len(one.mask) - place)
            turn = one.completion_ids[place:end]
            assert any(
                (tuple(one.prompt_ids + one.completion_ids[:place]), tuple(turn + more)) in sampled
                for more in ([], [tokenizer.eos_token_id])
            ) or end == len(one.mask), "a turn is what the model was seen to write after exactly these tokens"
            assert tokenizer.decode(turn, skip_special_tokens=True) == text
            if end == len(one.mask):
                break
            observed = call(tokenizer, text=next_text, add_special_tokens=False)["input_ids"]
            assert one.completion_ids[end : end + len(observed)] == observed
            assert one.mask[end : end + len(observed)] == [0] * len(observed)
            place = end + len(observed)
        said |= {message["content"] for message in one.messages if message["role"] != "assistant"}
    assert set(encoded) <= said  # the model's words were never encoded
    assert len({one.turns for one in output["trajectory"]}) > 3
    assert {one.truncated for one in output["trajectory"]} == {"", "max_turns", "context"}


def test_an_episode_does_not_depend_on_the_others_of_its_batch(tiny):
    """Greedy play: finished episodes leave, and those that are left go on as they would alone."""
    trainer = trainer_for(
        tiny, config_options={"generation_kwargs": {"do_sample": False, "top_p": None, "top_k": None}}
    )
    rows = ROWS.select(range(12))
    together = play(trainer, rows)
    alone = [play(trainer, [row]) for row in rows]
    assert together["completion_ids"] == [one["completion_ids"][0] for one in alone]
    assert together["env_mask"] == [one["env_mask"][0] for one in alone]


def test_environments_of_coroutines_play_the_same_episodes(tiny):
    outputs = []
    for environment in (Talk, AsyncTalk):
        trainer = trainer_for(tiny, environment=environment)
        torch.manual_seed(3)
        outputs.append(play(trainer, ROWS.select(range(8))))
    assert outputs[0]["completion_ids"] == outputs[1]["completion_ids"]
    assert [one.rewards for one in outputs[0]["trajectory"]] == [one.rewards for one in outputs[1]["trajectory"]]


class FakeVLLM:
    """Has what TRL 1.16 calls of its `VLLMGeneration`."""

    max_completion_length = 60

    def __init__(self):
        self.synced, self.limits = 0, []

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, images, num_generations, profiler=None):
        self.limits.append(self.max_completion_length)
        ids = [[5 + len(prompt) % 7] * self.max_completion_length for prompt in prompts]
        return prompts, ids, [[[-0.125] for _ in row] for row in ids], None


def test_vllm_is_asked_for_a_turn_at_a_time_and_its_logprobs_are_kept(tiny):
    trainer = trainer_for(tiny)
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, FakeVLLM(), -1
    output = play(trainer, ROWS.select(range(6)))
    for one, mask in zip(output["trajectory"], output["env_mask"], strict=True):
        assert one.logprobs == [-0.125 * mine for mine in mask]
        first = one.completion_ids[: one.turn_ends[0] + 1]
        assert first == [5 + len(one.prompt_ids) % 7] * 6
    assert set(trainer.vllm_generation.limits) == {6}  # max_turn_tokens
    assert (trainer.vllm_generation.max_completion_length, trainer.vllm_generation.synced) == (60, 1)


@pytest.mark.parametrize("learned_positions", [False, True])
def test_the_context_ends_an_episode_as_truncated_and_the_others_go_on(tiny, learned_positions):
    """One row begins close to the end of the context; learned positions would raise if any row passed it."""

    class Long(Talk):
        ends = 0.0

        def reset(self, **row):
            text = super().reset(**row)
            return "x" * 60 if row["seed"] == 0 else text

    tokenizer, model = tiny_tokenizer(), tiny_model(hidden_size=32)
    model.config.max_position_embeddings = 64
    if learned_positions:
        size = {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer)}
        model = GPT2LMHeadModel(GPT2Config(**size, eos_token_id=tokenizer.eos_token_id, bos_token_id=None))
    trainer = trainer_for(tiny, "GRPO", environment=Long, rollout={"max_turn_tokens": 20, "max_turns": 3}, model=model)
    long, *others = play(trainer, ROWS.select(range(4)))["trajectory"]
    assert long.truncated == "context"
    assert len(long.prompt_ids + long.completion_ids) <= 64
    assert len(long.messages) == 2 or long.turns > 0
    assert all(len(one.prompt_ids + one.completion_ids) <= 64 and one.turns > 0 for one in others)
    assert any(end >= 10 for one in others for end in one.turn_ends[:1])  # a turn went on past the long row's end


def test_a_turn_that_is_cut_off_by_the_budget_is_no_action(tiny):
    class Counting(Talk):
        steps = 0

        def step(self, action):
            Counting.steps += 1
            return super().step(action)

    trainer = trainer_for(
        tiny, environment=Counting, rollout={"max_turn_tokens": None}, config_options={"max_completion_length": 3}
    )
    output = play(trainer, ROWS.select(range(16)))
    cut = [one for one in output["trajectory"] if one.completion_ids[-1] != trainer.processing_class.eos_token_id]
    assert len(cut) > 8
    assert {(one.truncated, one.turns) for one in cut} == {("context", 0)}
    assert Counting.steps == sum(one.turns for one in output["trajectory"])


class Endless(Talk):
    """Never ends by itself, as games of Gymnasium with a limit of their own would."""

    ends = 0.0


class Patient(Endless):
    max_turns = 12


@pytest.mark.parametrize(
    ("environment", "max_turns", "turns"), [(Endless, None, 10), (Patient, None, 12), (Patient, 4, 4)]
)
def test_the_environment_says_how_many_turns_there_are_unless_the_user_does(tiny, environment, max_turns, turns):
    rollout = {"max_turns": max_turns, "max_turn_tokens": 1}
    trainer = trainer_for(tiny, environment=environment, rollout=rollout, config_options={"max_completion_length": 120})
    (one,) = play(trainer, ROWS.select(range(1)))["trajectory"]
    assert (one.turns, one.truncated) == (turns, "max_turns")


def test_recorders_learn_which_split_was_played(tiny):
    heard = []
    recorders = [lambda *batch: heard.append(("a", *batch[1:])), lambda *batch: heard.append(("b", *batch[1:]))]
    trainer = trainer_for(tiny, rollout={"recorder": recorders})
    trainer.model.train()
    play(trainer, ROWS.select(range(1)))
    trainer.model.eval()
    play(trainer, ROWS.select(range(1)))
    assert heard == [("a", "train", 0), ("b", "train", 0), ("a", "eval", 0), ("b", "eval", 0)]


def test_an_episode_knows_when_its_environment_was_called(tiny):
    (one,) = play(trainer_for(tiny, environment=Endless), ROWS.select(range(1)))["trajectory"]
    assert len(one.called_at) == len(one.called_for) == one.turns + 1  # the reset, then each turn
    assert one.called_at == sorted(one.called_at)
    assert sum(one.called_for) == pytest.approx(one.seconds["environment"])


@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_trains_and_logs_and_records_its_episodes(tiny, tmp_path, name):
    rows = ROWS.map(lambda row: {"prompt": str(row["seed"])})  # GRPOTrainer tells rows by their prompts
    options = (
        {"config_options": {"num_generations": 2}} if name != "PPO" else {"config_options": {"num_generations": 1}}
    )
    trainer = trainer_for(tiny, name, rows=rows, rollout={"recorder": TrajectoryRecorder(tmp_path)}, **options)
    trainer.train()
    assert (weights(trainer.model)[: len(weights(load(tiny)))] - weights(load(tiny))).abs().max() > 1e-3
    log = trainer.state.log_history[0]
    assert {"episode/success", "episode/turns", "episode/said", "episode/failed"} <= set(log)
    recorded = read_trajectories(tmp_path)
    assert len(recorded) == 3 * 8
    assert [one.step for one in recorded] == [0] * 8 + [1] * 8 + [2] * 8
    first = recorded[:8]
    assert log["reward"] == pytest.approx(sum(one.reward for one in first) / 8, abs=1e-5)
    assert all(one.messages[0]["content"].startswith(str(one.row["seed"])) for one in first)
    size = trainer.num_generations
    assert [one.group for one in first] == [f"0.{i // size}" for i in range(8)]
    assert all(first[i].row == first[i - i % size].row for i in range(8))  # TRL's order: a group's rows side by side


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_ppo_leaves_each_turns_reward_on_the_turns_last_token(tiny, weight):
    def constant(completions, **columns):
        return [10.0] * len(completions)

    trainer = trainer_for(
        tiny,
        (Keeping, PPOConfig),
        config_options={**UNDISCOUNTED, "reward_weights": [weight, 1.0]},
        reward_funcs=[environment_reward, constant],
    )
    trainer.train()
    found, expected = zip(*returns(trainer, weight, at_the_end=10.0), strict=True)
    assert found == pytest.approx(expected, abs=1e-4)
    assert sum(row["trajectory"].turns > 1 for row in trainer.inputs) > 2


@pytest.mark.parametrize("name", TRAINERS)
def test_training_goes_on_with_a_fifth_of_the_episodes_failing_and_none_of_them_is_scored(
    tiny, tmp_path, patient, name
):
    rows = ROWS.map(lambda row: {"prompt": str(row["seed"])})
    trainer_class, config_class = TRAINERS[name]

    class Kept(trainer_class):
        batches = []

        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            self.batches.append((inputs, output))
            return output

    def always_one(completions, **columns):  # a reward that knows nothing of failures
        return [1.0] * len(completions)

    rewards = [environment_reward] if name == "GRPO" else [environment_reward, always_one]
    ours = {"num_generations": 1 if name == "PPO" else 2, "per_device_train_batch_size": 30, "max_steps": 2}
    trainer = trainer_for(
        tiny,
        (Kept, config_class),
        environment=Faulty,
        rows=rows,
        rollout={"step_timeout": 0.2, "recorder": TrajectoryRecorder(tmp_path, ["jsonl"])},
        reward_funcs=rewards,
        config_options={**ours, "shuffle_dataset": False},
    )
    trainer.train()
    assert weights(trainer.model).isfinite().all()
    failures = trainer.rollout.failures
    kinds = {
        "broken pipe",
        "nonsense",
        "must be a finite number",
        "no such mailbox",
        "raised SystemExit",
        "took longer",
    }
    if name == "PPO":  # 60 rows: each kind is there
        assert all(any(kind in failure for failure in failures) for kind in kinds)
    failed = 0
    for inputs, output in Kept.batches:
        for row, one in enumerate(inputs):
            if one["seed"] % 5:
                assert one["trajectory"].failure is None
                continue
            failed += 1
            assert one["trajectory"].failure is not None
            assert not output["tool_mask"][row].masked_select(output["completion_mask"][row].bool()).any()
            advantages = output["advantages"][row]
            assert not advantages.any()
    assert failed == len(failures) == sum(one.failure is not None for one in read_trajectories(tmp_path)) > 5
    assert trainer.state.log_history[0]["episode/failed"] == pytest.approx(0.2, abs=0.07)


@pytest.mark.parametrize("max_failures", [2, 0.1])
def test_too_many_failures_end_the_run_with_the_first_of_them(tiny, patient, max_failures):
    trainer = trainer_for(tiny, environment=Faulty, rollout={"max_failures": max_failures, "step_timeout": 0.2})
    with pytest.raises(
        EpisodeFailuresError, match=r"4 of 20 episodes failed, max_failures = .*turn 1: ValueError: broken"
    ):
        play(trainer, ROWS.select(range(20)))
    enough = 4 if isinstance(max_failures, int) else 0.2
    fine = trainer_for(tiny, environment=Faulty, rollout={"max_failures": enough, "step_timeout": 0.2})
    assert sum(one.failure is not None for one in play(fine, ROWS.select(range(20)))["trajectory"]) == 4


class Huge(Talk):
    def step(self, action):
        return super().step(action)._replace(info={"tokens": 10**400} if self.rng.random() < 0.5 else {})


def test_what_cannot_be_kept_of_a_step_fails_its_episode_only(tiny):
    played = play(trainer_for(tiny, environment=Huge, rollout={"max_failures": 1.0}), ROWS.select(range(20)))
    failures = {one.failure for one in played["trajectory"]}
    assert None in failures
    assert len(failures) > 1
    assert all("OverflowError: int too large" in failure for failure in failures - {None})


def test_environments_are_closed_at_once_where_they_failed_and_the_others_in_the_end(tiny):
    made, closed = [], queue.Queue()

    class Closing(Faulty):
        def __init__(self):
            made.append(self)

        def close(self):
            closed.put(self)

    trainer = trainer_for(tiny, environment=Closing)
    play(trainer, ROWS.select(range(4)))  # row 0 raises
    failed = closed.get(timeout=60)
    assert closed.empty()
    trainer.rollout.close()
    assert {failed, *(closed.get(timeout=60) for _ in range(3))} == set(made)
    assert closed.empty()


def test_an_environment_is_used_again_unless_it_failed(tiny, patient):
    made = []

    class Numbered(Faulty):
        def __init__(self):
            made.append(self)

    trainer = trainer_for(tiny, environment=Numbered, rollout={"step_timeout": 0.2})
    play(trainer, ROWS.select(range(1, 5)))
    assert len(made) == 4
    play(trainer, ROWS.select(range(5, 9)))  # row 5 hangs
    assert len(made) == 4
    play(trainer, ROWS.select(range(11, 15)))
    assert len(made) == 5


def test_plain_grpo_refuses_rows_that_their_prompts_do_not_tell_apart(tiny):
    with pytest.raises(DatasetError, match="two rows with the prompt '' differ in other columns, and GRPOTrainer"):
        trainer_for(tiny, "GRPO").train()
    same = Dataset.from_list([{"prompt": "go ", "seed": 1}] * 16)
    trainer = trainer_for(tiny, "GRPO", rows=same, config_options={"max_steps": 1})
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_turns": 0}, "max_turns = 0: must be at least 1"),
        ({"max_turn_tokens": 0}, "max_turn_tokens = 0: must be"),
        ({"max_concurrency": 0}, "max_concurrency = 0: must be"),
        ({"step_timeout": 0}, "step_timeout = 0: must be greater than 0"),
        ({"step_timeout": math.nan}, "step_timeout = nan: must be"),
        ({"max_failures": -1}, "max_failures = -1: must be a count"),
        ({"max_failures": 1.5}, "max_failures = 1.5: must be a count"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        environment_rollout(Talk, **options)


def test_chat_without_a_template_is_refused(tiny):
    with pytest.raises(ConfigError, match="no chat template"):
        play(trainer_for(tiny, rollout={"chat": True}), ROWS.select(range(4)))


def test_a_reward_without_episodes_says_what_it_needs():
    with pytest.raises(RewardError, match="rollout_func=environment_rollout"):
        environment_reward(["x"])


def test_what_a_rollout_reads_of_a_trainer_is_in_the_contract():
    files = Path(inspect.getfile(trl_ext.agents)).parent.glob("*.py")
    used = {name for file in files for name in re.findall(r"\btrainer\.(\w+)", file.read_text())}
    private = {name for name in used if name.startswith("_")}
    assert private <= set(HOOKS) | set(ATTRIBUTES)
    public = {
        "accelerator",
        "args",
        "model",
        "processing_class",
        "state",
        "train_dataset",
        "eval_dataset",
    }  # the Trainer's
    only_with = {"generation_config", "vllm_generation", "rollout_rows"}  # one engine's each; ours
    assert used - private - public - only_with - {"train"} <= set(ATTRIBUTES)


def test_processes_keep_step_and_groups_are_those_of_all_of_them(tiny, tmp_path):
    """12 rows in groups of 4 on two processes, whose episodes end at different times; then both end with one report."""
    job = {"path": tiny, "folder": str(tmp_path / "t"), "result": str(tmp_path / "result.json")}
    on_two_processes("tests.agents.rollout_on_processes", json.dumps(job))
    first, second = json.loads((tmp_path / "result.json").read_text())
    assert first == second
    assert re.match(r"4 of 12 episodes failed, max_failures = 1: turn 1: ValueError: broken pipe \(x4\)", first)
    recorded = read_trajectories(tmp_path / "t")
    groups = [[one.row["seed"] for one in recorded if one.group == group] for group in ("0.0", "0.1", "0.2", "1.0")]
    assert [len(seeds) for seeds in groups] == [4, 4, 4, 4]
    assert all(len(set(seeds)) == 1 for seeds in groups)
