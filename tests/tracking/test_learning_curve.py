import matplotlib.image
import pytest

from trl_ext.tracking.learning_curve import _moving_average, plot_learning_curve

ROWS = [{"step": step, "reward": step / 40, "entropy": 1 - step / 40} for step in range(1, 21)]


def test_a_picture_has_a_panel_per_metric_of_the_run(tmp_path):
    plot_learning_curve(ROWS, tmp_path / "two.png", title="CISPO", measured={"train": (0.1, 0.5)})
    plot_learning_curve([{"step": 1, "reward": 0.5}], tmp_path / "one.png")
    two, one = (matplotlib.image.imread(tmp_path / name) for name in ("two.png", "one.png"))
    assert two.shape[0] > one.shape[0]
    assert two.std() > 0.01  # something is drawn


def test_a_run_without_rewards_leaves_no_picture(tmp_path):
    plot_learning_curve([{"step": 1, "loss": 0.5}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_moving_average_starts_at_the_first_value_and_follows():
    assert _moving_average([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert _moving_average([0.0, 1.0])[1] == pytest.approx(0.2 / 0.36)
