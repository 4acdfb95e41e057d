"""Episodes in Weights & Biases: a table of them and a table of their actions, beside what TRL logs there."""

from trl_ext.tracking.episodes import EpisodeTracker, Played, action_rows, episode_rows


class WandbEpisodes(EpisodeTracker):
    """Writes tables `episodes` and `actions` into the run that transformers opens for `report_to="wandb"`.

    Metrics, the table `completions` (`log_completions`) and the model (`WANDB_LOG_MODEL=end` or `checkpoint`) are
    transformers' and TRL's to log. Where no run is open it writes nothing. See `EpisodeTracker`.

    Args:
        actions: at most so many rows of actions, the newest.
        most_text: so many characters of a text are shown.
    """

    def __init__(self, episodes: int = 64, actions: int = 2000, most_text: int = 2000):
        super().__init__(episodes)
        self.actions, self.most_text = actions, most_text

    def write(self, episodes: list[Played], step: int) -> None:
        import wandb

        if wandb.run is None:
            return
        tables = {
            "episodes": episode_rows(episodes, self.most_text),
            "actions": action_rows(episodes, self.most_text)[-self.actions :],
        }
        logged = {
            name: wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            for name, rows in tables.items()
            if rows
        }
        wandb.log({**logged, "train/global_step": step})
