"""Run by torchrun: score rows whose groups lie on both processes. Takes an endpoint and a folder for the scores."""

import json
import sys
from pathlib import Path

from accelerate import PartialState

from tests.ending import end_together
from tests.rewards.test_ruler import episode
from trl_ext.rewards import make_reward

url, folder = sys.argv[1:]
state = PartialState(cpu=True)
assert state.num_processes == 2
groups = ["a", "a", "b", "b", "b", "c"]
rows = range(3 * state.process_index, 3 * state.process_index + 3)
episodes = [episode(str(i), group=groups[i]) for i in rows]


def scorer(url):
    return make_reward({"type": "ruler", "model": "m", "base_url": url, "retries": 0})._scorer


scores = scorer(url)(["", "", ""], ["p"] * 3, episodes)
nowhere = "http://127.0.0.1:9/v1"
try:
    scorer(url if state.process_index else nowhere)(
        ["", "", ""], ["p"] * 3, [episode(str(i), group=str(i)) for i in rows]
    )
    failure = None
except ConnectionError as error:
    failure = type(error).__name__
(Path(folder) / f"{state.process_index}.json").write_text(json.dumps([scores, failure]))
end_together()
