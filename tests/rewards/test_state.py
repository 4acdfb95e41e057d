from pathlib import Path
from types import SimpleNamespace

from transformers import TrainerCallback

from tests.trainers.training import PROMPTS, config, make_trainer
from trl_ext import CISPOConfig, CISPOTrainer
from trl_ext.rewards import RewardStateCallback, make_reward_funcs

SPEC = {
    "type": "weighted_sum",
    "components": [
        {"type": "levenshtein", "target": "prompt_text", "postprocess": [{"type": "ema_normalize", "decay": 0.9}]},
        {"type": "jaccard", "target": "prompt_text", "weight": 0.5},
    ],
}


def train(tiny, args, **options):
    """Train with the spec; returns the trainer, its rewards, and what they held when training began."""
    rewards, weights = make_reward_funcs(SPEC)
    args.reward_weights = weights
    dataset = PROMPTS.map(lambda row: {"prompt_text": row["prompt"]})
    at_begin = {}

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            at_begin.update(rewards[0].state_dict())

    callbacks = [RewardStateCallback(rewards), Look()]
    trainer = make_trainer(CISPOTrainer, tiny, args, reward_funcs=rewards, train_dataset=dataset, callbacks=callbacks)
    trainer.train(**options)
    return trainer, rewards, at_begin


def test_averages_come_back_with_the_checkpoint(tiny, caplog):
    options = {"num_iterations": 2, "save_strategy": "steps", "save_steps": 2}
    args = config(CISPOConfig, max_steps=4, **options)
    _, rewards, at_begin = train(tiny, args)
    assert at_begin == {"levenshtein/0": None}
    saved = rewards[0].state_dict()
    assert saved["levenshtein/0"]["variance"] > 0
    resumed_args = config(CISPOConfig, max_steps=6, **options)
    resumed_args.output_dir = args.output_dir
    _, resumed, at_begin = train(tiny, resumed_args, resume_from_checkpoint=f"{args.output_dir}/checkpoint-4")
    assert at_begin == saved
    assert resumed[0].state_dict() != saved  # and they moved on
    assert "starts anew" not in caplog.text


def test_averages_come_back_from_a_checkpoint_elsewhere(tmp_path):
    old, new = (config(CISPOConfig, output_dir=str(tmp_path / name)) for name in ("old", "new"))
    new.resume_from_checkpoint = str(tmp_path / "old" / "checkpoint-2")
    Path(new.resume_from_checkpoint).mkdir(parents=True)
    state = SimpleNamespace(global_step=2, is_world_process_zero=True)
    rewards, resumed = make_reward_funcs(SPEC)[0], make_reward_funcs(SPEC)[0]
    rewards[0](["ab", "c"], prompt_text=["ab", "ab"])
    RewardStateCallback(rewards).on_save(old, state, None)
    RewardStateCallback(resumed).on_train_begin(new, state, None)
    assert resumed[0].state_dict() == rewards[0].state_dict()


def test_a_checkpoint_without_averages_is_said_aloud(tiny, caplog):
    callback = RewardStateCallback(make_reward_funcs(SPEC)[0])
    callback.on_train_begin(config(CISPOConfig), SimpleNamespace(global_step=2), None)
    assert "reward_state.json is missing: ema_normalize starts anew" in caplog.text


def test_each_component_is_logged_by_its_own_name(tiny):
    trainer, _, _ = train(tiny, config(CISPOConfig, num_iterations=2, max_steps=2))
    logged = {key for row in trainer.state.log_history for key in row}
    assert {"rewards/jaccard/mean", "rewards/levenshtein/mean"} <= logged
