import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_ext.agents.actions import TextParser
from trl_ext.agents.environment import Environment, Step
from trl_ext.agents.environments.grid_world import GridWorld
from trl_ext.agents.evaluate import evaluate
from trl_ext.agents.transformers_player import TransformersPlayer
from trl_ext.errors import ConfigError, ModelNotFoundError


class Talk(Environment):
    """Three turns of any text; observations of different lengths."""

    parser = TextParser()
    max_turns = 3

    def reset(self, **row):
        self.turns = 0
        return "go" + "!" * (row["seed"] % 3)

    def step(self, action):
        self.turns += 1
        return Step(f" {action[:2]}?", 0.0, False, self.out_of_turns, {"success": True})


def test_each_reply_is_the_likeliest_continuation_of_all_that_was_said(tiny):
    """The oracle: one episode at a time, the whole conversation, token by token without padding or cache."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    score, trajectories = evaluate(Talk, TransformersPlayer(tiny, max_new_tokens=4, batch_size=2), 5)
    for trajectory in trajectories:
        ids = trajectory.prompt_ids + trajectory.completion_ids
        mask = [0] * len(trajectory.prompt_ids) + trajectory.mask
        assert len(ids) == len(mask)
        with torch.no_grad():
            likeliest = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        written = [place for place, own in enumerate(mask) if own]
        assert [ids[place] for place in written] == [likeliest[place - 1] for place in written]
        said = "".join(message["content"] for message in trajectory.messages[:-1])
        assert tokenizer.decode(ids, skip_special_tokens=True) == said
        assert [mask[place] for place in (len(trajectory.prompt_ids), -1)] == [1, 1]
    assert score.tokens == sum(sum(one.mask) for one in trajectories) / 5 > 0


def test_sampling_depends_on_the_seed_only(tiny):
    def played(seed):
        player = TransformersPlayer(tiny, temperature=1.0, max_new_tokens=3, seed=seed)
        return [one.completion_ids for one in evaluate(Talk, player, 3)[1]]

    assert played(1) == played(1) != played(2)


def test_a_conversation_that_fills_the_context_is_cut_off(tiny):
    class Endless(Talk):
        max_turns = 100

    score, trajectories = evaluate(Endless, TransformersPlayer(tiny, max_new_tokens=40), 2)
    assert score.truncated == 1.0
    for trajectory in trajectories:
        assert trajectory.truncated == "context"
        assert len(trajectory.prompt_ids) + len(trajectory.completion_ids) >= 128


def test_a_chat_template_is_used_where_there_is_one(tiny, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '[' + message['role'][0] + ']' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[a]{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(tmp_path)
    _, (trajectory,) = evaluate(Talk, TransformersPlayer(str(tmp_path), max_new_tokens=2), 1)
    assert tokenizer.decode(trajectory.prompt_ids) == "[u]go[a]"
    between = [token for token, own in zip(trajectory.completion_ids, trajectory.mask, strict=True) if not own]
    assert tokenizer.decode(between).count("[u]") == tokenizer.decode(between).count("[a]") == 2

    class Wordless(Talk):
        def step(self, action):
            said = [{"role": "user", "content": None if self.word else "?"}]
            return super().step(action)._replace(observation=said)

        def reset(self, **row):
            self.word = row["seed"] == 1
            return super().reset(**row)

    _, (fine, failed) = evaluate(Wordless, TransformersPlayer(str(tmp_path), max_new_tokens=2), 2)
    assert (fine.failure, fine.turns, failed.turns, failed.truncated) == (None, 3, 1, "")
    assert failed.failure is not None  # the template adds text to text

    _, (plain,) = evaluate(Talk, TransformersPlayer(str(tmp_path), max_new_tokens=2, chat=False), 1)
    assert tokenizer.decode(plain.prompt_ids) == "go"


def test_the_tiny_model_plays_the_grid_world(tiny):
    score, _ = evaluate(GridWorld, TransformersPlayer(tiny, max_new_tokens=1), 20)
    assert score.failed == 0
    assert score.success == 0.0  # it is not fitted
    assert score.invalid == 1.0


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"temperature": float("nan")}, {"max_new_tokens": 0}, {"batch_size": 0}]
)
def test_options_out_of_range_are_refused(tiny, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        TransformersPlayer(tiny, **options)


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelNotFoundError, match="cannot be loaded"):
        TransformersPlayer(str(tmp_path / "none"))
