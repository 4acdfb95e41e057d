import asyncio
import inspect

import pytest
from datasets import Dataset
from transformers.utils import get_json_schema

from tests.agents.echo import AsyncEcho, AsyncReset, Echo
from trl_ext.agents.actions import ChoiceParser
from trl_ext.agents.environment import Environment
from trl_ext.agents.environments.email_search import EmailSearch
from trl_ext.agents.environments.game_2048 import Game2048
from trl_ext.agents.tool_environment import OVER, tool_environment
from trl_ext.errors import ConfigError


def trl_tools(factory):
    """The methods that GRPOTrainer takes for tools, found as it finds them."""
    instance = factory()
    return {
        name: getattr(instance, name)
        for name, _ in inspect.getmembers(type(instance), predicate=inspect.isfunction)
        if name not in ("reset", "get_reward") and not name.startswith("_")
    }


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        (Echo, {"say"}),
        (Game2048, {"move"}),
        (EmailSearch, {"search", "filter", "read", "answer"}),
        (lambda: EmailSearch(task="select"), {"search", "filter", "read", "select"}),
    ],
)
def test_trl_finds_the_tools_and_nothing_else(factory, names):
    tools = trl_tools(tool_environment(factory))
    assert set(tools) == names
    for name, tool in tools.items():
        schema = get_json_schema(tool)["function"]
        assert schema["name"] == name
        assert schema["description"]
        arguments = list(inspect.signature(tool).parameters)
        assert list(schema["parameters"].get("properties", {})) == arguments


def test_the_schema_says_types_choices_and_what_is_required():
    tools = trl_tools(tool_environment(EmailSearch))
    parameters = get_json_schema(tools["answer"])["function"]["parameters"]
    assert parameters["properties"]["sources"]["type"] == "array"
    assert parameters["required"] == ["answer", "sources"]
    assert "required" not in get_json_schema(tools["filter"])["function"]["parameters"]
    direction = get_json_schema(trl_tools(tool_environment(Game2048))["move"])["function"]["parameters"]
    assert direction["properties"]["direction"]["enum"] == ["left", "right", "up", "down"]


def test_the_reward_is_the_sum_of_an_episode_and_the_end_changes_nothing_more():
    environment = tool_environment(Echo)()
    assert environment.reset(seed=1) == "yes or no?"
    assert environment.say(word="yes") == "1 times yes"
    assert environment.say("yes") == "2 times yes"
    assert environment.say("yes") == OVER
    assert environment.get_reward() == 2.0
    environment.reset(seed=1)
    assert environment.get_reward() == 0.0
    assert environment.say("no") == "0 times yes"
    assert environment.say("yes") == OVER


def test_async_tools_stay_async():
    environment = tool_environment(AsyncEcho)()
    environment.reset()
    assert inspect.iscoroutinefunction(environment.say)
    assert asyncio.run(environment.say("yes")) == "1 times yes"
    assert environment.get_reward() == 1.0


def test_what_is_no_action_is_told_and_costs_its_penalty():
    environment = tool_environment(lambda: Echo(parser=ChoiceParser(["yes"], invalid_penalty=0.5)))()
    environment.reset()
    assert environment.say("refuse") == "Not here."
    assert environment.get_reward() == -0.5


def test_instances_do_not_share_an_episode():
    factory = tool_environment(Echo)
    one, other = factory(), factory()
    one.reset()
    other.reset()
    one.say("yes")
    assert (one.get_reward(), other.get_reward()) == (1.0, 0.0)
    assert factory.__name__ == "Echo"


class Silent(Environment):
    def reset(self, **row):
        return ""

    def step(self, action):
        return "", 0.0, True, False, {}


@pytest.mark.parametrize(
    ("factory", "message"), [(Silent, "Silent has no tools"), (AsyncReset, "AsyncReset.reset is a coroutine function")]
)
def test_what_trl_cannot_use_is_refused(factory, message):
    with pytest.raises(ConfigError, match=message):
        tool_environment(factory)


def test_grpo_trains_with_the_tools_of_an_environment(tiny, tmp_path, monkeypatch):
    """The model calls a tool in every completion: its reply is replaced by one, since the tiny model knows none."""
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'][0] + ':' + (message['content'] or '') }}"
        "{% for call in message.get('tool_calls') or [] %}"
        "{{ call['function']['name'] }} {{ call['function']['arguments'] | tojson }}{% endfor %}"
        "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
    )
    replies = iter(range(10**6))

    def parse(tokenizer, ids, **options):
        if next(replies) % 2:
            return {"role": "assistant", "content": "done"}
        call = {"type": "function", "function": {"name": "say", "arguments": {"word": "yes"}}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}

    monkeypatch.setattr("trl.trainer.grpo_trainer.parse_response", parse)
    tokenizer.response_schema = {"type": "object"}
    trainer = GRPOTrainer(
        model=tiny,
        processing_class=tokenizer,
        environment_factory=tool_environment(lambda: Echo(turns_needed=3)),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "hi"}], "seed": 1}] * 4),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=24,
            max_steps=1,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
        ),
    )
    trainer.train()
    (log,) = [row for row in trainer.state.log_history if "reward" in row]
    assert log["rewards/Echo/mean"] > 0  # "yes" was said, and paid for
    assert log["tools/call_frequency"] > 0
    assert log["tools/failure_frequency"] == 0
