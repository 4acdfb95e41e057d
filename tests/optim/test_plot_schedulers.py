import re
from pathlib import Path

import matplotlib.image

from trl_ext.optim import list_optimizers, list_schedulers
from trl_ext.optim.plot_schedulers import PANELS, learning_rates, plot_schedulers

PAGE = Path(__file__).parents[2] / "docs" / "optim.md"


def test_the_picture_has_a_panel_for_every_schedule(tmp_path):
    other_names = {"none", "poly", "constant_with_warmup", "reduce_lr_on_plateau"}
    assert {spec["name"] for spec in PANELS} == set(list_schedulers()) - other_names
    plot_schedulers(tmp_path / "curves.png")
    picture = matplotlib.image.imread(tmp_path / "curves.png")
    assert picture.std() > 0.05  # something is drawn


def test_a_schedule_by_metric_is_drawn_from_a_loss_that_stops_falling():
    rates = learning_rates({"name": "reduce_on_plateau", "factor": 0.5, "patience": 10}, steps=100)
    assert rates[:62] == [1.0] * 62
    assert rates[62] == 0.5


def test_the_page_names_every_optimizer_and_every_scheduler():
    named = set(re.findall(r"`([^`\n]+)`", PAGE.read_text()))
    assert set(list_optimizers()) <= named
    assert set(list_schedulers()) <= named
