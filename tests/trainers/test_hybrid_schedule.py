import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_ext.errors import ConfigError
from trl_ext.trainers.hybrid_schedule import alternate, check_phases, curriculum, ramp, sequential


def letters(phases):
    return "".join(phase[0] for phase in phases)


def test_alternate_and_sequential_by_hand():
    assert letters(alternate(9, 1, 2)) == "srrsrrsrr"
    assert letters(alternate(5, 3, 4)) == "sssrr"
    assert letters(sequential(5, 2)) == "ssrrr"


def test_ramps_by_hand():
    assert [ramp(x, 0.2, 1.0, "linear") for x in (0.0, 0.25, 1.0, 2.0)] == pytest.approx([0.2, 0.4, 1.0, 1.0])
    assert [ramp(x, 0.0, 1.0, "cosine") for x in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.5, 1.0])
    assert ramp(0.25, 0.0, 1.0, "cosine") < 0.25
    assert [ramp(x, 0.9, 0.1, "step") for x in (0.0, 0.49, 0.5, 1.0)] == pytest.approx([0.9, 0.9, 0.1, 0.1])


def test_a_curriculum_of_a_constant_share_spreads_the_steps_evenly():
    assert letters(curriculum(8, 1, lambda _: 0.5)) == "rsrsrsrs"
    assert letters(curriculum(12, 2, lambda _: 0.5)) == "srrssrrssrrs"
    assert letters(curriculum(4, 1, lambda _: 1.0)) == "rrrr"
    assert letters(curriculum(4, 3, lambda _: 0.0)) == "ssss"


@given(
    st.integers(1, 200),
    st.integers(1, 9),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(["linear", "cosine", "step"]),
)
def test_a_curriculum_keeps_blocks_whole_and_follows_its_share(steps, block, start, end, shape):
    phases = curriculum(steps, block, lambda x: ramp(x, start, end, shape))
    assert len(phases) == steps
    runs = letters(phases).split("s")
    assert all(len(run) % block == 0 for run in runs[:-1])
    shares = [ramp(i / max(steps - 1, 1), start, end, shape) for i in range(steps)]
    for i in range(steps):
        assert abs(phases[: i + 1].count("rl") - sum(shares[: i + 1])) <= block


def test_a_schedule_without_one_of_the_two_kinds_is_refused():
    check_phases(sequential(3, 2), "sequential")
    with pytest.raises(
        ConfigError, match=r"mode = 'sequential': none of the 3 steps trains on rewards; raise max_steps"
    ):
        check_phases(sequential(3, 3), "sequential")
    with pytest.raises(ConfigError, match="none of the 4 steps trains on demonstrations"):
        check_phases(curriculum(4, 1, lambda _: 1.0), "curriculum")
