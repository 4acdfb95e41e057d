"""Whether PPO has each turn's reward on the turn's last token."""

from collections.abc import Iterator
from typing import Any

from trl_ext import PPOTrainer

# so that a token's return is what its turn and the later ones still bring
UNDISCOUNTED = {"num_generations": 1, "lam": 1.0, "gamma": 1.0, "kl_coef": 0.0, "max_steps": 1}


class Keeping(PPOTrainer):
    """Keeps what a rollout became."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.inputs, self.output = inputs, super()._generate_and_score_completions(inputs)
        return self.output


def returns(trainer: Keeping, weight: float = 1.0, at_the_end: float = 0.0) -> Iterator[tuple[float, float]]:
    """For each token the return that it has and the one that it must have, with values of 0."""
    for row, played in enumerate(trainer.inputs):
        one = played["trajectory"]
        for place, mine in enumerate(one.mask):
            to_come = sum(r for end, r in zip(one.turn_ends, one.rewards, strict=True) if end >= place)
            yield trainer.output["returns"][row, place].item(), weight * to_come + at_the_end if mine else 0.0
