"""2048: a pure engine, the environment on it, and players to beat."""

from trl_ext.agents.environments.game_2048.environment import Game2048

__all__ = ["Game2048"]
