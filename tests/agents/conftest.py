import pytest

from trl_ext.agents.stepping import Stepper


class PatientStepper(Stepper):
    """Its limit is for the steps of an environment that `hangs`; others may take a minute."""

    async def call(self, function, *args, **kwargs):
        hangs = getattr(getattr(function, "__self__", None), "hangs", False)
        return await Stepper(1, self.timeout if hangs else 60.0).call(function, *args, **kwargs)


@pytest.fixture
def patient(monkeypatch):
    """A machine that stalls makes no failures: a short time limit is one for what hangs only."""
    monkeypatch.setattr("trl_ext.agents.evaluate.Stepper", PatientStepper)
    monkeypatch.setattr("trl_ext.agents.rollout.Stepper", PatientStepper)
