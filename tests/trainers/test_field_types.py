from dataclasses import fields

import numpy as np
import pytest
from trl import GRPOConfig

from tests.trainers.training import config
from trl_ext import CISPOConfig, HybridConfig, PPOConfig
from trl_ext.errors import ConfigError


@pytest.mark.parametrize("config_class", [CISPOConfig, PPOConfig, HybridConfig])
def test_a_value_of_the_wrong_type_is_refused_in_one_line_whatever_the_field(config_class):
    """A dict fits no field but a spec, and these say themselves what they want."""
    theirs = {field.name for field in fields(GRPOConfig)} - {"num_iterations", "steps_per_generation", "beta"}
    for name in [field.name for field in fields(config_class) if field.name not in theirs]:
        with pytest.raises(ConfigError, match=rf"^{name} = \{{'a': 1\}}: must (be|have) .*$"):
            config(config_class, **{name: {"a": 1}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_ppo_epochs": 1.5}, "num_ppo_epochs = 1.5: must be a whole number, or unset"),
        ({"num_mini_batches": True}, "num_mini_batches = True: must be a whole number"),
        ({"gamma": "1.0"}, "gamma = '1.0': must be a number"),
        ({"kl_coef": [0.1]}, r"kl_coef = \[0.1\]: must be a number, or unset"),
        ({"whiten_rewards": "no"}, "whiten_rewards = 'no': must be true or false"),
        ({"lean_update": 1}, "lean_update = 1: must be true or false"),
        ({"vf_coef": None}, "vf_coef = None: must be a number"),
    ],
)
def test_what_is_allowed_is_said(options, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        config(PPOConfig, **options)


def test_whole_numbers_are_numbers_and_those_of_numpy_too():
    args = config(PPOConfig, gamma=1, num_ppo_epochs=np.int64(2), vf_coef=np.float32(0.5), lam_value=None)
    assert (args.gamma, args.num_iterations, args.vf_coef) == (1, 2, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_iterations": 0}, "num_iterations = 0: must be at least 1"),
        ({"steps_per_generation": 0}, "steps_per_generation = 0: must be at least 1"),
        ({"max_completion_length": -1}, "max_completion_length = -1: must be at least 1"),
        ({"beta": float("nan")}, "beta = nan: must be a number of at least 0"),
    ],
)
def test_numbers_that_trl_would_fail_on_in_its_first_step_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        config(CISPOConfig, **options)
