import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from tests.trainers.training import load
from trl_ext.builtin.tiny_model import tiny_tokenizer
from trl_ext.errors import ConfigError, ModelNotFoundError
from trl_ext.trainers.value_function import SeparateCritic, SharedValueHead, check_critic


@pytest.fixture
def inputs(tiny):
    ids = AutoTokenizer.from_pretrained(tiny)(["1+1=2 is so", "7-3=4 right"], return_tensors="pt")["input_ids"]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def reward_model(tiny, tmp_path):
    """A checkpoint of a sequence-classification model with one output, as a reward model is."""
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(
        LlamaConfig(**{**load(tiny).config.to_dict(), "num_labels": 1, "pad_token_id": 0})
    )
    model.score.weight.data.normal_()
    model.save_pretrained(tmp_path / "reward_model")
    return str(tmp_path / "reward_model")


def test_a_shared_head_starts_at_zero_and_leaves_the_policys_output_alone(tiny, inputs):
    policy = load(tiny)
    before = policy(**inputs).logits
    SharedValueHead(policy).attach(policy)
    with policy.value_function.recording(4) as recorded:
        output = policy(**inputs)
    assert torch.equal(output.logits, before)
    assert recorded[0].shape == (2, 4)
    assert (recorded[0] == 0).all()
    policy(**inputs)
    assert len(recorded) == 1  # outside a recording there are none


def test_values_are_those_of_the_states_before_each_token(tiny, inputs):
    """The value of token t is the head on the hidden state of the token before it: it cannot know token t."""
    policy = load(tiny)
    head = SharedValueHead(policy)
    head.attach(policy)
    torch.nn.init.normal_(head.head.weight)
    with head.recording(4) as recorded:
        hidden = policy(**inputs, output_hidden_states=True).hidden_states[-1]
    expected = (hidden @ head.head.weight.T + head.head.bias).squeeze(-1)[:, -5:-1]
    torch.testing.assert_close(recorded[0], expected)
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][:, -1] = 5
    with head.recording(4) as changed:
        policy(**other)
    torch.testing.assert_close(changed[0], recorded[0])


def test_the_trunk_can_be_kept_out_of_the_gradient(tiny, inputs):
    policy = load(tiny)
    head = SharedValueHead(policy)
    head.attach(policy)
    torch.nn.init.normal_(head.head.weight)
    for detach in (True, False):
        policy.zero_grad()
        with head.recording(3, detach_trunk=detach) as recorded:
            policy(**inputs)
        recorded[0].sum().backward()
        assert head.head.weight.grad.abs().sum() > 0
        assert (policy.model.layers[0].mlp.up_proj.weight.grad is None) == detach


def test_a_critic_from_a_language_model_starts_at_zero_and_a_reward_model_keeps_its_head(tiny, inputs, reward_model):
    assert (SeparateCritic.from_pretrained(tiny).values(inputs) == 0).all()
    critic = SeparateCritic.from_pretrained(reward_model, dtype=torch.float32)
    expected = AutoModelForSequenceClassification.from_pretrained(reward_model)
    hidden = expected.model(**inputs).last_hidden_state
    torch.testing.assert_close(critic.values(inputs), (hidden @ expected.score.weight.T).squeeze(-1))


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_what_is_saved_comes_back(tiny, tmp_path, kind):
    def make():
        return SharedValueHead(load(tiny)) if kind == "shared" else SeparateCritic.from_pretrained(tiny)

    first, second = make(), make()
    for parameter in first.parameters():
        torch.nn.init.normal_(parameter)
    first.save(tmp_path, first.state_dict())
    second.load(tmp_path)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ConfigError, match="is missing: this checkpoint is not one of PPOTrainer's"):
        first.load(tmp_path / "elsewhere")


def test_a_critic_of_another_tokenizer_is_refused(tiny, tmp_path):
    tokenizer = tiny_tokenizer()
    critic = SeparateCritic.from_pretrained(tiny).critic
    check_critic(critic, tokenizer, tiny)
    critic.resize_token_embeddings(20)
    with pytest.raises(ConfigError, match=rf"takes 20 tokens, the policy's tokenizer has {len(tokenizer)}"):
        check_critic(critic, tokenizer)
    other = tiny_tokenizer()
    other.add_tokens(["<more>"])
    other.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has another tokenizer than the policy"):
        check_critic(SeparateCritic.from_pretrained(tiny).critic, tokenizer, str(tmp_path))


def test_what_cannot_be_a_critic_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="LlamaForCausalLM has no `score` layer with one output"):
        SeparateCritic(load(tiny))
    with pytest.raises(ModelNotFoundError, match=r"value model '.*nowhere' cannot be loaded"):
        SeparateCritic.from_pretrained(str(tmp_path / "nowhere"))
