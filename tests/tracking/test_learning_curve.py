import matplotlib.image
import pytest

from trl_ext.tracking import learning_curve
from trl_ext.tracking.learning_curve import _moving_average, plot_learning_curve

ROWS = [{"step": step, "reward": step / 40, "entropy": 1 - step / 40} for step in range(1, 21)]


def test_a_picture_has_a_panel_per_metric_of_the_run(tmp_path):
    plot_learning_curve(ROWS, tmp_path / "two.png", title="CISPO", measured={"train": (0.1, 0.5)})
    plot_learning_curve([{"step": 1, "reward": 0.5}], tmp_path / "one.png")
    two, one = (matplotlib.image.imread(tmp_path / name) for name in ("two.png", "one.png"))
    assert two.shape[0] > one.shape[0]
    assert two.std() > 0.01  # something is drawn


def test_a_hybrid_run_has_its_losses_and_its_phases(tmp_path, monkeypatch):
    drawn = {}
    for name in ("_draw_line", "_draw_phases"):
        draw = getattr(learning_curve, name)
        monkeypatch.setattr(
            learning_curve, name, lambda *a, name=name, draw=draw: (drawn.setdefault(name, []).append(a[1:]), draw(*a))
        )
    rows = [
        {"step": 1, "phase/rl": 0.0, "sft/loss": 2.0, "sft/token_accuracy": 0.25},
        {"step": 3, "phase/rl": 1.0, "reward": 0.5},
        {"step": 4, "phase/rl": 0.0, "sft/loss": 1.5, "sft/token_accuracy": 0.5},
        {"step": 4, "split": "train", "eval_reward": 0.5},
        {"step": 6, "phase/rl": 0.5, "reward": 0.75},
    ]
    plot_learning_curve(rows, tmp_path / "hybrid.png")
    assert drawn["_draw_line"] == [([1, 4], [2.0, 1.5]), ([1, 4], [0.25, 0.5])]
    assert drawn["_draw_phases"] == [([1, 3, 4, 6], [0.0, 1.0, 0.0, 0.5])]
    plot_learning_curve(ROWS, tmp_path / "plain.png")
    hybrid, plain = (matplotlib.image.imread(tmp_path / name) for name in ("hybrid.png", "plain.png"))
    assert hybrid.shape[0] - plain.shape[0] == 2 * 1.4 * 150  # three panels in place of one


def test_a_run_that_is_scored_by_another_metric_has_its_reward_in_a_panel(tmp_path, monkeypatch):
    averaged, panels = [], []
    monkeypatch.setattr(learning_curve, "_moving_average", lambda values: averaged.append(values) or values)
    monkeypatch.setattr(learning_curve, "_draw_line", lambda axis, steps, values: panels.append(values))
    rows = [{"step": step, "reward": step / 10, "episode/success": step / 20} for step in (1, 2)]
    plot_learning_curve(rows, tmp_path / "x.png", score_name="success", metric="episode/success")
    assert (averaged, panels) == ([[0.05, 0.1]], [[0.1, 0.2]])
    plot_learning_curve(rows, tmp_path / "x.png", score_name="success", metric="episode/never")
    assert averaged[1:] == [[0.1, 0.2]]
    assert len(panels) == 1


def test_a_run_without_rewards_leaves_no_picture(tmp_path):
    plot_learning_curve([{"step": 1, "loss": 0.5}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_moving_average_starts_at_the_first_value_and_follows():
    assert _moving_average([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert _moving_average([0.0, 1.0])[1] == pytest.approx(0.2 / 0.36)
