import pytest
from trl import GRPOConfig

from tests.trainers.training import config
from trl_ext import PPOConfig
from trl_ext.errors import ConfigError


def test_one_completion_per_prompt_is_the_default_and_stays_a_plain_number():
    args = config(PPOConfig, num_generations=1, per_device_train_batch_size=3)
    assert args.num_generations == 1
    assert type(args.num_generations) is int
    assert PPOConfig.num_generations == 1


@pytest.mark.parametrize(
    ("name", "grpos", "value", "default"),
    [
        ("num_ppo_epochs", "num_iterations", 3, 4),
        ("cliprange", "epsilon", 0.3, 0.2),
        ("response_length", "max_completion_length", 53, GRPOConfig.max_completion_length),
    ],
)
def test_names_of_trl_112_and_of_grpo_mean_the_same(name, grpos, value, default):
    free = {"max_completion_length": None}
    for given in (name, grpos):
        args = config(PPOConfig, **{**free, given: value})
        assert getattr(args, name) == getattr(args, grpos) == value
    args = config(PPOConfig, **free)
    assert getattr(args, name) == getattr(args, grpos) == default
    with pytest.raises(ConfigError, match=f"{name} = {value} and {grpos} = {value + 1} are two names of one option"):
        config(PPOConfig, **{**free, name: value, grpos: value + 1})


def test_mini_batches_are_optimizer_steps_of_one_pass():
    args = config(PPOConfig, num_mini_batches=4, gradient_accumulation_steps=2)
    assert args.steps_per_generation == 8
    assert args.generation_batch_size == 8 * args.per_device_train_batch_size
    assert config(PPOConfig, num_mini_batches=4, steps_per_generation=3).steps_per_generation == 3


def test_the_kl_penalty_is_in_the_reward_unless_it_is_asked_for_in_the_loss():
    assert config(PPOConfig).kl_coef == 0.05
    assert config(PPOConfig, beta=0.04).kl_coef == 0.0
    with pytest.raises(ConfigError, match=r"kl_coef = 0.1 \(KL in the reward\) and beta = 0.04 \(KL in the loss\)"):
        config(PPOConfig, beta=0.04, kl_coef=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_ppo_epochs": 0}, "num_ppo_epochs = 0: must be a finite number of at least 1"),
        ({"num_mini_batches": 0}, "num_mini_batches = 0"),
        ({"num_generations": 0}, "num_generations = 0"),
        ({"kl_coef": float("nan")}, "kl_coef = nan"),
        ({"vf_coef": -1.0}, "vf_coef = -1.0"),
        ({"cliprange": -0.1}, "cliprange = -0.1"),
        ({"cliprange_value": -0.2}, "cliprange_value = -0.2"),
        ({"gamma": 1.5}, "gamma = 1.5: must be from 0 to 1"),
        ({"lam_value": -0.1}, "lam_value = -0.1"),
        ({"lam_length_alpha": 0.0}, "lam_length_alpha = 0.0: must be greater than 0, or unset"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty = -1.0"),
        ({"kl_estimator": "k2"}, r"kl_estimator = 'k2': must be one of \('k1', 'k3'\)"),
        ({"value_model": "none"}, "value_model = 'none'"),
        ({"loss_type": "vespo"}, "loss_type = 'vespo'"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level = 'sequence'"),
        ({"value_model_name_or_path": "x"}, "value_model_name_or_path is for value_model='separate'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        config(PPOConfig, **options)
