import pytest

from tests.trainers.training import config
from trl_ext import HybridConfig
from trl_ext.errors import ConfigError


def test_a_cycle_of_the_default_is_one_step_on_demonstrations_and_one_batch_of_completions():
    args = config(HybridConfig, num_ppo_epochs=2, num_mini_batches=3, max_steps=20)
    assert args.rl_block == 6
    assert args.phases(14) == (["sft"] + ["rl"] * 6) * 2


def test_other_losses_on_rewards_have_groups_and_no_values():
    args = config(HybridConfig, rl_loss="cispo", num_generations=4, max_steps=20)
    assert (args.loss_type, args.epsilon_high, args.vf_coef, args.kl_coef) == ("cispo", 5.0, 0.0, 0.0)
    assert config(HybridConfig, rl_loss="grpo", num_generations=4, max_steps=20).loss_type == "dapo"
    with pytest.raises(ConfigError, match=r"num_generations = 1: must be at least 2 with rl_loss = 'cispo'"):
        config(HybridConfig, rl_loss="cispo", num_generations=1, max_steps=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "mixed"}, "mode = 'mixed': must be one of"),
        ({"rl_loss": "dpo"}, "rl_loss = 'dpo'"),
        ({"schedule_shape": "sine"}, "schedule_shape = 'sine'"),
        ({"sft_steps": 0}, "sft_steps = 0: must be at least 1"),
        ({"rl_steps": 0}, "rl_steps = 0: must be at least 1"),
        ({"rl_steps": 3, "num_ppo_epochs": 2}, "rl_steps = 3: must be a multiple of 2"),
        ({"rl_share_end": 1.5}, "rl_share_end = 1.5: must be from 0 to 1"),
        ({"mu_start": -0.1}, "mu_start = -0.1"),
        ({"gate": 2.0}, "gate = 2.0"),
        ({"sft_coef": 0.0}, "sft_coef = 0.0"),
        ({"merge_every": 0}, "merge_every = 0"),
        ({"merge_average": 1.5, "merge_every": 1}, "merge_average = 1.5: must be from 0 to 1"),
        ({"merge_average": 0.5}, "merge_average = 0.5: needs merge_every"),
        ({"merge_average": 0.5, "merge_every": 1, "mode": "joint"}, "mode = 'joint' has no phases to average"),
        ({"merge_average": 0.5, "merge_every": 1, "mode": "gate"}, "mode = 'gate' has no phases to average"),
        ({"sft_steps": 20}, "mode = 'alternate': none of the 20 steps trains on rewards"),
        ({"mode": "sequential", "sft_steps": 20}, "none of the 20 steps trains on rewards"),
        ({"mode": "curriculum", "rl_share_end": 0.0, "rl_share_start": 0.0}, "none of the 20 steps trains on rewards"),
        ({"cliprange": -1.0}, "cliprange = -1.0"),
        ({"rl_loss": "grpo", "positive_lm_coef": 0.1}, "positive_lm_coef = 0.1: is of rl_loss = 'ppo', this is 'grpo'"),
        ({"rl_loss": "cispo", "value_warmup_steps": 2}, "value_warmup_steps = 2: is of rl_loss = 'ppo'"),
        ({"rl_loss": "cispo", "missing_eos_penalty": 1.0}, "missing_eos_penalty = 1.0: is of rl_loss = 'ppo'"),
        ({"rl_loss": "cispo", "kl_coef": 0.1}, "kl_coef = 0.1: is of rl_loss = 'ppo', this is 'cispo'; beta is its KL"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        config(HybridConfig, **{"max_steps": 20, **options})
