"""Whether the number that a completion ends on is the right one."""

import decimal
import math
import re
from collections import deque
from typing import Any

from trl_ext.rewards.registry import register_reward

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+"
_EXPONENT = r"[eE][+-]?\d+|\s?(?:[x\u00d7*]|\\times|\\cdot)\s?10\^\{?-?\d+\}?"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]}}])-\s?)?[$€£¥]?(?P<inner>(?<=[$€£¥])-)?"
    rf"(?P<top>{_DIGITS})(?P<exponent>{_EXPONENT})?(?:\s?/\s?(?P<bottom>{_DIGITS}))?"
)
_FRAC = re.compile(r"\\[dt]?frac\s?\{(-?[\d.,]+)\}\s?\{([\d.,]+)\}")
_INTEGER = re.compile(r"[+-]?\d+$")
# No traps: what overflows becomes Infinity or NaN, which is then no number
_CONTEXT = decimal.Context(prec=50, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX, traps=[])


def last_number(text: str) -> decimal.Decimal | None:
    """The last number of a text, exact unless it is a fraction; None where there is none.

    Reads 1,234.5, -$3, 12%, 3/4, \\frac{3}{4}, 1.5e-3, 2 \\times 10^{3} and any decimal digits of Unicode. Signs of
    currency and percent are dropped: 50% is 50. A division by zero and an exponent beyond 10^18 are no number.
    """
    text = _FRAC.sub(r"\1/\2", text.replace("\u2212", "-").replace("{,}", ",").replace("\\$", "$"))
    last = deque(_NUMBER.finditer(text), maxlen=1)
    if not last:
        return None
    found = last[0]
    value = _decimal(found["top"])
    if found["exponent"]:
        exponent = _INTEGER.search(found["exponent"].rstrip("}"))
        assert exponent is not None
        value = _CONTEXT.multiply(value, _decimal("1e" + exponent.group()))
    if found["bottom"]:
        value = _CONTEXT.divide(value, _decimal(found["bottom"]))
    if not value.is_finite():
        return None
    return value.copy_negate() if found["sign"] or found["inner"] else value


def _decimal(digits: str) -> decimal.Decimal:
    return decimal.Decimal(digits.replace(",", ""), _CONTEXT)


@register_reward("numeric", leans_on="Python", cost="100 us")
class Numeric:
    """1 where the last number of the completion is the last number of the reference, else 0.

    Equal: |number - reference| <= max(tolerance * |reference|, absolute). A reference without a number is not scored; a
    completion without one is 0. Numbers are read as `last_number` says, in time linear in the text.
    """

    def __init__(self, tolerance: float = 1e-6, absolute: float = 0.0):
        for name, value in (("tolerance", tolerance), ("absolute", absolute)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} = {value}: must be finite and not negative")
        self.tolerance, self.absolute = decimal.Decimal(tolerance), decimal.Decimal(absolute)

    def __call__(self, completions: list[str], target: list[Any]) -> list[float | None]:
        return [self._best(c, t) for c, t in zip(completions, target, strict=True)]

    def _best(self, completion: str, target: Any) -> float | None:
        references = target if isinstance(target, list | tuple) else [target]
        known = [number for r in references if r is not None and (number := last_number(str(r))) is not None]
        if not known:
            return None
        number = last_number(completion)
        return float(number is not None and any(self._equal(number, reference) for reference in known))

    def _equal(self, number: decimal.Decimal, reference: decimal.Decimal) -> bool:
        if number == reference:
            return True
        allowed = max(_CONTEXT.multiply(self.tolerance, _CONTEXT.abs(reference)), self.absolute)
        return _CONTEXT.abs(_CONTEXT.subtract(number, reference)) <= allowed
