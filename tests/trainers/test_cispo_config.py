import math

import pytest

from tests.trainers.training import config
from trl_ext import CISPOConfig
from trl_ext.errors import ConfigError

REFUSED = {
    r"importance_weight_min = 6: must be at most importance_weight_max \(5.0\)": {"importance_weight_min": 6},
    r"importance_weight_min = -0.1: must be a number of at least 0": {"importance_weight_min": -0.1},
    r"importance_weight_min = nan: must be a number": {"importance_weight_min": math.nan},
    r"importance_weight_min = inf: must be finite": {
        "importance_weight_min": math.inf,
        "importance_weight_max": math.inf,
    },
    r"importance_weight_max = -1: must be a number of at least 0": {"importance_weight_max": -1},
    r"importance_weight_max = nan: must be a number": {"importance_weight_max": math.nan},
    r"importance_weight_max = nan: must be a number of at least": {"epsilon_high": math.nan},
    r"importance_weight_max = 0.0: must be greater than 0": {"importance_weight_max": 0.0},
    r"trust_region_low = 1.2: must be at most 1": {"trust_region_low": 1.2},
    r"trust_region_low = nan: must be a number": {"trust_region_low": math.nan},
    r"trust_region_high = 0.2: must be at least 1; .* did you mean 1.2\?": {"trust_region_high": 0.2},
    r"trust_region_high = -1: must be a number of at least 0": {"trust_region_high": -1},
    r"loss_type = 'grpo': must be 'cispo'": {"loss_type": "grpo"},
    r"loss_aggregation = 'tokens': must be one of": {"loss_aggregation": "tokens"},
    r"are two names of one bound: give one": {"importance_weight_max": 5.0, "epsilon_high": 4.0},
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_values_are_refused_in_one_line(message):
    with pytest.raises(ConfigError, match=message) as error:
        config(CISPOConfig, **REFUSED[message])
    assert "\n" not in str(error.value)


def test_the_upper_bound_has_one_value_under_both_names():
    assert config(CISPOConfig).epsilon_high == config(CISPOConfig).importance_weight_max == 5.0
    assert config(CISPOConfig, epsilon_high=8.0).importance_weight_max == 8.0
    assert config(CISPOConfig, importance_weight_max=4.0).epsilon_high == 4.0
    assert config(CISPOConfig, importance_weight_max=math.inf).epsilon_high == math.inf


def test_a_bound_that_looks_like_a_distance_from_1_warns():
    with pytest.warns(UserWarning, match=r"importance_weight_max = 0.28 is absolute .* did you mean 1.28\?"):
        config(CISPOConfig, importance_weight_max=0.28)


def test_a_config_survives_its_own_dictionary():
    original = config(CISPOConfig, importance_weight_min=0.5, trust_region_high=2.0, loss_aggregation="prompt")
    fields = original.to_dict()
    del fields["generation_batch_size"]  # GRPOConfig fills it in and then refuses both
    copy = CISPOConfig(**fields)
    assert copy.importance_weight_min == 0.5
    assert copy.importance_weight_max == copy.epsilon_high == 5.0
