"""Our maths against what TRL 1.12's `PPOTrainer` computed (record_trl112.py), to 1e-6."""

import json
from pathlib import Path

import pytest
import torch

from trl_ext.losses import (
    generalized_advantage_estimate,
    kl_estimate,
    masked_whiten,
    policy_clip_fraction,
    ppo_clip_loss,
    token_rewards,
    value_clip_fraction,
    value_loss,
)

ORACLE = json.loads(Path(__file__).with_name("trl112_oracle.json").read_text())


@pytest.fixture(params=ORACLE)
def recorded(request):
    return ORACLE[request.param]


@pytest.fixture
def rollout(recorded):
    return {name: torch.tensor(value) for name, value in recorded["rollout"].items()}


@pytest.fixture
def masks(rollout):
    """The tokens of a completion, and these with the position after the last one, where TRL 1.12 puts the score."""
    return ~rollout["padding_mask"], ~rollout["padding_mask_p1"]


def same(ours, theirs, mask):
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-6, atol=1e-6)
    assert (ours[~mask] == 0).all()


def test_rewards_per_token(recorded, rollout, masks):
    settings, (tokens, with_end) = recorded["settings"], masks
    kl = kl_estimate(rollout["logprobs"], rollout["ref_logprobs"], settings["kl_estimator"])
    torch.testing.assert_close(kl[tokens], rollout["kl"][tokens], rtol=1e-6, atol=1e-6)
    rewards = token_rewards(rollout["scores"], with_end, kl, settings["kl_coef"])
    expected = rollout.get("rewards_before_whitening", rollout["rewards"])
    same(rewards, expected, with_end)
    if settings["whiten_rewards"]:
        same(masked_whiten(rewards, with_end, shift_mean=False), rollout["rewards"], with_end)


def test_advantages_and_returns(recorded, rollout, masks):
    settings, (tokens, with_end) = recorded["settings"], masks
    advantages, returns = generalized_advantage_estimate(
        rollout["rewards"], rollout["values"], with_end, gamma=settings["gamma"], lam=settings["lam"]
    )
    same(advantages, rollout["advantages"], with_end)
    same(returns, rollout["returns"], with_end)
    same(masked_whiten(advantages, tokens), rollout["whitened_advantages"], tokens)


def test_losses_and_clip_fractions_of_every_update(recorded, rollout, masks):
    settings = recorded["settings"]
    assert len(recorded["updates"]) == 4
    for update in recorded["updates"]:
        rows = torch.tensor(update["micro_batch_inds"])
        tokens, with_end = (mask[rows] for mask in masks)
        policy = torch.tensor(update["new_logprobs"]), rollout["logprobs"][rows], rollout["whitened_advantages"][rows]
        values = torch.tensor(update["vpred"]), rollout["values"][rows], rollout["returns"][rows]
        clip = {"cliprange_low": settings["cliprange"], "cliprange_high": settings["cliprange"]}
        clip_value = {"cliprange_value": settings["cliprange_value"]}
        policy_loss = ppo_clip_loss(*policy, tokens, **clip)
        of_values = value_loss(*values, with_end, **clip_value)
        expected = {
            "pg_loss": policy_loss,
            "vf_loss": of_values,
            "loss": policy_loss + settings["vf_coef"] * of_values,
            "pg_clipfrac": policy_clip_fraction(*policy, tokens, **clip),
            "vf_clipfrac": value_clip_fraction(*values, with_end, **clip_value),
        }
        for name, ours in expected.items():
            assert ours.item() == pytest.approx(update[name], rel=1e-6, abs=1e-6), name


def test_the_recording_exercises_every_clip():
    """Both clips hold some tokens and completions have different lengths, or the tests above would show little."""
    for recorded in ORACLE.values():
        last = recorded["updates"][-1]
        assert 0 < last["pg_clipfrac"] < 1
        assert 0 < last["vf_clipfrac"] < 1
        assert len({sum(row) for row in recorded["rollout"]["padding_mask"]}) > 3
