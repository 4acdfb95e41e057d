"""DeepSpeed itself is not needed: what is read is the config that transformers keeps for the process."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from trl_ext import make_optimizer, make_scheduler
from trl_ext.errors import ConfigError
from trl_ext.optim import make_optimizers

OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


class Holder:
    config: dict[str, Any] = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}}


@pytest.fixture
def deepspeed() -> Iterator[Holder]:
    holder = Holder()
    set_hf_deepspeed_config(holder)  # keeps a weak reference
    yield holder
    unset_hf_deepspeed_config()


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)


def test_what_the_deepspeed_config_leaves_to_us_is_made(deepspeed):
    assert isinstance(make_optimizer(nn.Linear(2, 2), "lion_8bit"), torch.optim.Optimizer)
    assert make_scheduler(sgd(), "step", num_training_steps=9).get_last_lr() == [0.1]


def test_what_the_deepspeed_config_has_itself_is_refused(deepspeed):
    deepspeed.config = {"optimizer": {"type": "AdamW"}, "scheduler": {"type": "WarmupLR"}}
    with pytest.raises(ConfigError, match="has a 'optimizer' section, which would replace this optimizer: remove it"):
        make_optimizer(nn.Linear(2, 2), "adamw")
    with pytest.raises(ConfigError, match="has a 'scheduler' section, which would replace this scheduler: remove it"):
        make_scheduler(sgd(), "linear", num_training_steps=9)


@pytest.mark.parametrize("name", ["lion_8bit", "ademamix", "adamw_8bit", "sgd", "adafactor"])
def test_with_offload_an_optimizer_that_would_be_replaced_is_refused(deepspeed, name):
    deepspeed.config = OFFLOAD
    with pytest.raises(ConfigError, match=f"'{name}': with offload_optimizer DeepSpeed would run DeepSpeedCPUAdam"):
        make_optimizer(nn.Linear(2, 2), name)
    deepspeed.config = {**OFFLOAD, "zero_force_ds_cpu_optimizer": False}
    assert make_optimizer(nn.Linear(2, 2), name).param_groups


@pytest.mark.parametrize(
    "name", ["adamw", "adam", "adagrad", "adamw_torch", "adamw_torch_fused", "lion", "adamw_32bit"]
)
def test_with_offload_the_kinds_that_deepspeed_has_are_made(deepspeed, name):
    deepspeed.config = OFFLOAD
    assert make_optimizer(nn.Linear(2, 2), name).param_groups


def test_a_pair_for_the_trainer_is_refused_because_the_trainer_drops_it(deepspeed):
    with pytest.raises(ConfigError, match="under DeepSpeed the Trainer drops an optimizer and a scheduler"):
        make_optimizers(nn.Linear(2, 2), "adamw", "linear", num_training_steps=9)
