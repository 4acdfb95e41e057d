import shlex
import shutil

import pytest
import yaml
from transformers import LlamaConfig
from trl import GRPOConfig

from tests.scaling.test_memory import QWEN_7B
from trl_ext import CISPOConfig, HybridConfig, PPOConfig
from trl_ext.cli import main
from trl_ext.errors import ConfigError, MissingExtraError
from trl_ext.recipe import parse_recipe_args
from trl_ext.scaling.memory import Cluster, Job, estimate
from trl_ext.scaling.pick import _GROUP, GIB, fits, optimizer_state, pick, what_would_fit
from trl_ext.scaling.shape import shape_of

LLAMA_70B = LlamaConfig(
    vocab_size=128256,
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The config of a 7 B model, and nothing else."""
    folder = tmp_path_factory.mktemp("qwen")
    QWEN_7B.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def large():
    return shape_of(LLAMA_70B)


def command(folder, tmp_path, *options):
    path = tmp_path / "chosen.yaml"
    main(["accelerate", "pick", "--model", folder, "--output", str(path), *options])
    return yaml.safe_load(path.read_text())


def test_the_least_communication_that_fits_is_chosen(small, tmp_path, capsys):
    config = command(small, tmp_path, "--gpus", "8")
    assert config["deepspeed_config"]["zero_stage"] == 2
    assert config["num_processes"] == 8
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert rows["ddp"].endswith("does not fit")
    assert rows["zero2"].endswith("<-")
    assert "7,615.6 M parameters; 8 x 80 GiB" in out
    assert f"accelerate launch --config_file {tmp_path}/chosen.yaml recipes/cispo.py" in out


def test_lora_fits_where_everything_is_on_each_gpu(small, tmp_path, capsys):
    config = command(small, tmp_path, "--gpus", "8", "--lora", "--trainer", "ppo", "--optim", "adamw_torch")
    assert config["distributed_type"] == "MULTI_GPU"
    out = capsys.readouterr().out
    assert "40.4 M of them trained" in out
    assert "recipes/ppo.py" in out
    assert "--use_peft true --lora_r 16" in out


def test_several_nodes_get_a_line_for_each(small, tmp_path, capsys):
    config = command(small, tmp_path, "--gpus", "8", "--nodes", "2", "--gpu-memory", "24", "--batch", "1")
    assert (config["num_machines"], config["num_processes"]) == (2, 16)
    assert "--machine_rank $NODE_RANK --main_process_ip $MAIN_NODE" in capsys.readouterr().out


def test_what_is_chosen_fits_and_what_sends_less_does_not(large):
    """For clusters of all sizes."""
    job = Job(large, generation="vllm_server", max_length=2048)
    chosen = {}
    for nodes, gpus in [(1, 8), (2, 8), (4, 8), (8, 8), (16, 8)]:
        cluster = Cluster(nodes, gpus, 80 * GIB)
        choice = pick(job, cluster)
        chosen[nodes] = choice.strategy
        best = choice.estimates[choice.strategy]
        assert fits(best, cluster)
        for name, other in choice.estimates.items():
            if name != "zero3_offload" and (other.between, other.sent) < (best.between, best.sent):
                assert choice.strategy == "zero3_offload" or not fits(other, cluster)
    assert chosen == {
        1: "zero3_offload",
        2: "zero3_offload",
        4: "zero3",  # with a second copy of the weights in each node it does not fit
        8: "zero3_hierarchical",
        16: "zero3_hierarchical",
    }


@pytest.mark.parametrize("second", [{"reference": True}, {"critic": "separate"}], ids=["reference", "critic"])
def test_hierarchical_partitioning_is_for_one_model(large, second):
    cluster = Cluster(8, 8, 80 * GIB)
    assert "zero3_hierarchical" in pick(Job(large), cluster).estimates
    assert "zero3_hierarchical" not in pick(Job(large, **second), cluster).estimates
    assert "zero3_hierarchical" in pick(Job(large, reference=True, lora_rank=8), cluster).estimates


def test_where_nothing_fits_it_says_what_would(large, tmp_path):
    folder = tmp_path / "large"
    LLAMA_70B.save_pretrained(folder)
    with pytest.raises(SystemExit) as stop:
        command(str(folder), tmp_path, "--gpus", "8")
    message = str(stop.value)
    assert message.startswith("error: nothing fits. What would: ")
    assert "--generation vllm_server (zero3_offload)" in message
    assert "--lora --generation vllm_server (zero3)" in message
    assert not (tmp_path / "chosen.yaml").exists()
    for suggestion in what_would_fit(Job(large), Cluster(1, 8, 80 * GIB)):
        assert "--gpus 8 --nodes" in suggestion or "vllm_server" in suggestion


@pytest.mark.parametrize(
    ("trainer", "options", "kl", "expected"),
    [
        ("cispo", ["--optim", "adamw_8bit"], 0.0, {"optim": "adamw_8bit", "num_generations": 4}),
        ("cispo", ["--reference", "--optim", "adam_8bit", "--batch", "16"], 0.04, {"optimizer": "adam_8bit"}),
        ("cispo", ["--batch", "11"], 0.0, {"num_generations": 11}),
        ("ppo", ["--value_model", "separate", "--dtype", "bfloat16"], 0.05, {"value_model": "separate"}),
        ("ppo", ["--no-reference", "--steps_per_generation", "2"], 0.0, {"steps_per_generation": 2}),
        ("hybrid", ["--no-gradient_checkpointing"], 0.05, {"gradient_checkpointing": False}),
        ("hybrid", ["--no-reference", "--generation", "vllm_server"], 0.0, {"vllm_mode": "server"}),
    ],
)
def test_the_command_starts_what_was_estimated(small, tmp_path, capsys, trainer, options, kl, expected):
    folder = shutil.copytree(small, tmp_path / "my model")
    command(str(folder), tmp_path, "--gpu_memory", "1000", "--trainer", trainer, *options)
    out = capsys.readouterr().out
    (row,) = (line for line in out.splitlines() if line.endswith("<-"))
    words = shlex.split(out.partition("recipes/")[2].replace("\\\n", ""))
    more = ["--dataset_name", "builtin:arithmetic", "--output_dir", str(tmp_path), "--use_cpu", "true"]
    args = ["--bf16", "false", *more, *words[1:]]
    config_class = {"cispo": CISPOConfig, "ppo": PPOConfig, "hybrid": HybridConfig}[trainer]
    _, parsed, model = parse_recipe_args(config_class, tmp_path, "", args)
    assert (words[0], model.model_name_or_path) == (f"{trainer}.py", str(folder))
    assert {name: getattr(parsed, name) for name in expected} == expected
    assert (parsed.beta or getattr(parsed, "kl_coef", 0.0)) == kl
    assert (float(row.split()[4]) > 0) == (kl > 0)  # the column of the reference


def test_the_group_that_the_command_leaves_to_the_config_is_trls():
    assert GRPOConfig.num_generations == _GROUP


@pytest.mark.parametrize(("optim", "said"), [("sgd", True), ("adamw", False)])
def test_an_optimizer_that_offloading_would_replace_is_named(tmp_path, capsys, optim, said):
    folder = tmp_path / "large"
    LLAMA_70B.save_pretrained(folder)
    options = [
        "--gpus",
        "8",
        "--lora",
        "--generation",
        "vllm_server",
        "--gpu_memory",
        "24",
        "--batch",
        "1",
        "--optim",
        optim,
    ]
    assert command(str(folder), tmp_path, *options)["deepspeed_config"]["offload_optimizer_device"] == "cpu"
    assert (f"puts DeepSpeed's CPU Adam in the place of --optim {optim}" in capsys.readouterr().out) == said


def test_the_margin_is_left_free(large):
    job, cluster = Job(large, generation="vllm_server"), Cluster(4, 8, 80 * GIB)
    found = estimate(job, cluster, "zero3")
    exact = Cluster(4, 8, found.total)
    assert fits(found, exact, margin=0.0)
    assert not fits(found, exact, margin=0.01)


def test_a_built_in_model_is_read_too(tmp_path, capsys):
    assert command("builtin:tiny", tmp_path)["distributed_type"] == "NO"
    assert "0.1 M parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "0"], "--gpus = 0: must be at least 1"),
        (["--nodes", "0"], "--nodes = 0: must be at least 1"),
        (["--batch", "0"], "--batch = 0: must be at least 1"),
        (["--max_length", "0"], "--max_length = 0: must be at least 1"),
        (["--gpu_memory", "0"], "--gpu_memory = 0: must be greater than 0"),
        (["--margin", "1"], "--margin = 1.0: must be at least 0 and less than 1"),
        (["--lora", "--lora_rank", "0"], "--lora_rank = 0: must be at least 1"),
        (["--optim", "adamv"], "no optimizer 'adamv'; close ones: adam, adamw"),
        (["--output", "/proc/none/x.yaml"], "--output '/proc/none/x.yaml' cannot be written"),
    ],
)
def test_wrong_options_end_in_one_line(options, message):
    with pytest.raises(SystemExit) as stop:
        main(["accelerate", "pick", "--model", "builtin:tiny", *options])
    assert message in str(stop.value)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize("name", ["nowhere/to-be-found", "builtin:huge"])
def test_a_model_that_is_not_there_is_named(name):
    with pytest.raises(SystemExit, match=name):
        main(["accelerate", "pick", "--model", name])


def test_states_are_those_of_the_optimizer():
    assert optimizer_state("adamw").linear == pytest.approx(8, abs=0.01)
    assert optimizer_state("sgd").linear == 0
    with pytest.raises(ConfigError, match="no optimizer"):
        optimizer_state("nothing")
    try:
        eight = optimizer_state("adamw_8bit")
    except MissingExtraError:
        pytest.skip("bitsandbytes is not installed")
    assert eight.linear == pytest.approx(2, abs=0.1)
    assert eight.embedding == pytest.approx(8, abs=0.01)
