import importlib.util
import io
import sys
import warnings
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import nn

from trl_ext import make_optimizer
from trl_ext.builtin.tiny_model import tiny_model
from trl_ext.errors import ConfigError, MissingExtraError
from trl_ext.optim import list_optimizers

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*no accelerator here:UserWarning",  # the paged ones
    "ignore:Paged optimizers are not supported on CPU:UserWarning",
    "ignore:This implementation of AdamW is deprecated:FutureWarning",  # galore_torch's
)

# The optimizers of the source document, and the classes that they stand for in it.
OF_THE_SOURCE = {
    "paged_adamw_8bit": "PagedAdamW8bit",
    "paged_adamw_32bit": "PagedAdamW32bit",
    "adamw_8bit": "AdamW8bit",
    "adamw_32bit": "AdamW32bit",
    "adagrad_8bit": "Adagrad8bit",
    "adagrad_32bit": "Adagrad32bit",
    "adam_8bit": "Adam8bit",
    "adam_32bit": "Adam32bit",
    "paged_adam_8bit": "PagedAdam8bit",
    "paged_adam_32bit": "PagedAdam32bit",
    "ademamix_8bit": "AdEMAMix8bit",
    "paged_ademamix_8bit": "PagedAdEMAMix8bit",
    "sgd_8bit": "SGD8bit",
    "lion_8bit": "Lion8bit",
    "lion_32bit": "Lion32bit",
    "paged_lion_8bit": "PagedLion8bit",
    "paged_lion_32bit": "PagedLion32bit",
}
ONLY_TORCH_AND_TRANSFORMERS = {"adamw", "adagrad", "rmsprop", "sgd", "adafactor"}
WITH_ANOTHER_CLASS = {"ademamix_32bit", "paged_ademamix_32bit"}  # bitsandbytes' AdEMAMix32bit raises on a CPU

# A word in a name, and the package that the name needs.
PACKAGES = {
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "schedule": "schedulefree",
    "stable": "optimi",
    "grokadamw": "grokadamw",
    "4bit": "torchao",
    "xla": "torch_xla",
    "npu": "torch_npu",
    "anyprecision": "torchdistx",
}
MESSAGES = {"optimi": "torch-optimi", "torch_npu": "torch_npu", "torch_xla": "torch_xla"}


class Layers(nn.Module):
    """Every kind of parameter that decay treats apart, and matrices that are large enough for 8 bits."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(90, width)
        self.linear = nn.Linear(width, 80)
        self.input_layernorm = nn.LayerNorm(80)
        self.q_norm = nn.RMSNorm(80)
        self.frozen = nn.Linear(80, 80)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(80, 90, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.q_norm(self.input_layernorm(torch.tanh(self.linear(self.embedding(tokens)))))
        return self.head(self.frozen(hidden))


DECAYED = {"embedding.weight", "linear.weight", "head.weight"}


def layers(width: int = 64) -> Layers:
    torch.manual_seed(0)
    return Layers(width)


def ready(model: nn.Module, spec: Any) -> Any:
    optimizer = make_optimizer(model, spec)
    if hasattr(optimizer, "train"):
        optimizer.train()  # schedulefree's, as the Trainer does
    return optimizer


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> list[float]:
    """The losses of `count` steps on a fixed batch: each token is followed by the next."""
    tokens = torch.arange(90)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens), (tokens + 1) % 90)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def package_of(name: str) -> str | None:
    if name == "adamw_torch_8bit":
        return "torchao"
    return next((package for word, package in PACKAGES.items() if word in name), None)


@pytest.mark.parametrize("name", list_optimizers())
def test_every_name_lowers_a_loss_or_names_the_package_that_it_needs(name):
    package = package_of(name)
    model = layers()
    if package and importlib.util.find_spec(package) is None:
        with pytest.raises(MissingExtraError, match=MESSAGES.get(package, package)):
            make_optimizer(model, name)
        return
    if name == "galore_adamw_8bit":
        pytest.skip("galore_torch's 8-bit optimizer is for GPUs")
    optimizer = ready(model, {"name": name.upper(), "lr": 0.05 if "sgd" in name or "radam" in name else 1e-3})
    losses = steps(model, optimizer, 8)
    assert losses[-1] < losses[0] - 0.01
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_the_names_of_the_source_document_are_all_there():
    assert {*OF_THE_SOURCE, *ONLY_TORCH_AND_TRANSFORMERS, *WITH_ANOTHER_CLASS} <= set(list_optimizers())
    assert {"adam", "lion", "ademamix"} <= set(list_optimizers())


def in_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in named if name in DECAYED], "weight_decay": decay},
        {"params": [parameter for name, parameter in named if name not in DECAYED], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("name", OF_THE_SOURCE)
def test_a_name_of_the_source_document_is_its_class(name):
    options: dict[str, Any] = {"lr": 1e-2}
    spec = {"OPTIMIZER": name, "LR": "1e-2", "WEIGHT_DECAY": 0.3}
    if "sgd" in name:
        options["momentum"] = spec["MOMENTUM"] = 0.7
    elif "adagrad" not in name:
        options["betas"] = (0.8, 0.95, 0.9999) if "ademamix" in name else (0.8, 0.95)
        spec |= {"BETA1": 0.8, "BETA2": 0.95}
    ours, theirs = layers(40), layers(40)  # an embedding too small for 8 bits: larger ones are kept out of them
    steps(ours, make_optimizer(ours, spec), 4)
    steps(theirs, getattr(bitsandbytes.optim, OF_THE_SOURCE[name])(in_groups(theirs, 0.3), **options), 4)
    assert torch.equal(weights(ours), weights(theirs))


@pytest.mark.parametrize(
    ("spec", "make"),
    [
        (
            {"name": "adamw", "EPS": 1e-6, "beta1": 0.8},
            lambda g: torch.optim.AdamW(g, lr=5e-5, eps=1e-6, betas=(0.8, 0.999)),
        ),
        ({"name": "adam", "betas": [0.8, 0.9]}, lambda g: torch.optim.Adam(g, lr=5e-5, betas=(0.8, 0.9))),
        (
            {"name": "adagrad", "LR_DECAY": 0.1, "INITIAL_ACCUMULATOR_VALUE": 0.2},
            lambda g: torch.optim.Adagrad(g, lr=5e-5, lr_decay=0.1, initial_accumulator_value=0.2),
        ),
        (
            {"name": "rmsprop", "ALPHA": 0.9, "MOMENTUM": 0.5, "CENTERED": "True"},
            lambda g: torch.optim.RMSprop(g, lr=5e-5, alpha=0.9, momentum=0.5, centered=True),
        ),
        (
            {"name": "sgd", "MOMENTUM": 0.9, "DAMPENING": 0.1, "NESTEROV": "false"},
            lambda g: torch.optim.SGD(g, lr=5e-5, momentum=0.9, dampening=0.1),
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_the_plain_names_are_torchs(spec, make):
    ours, theirs = layers(), layers()
    steps(ours, make_optimizer(ours, {**spec, "weight_decay": 0.3}), 4)
    steps(theirs, make(in_groups(theirs, 0.3)), 4)
    assert torch.equal(weights(ours), weights(theirs))


def test_adafactor_takes_the_learning_rate():
    from transformers.optimization import Adafactor

    ours, theirs = layers(), layers()
    steps(ours, make_optimizer(ours, {"name": "adafactor", "lr": 0.01, "eps": [1e-20, 1e-3]}), 4)
    arguments = {"lr": 0.01, "relative_step": False, "scale_parameter": False, "eps": (1e-20, 1e-3)}
    steps(theirs, Adafactor(in_groups(theirs, 0.0), **arguments), 4)
    assert torch.equal(weights(ours), weights(theirs))


@pytest.mark.parametrize(
    "name", ["adamw", "adamw_8bit", "lion_32bit", "sgd", "adafactor", "schedule_free_adamw", "galore_adamw"]
)
def test_norms_and_biases_do_not_decay(name):
    model = layers()
    optimizer = ready(model, {"name": name, "lr": 0.1, "weight_decay": 0.5})
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    if hasattr(optimizer, "train"):
        optimizer.eval()
    for key, parameter in model.named_parameters():
        expected = before[key] * (1 - 0.1 * 0.5) if key in DECAYED else before[key]
        assert torch.allclose(parameter, expected, atol=1e-6), key


def test_decay_is_that_of_the_class_unless_given():
    for name, decay in (("adamw", 0.01), ("adam", 0.0), ("adamw_8bit", 0.01), ("lion", 0.0), ("adafactor", 0.0)):
        assert [group["weight_decay"] for group in make_optimizer(layers(), name).param_groups] == [decay, 0.0], name


def test_embeddings_have_a_state_of_32_bits_as_in_the_trainer():
    model = layers()
    optimizer = make_optimizer(model, "adamw_8bit")
    steps(model, optimizer, 1)
    assert optimizer.state[model.embedding.weight]["state1"].dtype == torch.float32
    assert optimizer.state[model.head.weight]["state1"].dtype == torch.uint8


def test_adapters_alone_are_trained():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(hidden_size=32), LoraConfig(target_modules=["q_proj"]))
    optimizer = make_optimizer(model, "adamw")
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
    assert all(parameter.requires_grad for group in optimizer.param_groups for parameter in group["params"])


def test_low_rank_options_reach_the_groups():
    spec = {"name": "galore_adamw", "RANK": 4, "scale": 0.5, "target_modules": ["linear"], "BETA2": 0.9}
    optimizer = make_optimizer(layers(), spec)
    ranked = [group for group in optimizer.param_groups if "rank" in group]
    assert [tuple(parameter.shape) for group in ranked for parameter in group["params"]] == [(80, 64)]
    assert (ranked[0]["rank"], ranked[0]["scale"], ranked[0]["update_proj_gap"]) == (4, 0.5, 200)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.9)}


@pytest.mark.parametrize(
    "name", ["adamw", "adafactor", "adagrad_8bit", "paged_ademamix_8bit", "ademamix", "lion_8bit", "sgd_8bit"]
)
def test_a_run_that_is_resumed_ends_as_an_unbroken_one(name):
    whole = layers()
    steps(whole, make_optimizer(whole, {"name": name, "lr": 0.01}), 6)
    model = layers()
    optimizer = make_optimizer(model, {"name": name, "lr": 0.01})
    steps(model, optimizer, 3)
    buffer = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)  # as the Trainer does
    resumed = Layers()
    resumed.load_state_dict(states[0])
    optimizer = make_optimizer(resumed, {"name": name, "lr": 0.01})
    optimizer.load_state_dict(states[1])
    steps(resumed, optimizer, 3)
    assert torch.equal(weights(resumed), weights(whole))


def test_paged_ones_run_without_an_accelerator_and_say_so():
    model = nn.Linear(1000, 200)  # above 1e5 parameters bitsandbytes' AdEMAMix asks for CUDA
    with pytest.warns(UserWarning, match="'paged_ademamix_8bit': no accelerator here, so its state is not paged"):
        optimizer = make_optimizer(model, {"name": "paged_ademamix_8bit", "lr": 0.01})
    model(torch.ones(1, 1000)).square().sum().backward()
    before = weights(model)
    optimizer.step()
    assert not torch.equal(weights(model), before)


def test_paged_ones_are_paged_where_there_is_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert make_optimizer(layers(), "paged_ademamix_8bit").is_paged
    assert not make_optimizer(layers(), "ademamix_8bit").is_paged


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adamv", "no optimizer 'adamv'; close ones: adam, adamw, "),
        ("zzz", "no optimizer 'zzz'; there are: adafactor, adagrad, "),
        (
            "paged_sgd_8bit",
            "'paged_sgd_8bit': there is no such variant; there are schedule_free_sgd, sgd, sgd_32bit, sgd_8bit",
        ),
        ("adafactor_8bit", "there is no such variant; there are adafactor, galore_adafactor"),
        ("lion_4bit", "there are lion, lion_32bit, lion_8bit, paged_lion_32bit, paged_lion_8bit"),
        ("lomo", "optimizer 'lomo' steps inside the backward pass, which only the Trainer's optim= arranges"),
        ("galore_adamw_layerwise", "steps inside the backward pass"),
        (None, "optimizer = None: must be a name, or a dict with a 'name'"),
        ({"lr": 1}, "optimizer = {'lr': 1}: must have one 'name', a string"),
        ({"name": "adamw", "OPTIMIZER": "sgd"}, "must have one 'name'"),
        ('{"name": "adamw"', "optimizer: this is not JSON"),
        (
            {"name": "adamw", "betta1": 0.9},
            "no option 'betta1'; did you mean beta1 or betas? known ones: lr, betas, eps",
        ),
        (
            {"name": "sgd", "BETA1": 0.9},
            "no option 'BETA1'; known ones: lr, momentum, dampening, weight_decay, nesterov",
        ),
        ({"name": "adamw", "beta3": 0.9}, "no option 'beta3'"),
        ({"name": "sgd_8bit", "nesterov": True}, "no option 'nesterov'; known ones: lr, momentum, weight_decay"),
        ({"name": "adafactor", "relative_step": True}, "no option 'relative_step'"),
        ({"name": "adamw", "BETA1": 0.9, "beta1": 0.9}, "'BETA1' and 'beta1' are one option, given twice"),
        ({"name": "adamw", "LR": 0.1, "learning_rate": 0.1}, "'LR' and 'learning_rate' are one option, given twice"),
        ({"name": "adamw", "beta1": 0.9, "betas": [0.9, 0.99]}, "beta1 and betas are one option, given twice"),
        ({"name": "galore_adamw", "target_modules": "x", "TARGET_MODULES": "x"}, "are one option, given twice"),
        ({"name": "galore_adamw", "target_modules": "nowhere"}, "optimizer 'galore_adamw': No target modules found"),
        ({"name": "adamw", "lr": 0}, "lr = 0: must be greater than 0"),
        ({"name": "adamw", "lr": "fast"}, "lr = 'fast': must be a number"),
        ({"name": "adamw", "lr": None}, "lr = None: must be a number"),
        ({"name": "adamw", "lr": [0.1, 0.2]}, "lr = (0.1, 0.2): must be a number"),
        ({"name": "adamw", "lr": float("inf")}, "lr = inf: must be finite"),
        ({"name": "adamw", "weight_decay": -0.1}, "weight_decay = -0.1: must be at least 0"),
        ({"name": "adamw", "amsgrad": 1}, "amsgrad = 1: must be true or false"),
        ({"name": "adamw", "betas": [0.9]}, "betas = (0.9,): must be 2 numbers"),
        ({"name": "adamw", "beta1": 1.5}, "optimizer 'adamw': Invalid beta parameter at index 0: 1.5"),
        ({"name": "adamw_8bit", "beta1": 1.5}, "optimizer 'adamw_8bit': Invalid beta parameter at index 0: 1.5"),
        (
            {"name": "sgd", "nesterov": True},
            "optimizer 'sgd': Nesterov momentum requires a momentum and zero dampening",
        ),
        ({"name": "sgd_8bit", "momentum": 0}, "optimizer 'sgd_8bit': SGD without momentum is not supported!"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(spec, message):
    with pytest.raises(ConfigError) as caught:
        make_optimizer(layers(), spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_or_has_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="takes the model itself, this is str"):
        make_optimizer("Qwen/Qwen2.5-0.5B", "adamw")
    with pytest.raises(ConfigError, match="no parameter that requires a gradient"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), "adamw")


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for name in ("adamw_8bit", "lion", "ademamix", "rmsprop_bnb"):
        with pytest.raises(MissingExtraError, match=rf"{name}' needs bitsandbytes: pip install 'trl-ext\[optim\]'"):
            make_optimizer(layers(), name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_optimizer(layers(), "adamw")
