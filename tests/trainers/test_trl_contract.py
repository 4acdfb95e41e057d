import pytest
from trl import GRPOTrainer

from trl_ext.errors import TrlContractError
from trl_ext.trainers._trl_contract import CONSTANTS, HOOKS, TESTED, check_attributes, check_trl


def test_the_installed_trl_has_every_hook():
    check_trl()


@pytest.mark.parametrize("version", ["1.15.0", "2.0.0", "0.29.1"])
def test_a_trl_out_of_range_is_refused(version):
    with pytest.raises(TrlContractError, match=rf"needs trl.*found TRL {version}, tested with {TESTED[0]}"):
        check_trl(version=version)


def test_a_newer_trl_whose_hooks_stand_passes():
    check_trl(version="1.99.0")


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_that_is_gone_or_changed_is_named(name):
    hooks = {hook: getattr(GRPOTrainer, hook) for hook in HOOKS if hook != name}
    with pytest.raises(TrlContractError, match=rf"GRPOTrainer\.{name} is gone; found TRL"):
        check_trl(type("Changed", (), hooks))
    hooks[name] = lambda self, batch: None
    with pytest.raises(TrlContractError, match=rf"GRPOTrainer\.{name} takes \(self, batch\), expected \(self, "):
        check_trl(type("Changed", (), hooks))


@pytest.mark.parametrize(("module", "constant"), CONSTANTS.items())
def test_a_constant_that_is_gone_is_named(module, constant, monkeypatch):
    monkeypatch.delattr(f"{module}.{constant}")
    with pytest.raises(TrlContractError, match=rf"{module}\.{constant} is gone; found TRL"):
        check_trl()


def test_a_missing_attribute_is_named():
    with pytest.raises(TrlContractError, match="GRPOTrainer sets no _buffered_inputs"):
        check_attributes(object())
