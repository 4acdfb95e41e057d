"""Episodes as a rollout leaves them: one that came to its end, one cut off in a turn, two that failed."""

from trl_ext.agents.trajectory import Trajectory

_SAID = {"role": "user", "content": "no"}
_EXAMPLE = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "up"}]

DONE = Trajectory(
    [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "which?"},
        {"role": "assistant", "content": "left"},
        _SAID,
        {"role": "assistant", "content": '{"name": "search", "arguments": {}}'},
        {"role": "tool", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "done"}]},
    ],
    mask=[1, 1, 0, 1, 1],
    completion_ids=[5, 6, 7, 8, 9],
    rewards=[-0.25, 1.0],
    turn_ends=[1, 4],
    terminated=True,
    success=True,
    metrics={"score": 3.0},
    step=3,
    group="1.0",
    seconds={"environment": 1.0, "episode": 9.0},
    called_at=[1000.0, 1001.0, 1003.0],
    called_for=[0.5, 0.25, 0.5],
    row={"seed": 7, "reward": "of the row"},
)
CUT = Trajectory(
    [*_EXAMPLE, {"role": "user", "content": "which?"}, {"role": "assistant", "content": "left"}, _SAID,
     {"role": "assistant", "content": "righ"}],
    rewards=[0.5],
    truncated="context",
    called_at=[1000.0, 1001.0],
    called_for=[0.5, 0.25],
)  # fmt: skip
FAILED = Trajectory(
    [*_EXAMPLE, {"role": "user", "content": "which?"}, {"role": "assistant", "content": "left"}],
    failure="turn 1: ValueError: broken",
    called_at=[1000.0, 1001.0],
    called_for=[0.5, 20.0],
)
LOST = Trajectory([], failure="reset: OSError: no such mailbox", called_at=[1000.0], called_for=[2.0])
