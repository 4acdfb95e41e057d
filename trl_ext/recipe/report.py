"""What a recipe shows and leaves behind: a table, `summary.json`, a learning curve, a sample of completions."""

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate.utils import broadcast_object_list
from datasets import IterableDataset
from transformers import ProgressCallback, Trainer
from transformers.integrations import TensorBoardCallback

from trl_ext.recipe.task import Task
from trl_ext.tracking.callbacks import MetricsFile, RewardProgress, read_metrics
from trl_ext.tracking.learning_curve import plot_learning_curve

SAMPLED_COMPLETIONS = 20


class RunReport:
    """Measures a trainer before and after training, and writes the results into its `output_dir`.

    `started` is the `time.perf_counter()` at which the run began.
    """

    def __init__(self, trainer: Trainer, task: Task, title: str, started: float):
        self.trainer, self.task, self.title, self.started = trainer, task, title, started
        self.output_dir = Path(str(trainer.args.output_dir))
        self.metrics = MetricsFile(self.output_dir / "metrics.jsonl", resume=bool(trainer.args.resume_from_checkpoint))
        trainer.add_callback(self.metrics)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                # transformers says so when training begins; what is measured before would go to ./runs
                callback.logging_dir = str(self.output_dir / "runs")
        if not trainer.args.disable_tqdm:
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(RewardProgress)
        self.scores: dict[str, dict[str, float]] = {}

    def measure(self, when: str) -> None:
        """Sample completions for the prompts trained on and those held out; `when` is "before" or "after".

        What a run measured before it was stopped and resumed is taken from its metrics.
        """
        if when == "after":  # before TRL's table of the last step is overwritten with that of the measurement
            self._sample_completions()
        if self.task.measure_prompts == 0:
            return
        splits = {"train": self.task.train_dataset, "heldout": self.task.heldout_dataset}
        for split, dataset in splits.items():
            if dataset is None:
                continue
            if self.task.measure_prompts is not None:
                count = self.task.measure_prompts
                streamed = isinstance(dataset, IterableDataset)
                dataset = dataset.take(count) if streamed else dataset.select(range(min(count, len(dataset))))
            score = self._measured(split, when)
            if score is None:
                with self.metrics.marked(split=split, measured=when):
                    score = self.trainer.evaluate(dataset)[self.task.metric]
            self.scores.setdefault(split, {})[when] = score

    def _measured(self, split: str, when: str) -> float | None:
        found = None
        if self.trainer.args.resume_from_checkpoint and self.trainer.accelerator.is_main_process:
            step = 0 if when == "before" else self.trainer.state.global_step
            for row in read_metrics(self.metrics.path):
                if (row.get("split"), row.get("measured"), row["step"]) == (split, when, step):
                    found = row[self.task.metric]
        score: float | None = broadcast_object_list([found])[0]
        return score

    def finish(self) -> None:
        """Write the files and print the table, on the main process."""
        if not self.trainer.accelerator.is_main_process:
            return
        steps, seconds = self.trainer.state.global_step, time.perf_counter() - self.started
        summary: dict[str, float] = {}
        for split, name in (("train", self.task.score_name), ("heldout", "heldout")):
            for when, score in self.scores.get(split, {}).items():
                summary[f"{name}_{when}"] = round(score, 4)
        summary |= {"steps": steps, "seconds": round(seconds, 1)}
        (self.output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        plot_learning_curve(
            read_metrics(self.metrics.path),
            self.output_dir / "learning_curve.png",
            title=self.title,
            score_name=self.task.score_name,
            measured={split: (s["before"], s["after"]) for split, s in self.scores.items() if len(s) == 2},
            metric=self.task.metric.removeprefix("eval_"),
        )
        print(self._table(steps, seconds))

    def _sample_completions(self) -> None:
        """The last logged completions (TRL's `log_completions` tables), a few of them, as JSON lines."""
        if not self.trainer.accelerator.is_main_process:
            return
        tables = sorted((self.output_dir / "completions").glob("completions_*.parquet"))
        if tables:
            table = pd.read_parquet(tables[-1])
            sample = table.sample(min(SAMPLED_COMPLETIONS, len(table)), random_state=0)
            sample.to_json(self.output_dir / "completions.jsonl", orient="records", lines=True)

    def _table(self, steps: int, seconds: float) -> str:
        lines = [""]
        if self.scores:
            lines.append(f"{'mean ' + self.task.score_name:<24}{'before':>10}{'after':>10}")
        labels: dict[str, Any] = {"train": "prompts trained on", "heldout": "held-out prompts"}
        for split, scores in self.scores.items():
            values = "".join(f"{scores[when]:>10.3f}" for when in ("before", "after") if when in scores)
            lines.append(f"{labels[split]:<24}{values}")
        lines.append(f"{steps} optimizer steps, {seconds:.0f} s. Files: {self.output_dir}")
        return "\n".join(lines)
