"""The rewards in TRL's own trainers."""

import pytest
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.trainers.training import PROMPTS, config, make_trainer
from trl_ext.rewards import make_reward, make_reward_funcs

SPEC = {
    "type": "weighted_sum",
    "components": [
        {"type": "levenshtein", "target": "answer", "weight": 3.0},
        {"type": "exact_match", "target": "answer", "weight": 1.0, "when": {"kind": "sum"}},
        {"type": "jaccard", "target": "answer", "weight": 0.0, "name": "words"},
    ],
}


def dataset(chat):
    rows = PROMPTS.map(lambda row: {"answer": "1", "kind": "sum" if "+" in row["prompt"] else "difference"})
    return rows.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]}) if chat else rows


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_the_functions_train_and_log_by_their_names(tiny, trainer_class, config_class, chat):
    rewards, weights = make_reward_funcs(SPEC)
    args = config(config_class, reward_weights=weights, max_steps=2)
    trainer = make_trainer(trainer_class, tiny, args, reward_funcs=rewards, train_dataset=dataset(chat))
    trainer.processing_class.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    trainer.train()
    logged = {key for row in trainer.state.log_history for key in row}
    assert {f"rewards/{name}/mean" for name in ("levenshtein", "exact_match", "words")} <= logged


def test_one_callable_logs_its_components(tiny):
    args = config(GRPOConfig, max_steps=1)
    trainer = make_trainer(GRPOTrainer, tiny, args, reward_funcs=make_reward(SPEC), train_dataset=dataset(False))
    trainer.train()
    logged = {key for row in trainer.state.log_history for key in row}
    assert "rewards/weighted_sum/mean" in logged
    assert {"reward_components/levenshtein", "reward_components/words"} <= logged
