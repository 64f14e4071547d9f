"""How often and when: ``Retry`` (another attempt after a failure), ``Rate`` and the limits of a flow.

Rule 1: a policy is a frozen value, checked where it is made; equal policies are interchangeable.
Rule 2: a policy decides and does nothing: no clock, no sleep, no task. Chance comes in through
``draw``, time through whoever waits. May import: the standard library, errors.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NoReturn, TypeAlias, cast, get_args

from millstream.errors import RunCancelledError, TaskCancelledError, TaskTimeoutError, TransferError

Backoff: TypeAlias = Literal["none", "linear", "exponential"]
RetryOn: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]

BASE = 1.0  #: default seconds of the first wait
MAX_DELAY = 30.0  #: default bound of every wait, in seconds


class _Value:
    """A frozen value: its fields are set once, and are the keyword arguments of its constructor."""

    __slots__ = ()
    FIELDS: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as keyword arguments of the constructor."""
        return {name: getattr(self, name) for name in self.FIELDS}

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{self!r} cannot be changed, so {name} cannot be set: make a new one.")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self!r} cannot be changed, so {name} cannot be deleted: make a new one.")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Value) or type(other) is not type(self):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((type(self), *self.to_dict().values()))

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles are made by the constructor: what slots do by default ends in __setattr__.
        return _made_again, (type(self), self.to_dict())


class Retry(_Value):
    """When a task that failed is tried again, and after how long.

    The wait is truncated exponential back-off, the rule by which stations on an Ethernet (IEEE 802.3)
    space their repetitions: it doubles from failure to failure, up to a bound. After the ``n``-th
    failed attempt (``n`` is 1 for the first) it is, in seconds::

        none         0
        linear       min(max_delay, base * n * chance)
        exponential  min(max_delay, base * 2 ** (n - 1) * chance)

    where ``chance`` is a random number from ``1 - jitter`` to ``1 + jitter``, so that tasks which
    failed together do not come back together. The bound holds for the wait with its jitter::

        Retry(5, base=0.5)  # waits 0.5, 1, 2 and 4 seconds

    Args:
        attempts: how often the task is called at most, the first time included; from 1 on.
        backoff: how the wait grows: ``"none"`` (never wait), ``"linear"`` or ``"exponential"``.
        base: seconds to wait after the first failure; from 0 on.
        max_delay: never wait longer than this (seconds); from 0 on.
        jitter: how much chance changes a wait, as a share of it: 0 (not at all) to 1 (0 to double).
        on: the exception class, or a tuple of classes, after which to try again. A timeout of the
            task itself is final unless ``TaskTimeoutError`` is one of them; ``Exception`` and
            ``TimeoutError`` do not cover it. A cancellation is always final.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a number out of its range, infinite or not a number; an unknown ``backoff``; an
            empty tuple.
    """

    __slots__ = ("attempts", "backoff", "base", "jitter", "max_delay", "on")
    FIELDS = ("attempts", "backoff", "base", "max_delay", "jitter", "on")

    attempts: int
    backoff: Backoff
    base: float
    max_delay: float
    jitter: float
    on: tuple[type[BaseException], ...]

    def __init__(
        self,
        attempts: int = 3,
        backoff: Backoff = "exponential",
        *,
        base: float = BASE,
        max_delay: float = MAX_DELAY,
        jitter: float = 0.0,
        on: RetryOn = Exception,
    ) -> None:
        self._set(
            attempts=_whole("Retry", "attempts", attempts, 1),
            backoff=_kind("Retry", "backoff", backoff),
            base=_seconds("Retry", "base", base),
            max_delay=_seconds("Retry", "max_delay", max_delay),
            jitter=_share("Retry", "jitter", jitter),
            on=_classes("Retry", "on", on),
        )

    @classmethod
    def of(
        cls,
        task: str,
        *,
        retry: Retry | None = None,
        retries: int | None = None,
        max_attempts: int | None = None,
        backoff: Backoff | None = None,
        backoff_base: float | None = None,
        backoff_max: float | None = None,
        retry_on: RetryOn | None = None,
    ) -> Retry | None:
        """Return the policy that the options of a task ask for; None when none of them is given.

        Args:
            task: name of the task, for the errors.
            retry: the whole policy; then none of the others, which are short forms.
            retries: attempts after the first; from 0 on.
            max_attempts: all attempts; from 1 on. Instead of ``retries``.
            backoff: as in ``Retry``. Without it there is no wait, unless one of the next two is
                given: then it is exponential.
            backoff_base: the ``base`` of ``Retry`` (seconds).
            backoff_max: the ``max_delay`` of ``Retry`` (seconds).
            retry_on: the ``on`` of ``Retry``.

        Raises:
            TypeError: a value of the wrong type.
            ValueError: a bad value, or options that exclude or lack each other.
        """
        whose = f"Task {task}"
        said = {"backoff": backoff, "backoff_base": backoff_base, "backoff_max": backoff_max, "retry_on": retry_on}
        _check_forms(whose, retry, {"retries": retries, "max_attempts": max_attempts}, said)
        if retries is None and max_attempts is None:
            return retry
        if backoff is None:
            backoff = "none" if backoff_base is None and backoff_max is None else "exponential"
        return cls(
            _all_attempts(whose, retries, max_attempts),
            _kind(whose, "backoff", backoff),
            base=BASE if backoff_base is None else _seconds(whose, "backoff_base", backoff_base),
            max_delay=MAX_DELAY if backoff_max is None else _seconds(whose, "backoff_max", backoff_max),
            on=Exception if retry_on is None else _classes(whose, "retry_on", retry_on),
        )

    def delay(self, failed: int, draw: Callable[[], float] | None = None) -> float:
        """Return the seconds to wait before the next attempt; see the class for the formula.

        Args:
            failed: how many attempts have failed, 1 after the first.
            draw: gives a random number from 0 up to but not including 1; called once, and only when
                there is jitter. None: ``random.random``.

        Raises:
            TypeError: ``failed`` is no whole number.
            ValueError: ``failed`` is below 1.
        """
        _whole("Retry.delay", "failed", failed, 1)
        if self.backoff == "none":
            return 0.0
        wait = self._uncapped(failed)
        if self.jitter > 0:
            wait *= 1 - self.jitter + 2 * self.jitter * (draw or _random())()
        return min(wait, self.max_delay)

    def _uncapped(self, failed: int) -> float:
        """Return the wait before jitter and bound; a finite number, since infinity times 0 is none."""
        try:
            wait = self.base * failed if self.backoff == "linear" else math.ldexp(self.base, failed - 1)
        except OverflowError:
            wait = math.inf if self.base else 0.0
        return min(wait, sys.float_info.max)

    def again(self, error: BaseException, failed: int) -> bool:
        """Whether one more attempt follows.

        Args:
            error: what the last attempt raised.
            failed: how many attempts have failed, the last included.
        """
        if failed >= self.attempts or isinstance(error, TaskCancelledError | RunCancelledError | TransferError):
            return False
        if isinstance(error, TaskTimeoutError):
            # An attempt that took too long may go on behind our back, so only who names it gets a second.
            return TaskTimeoutError in self.on
        return isinstance(error, self.on)

    def __repr__(self) -> str:
        names = ", ".join(kind.__qualname__ for kind in self.on)
        return (
            f"{type(self).__name__}({self.attempts}, backoff={self.backoff!r}, base={self.base}, "
            f"max_delay={self.max_delay}, jitter={self.jitter}, on={names if len(self.on) == 1 else f'({names})'})"
        )


class Rate(_Value):
    """A limit in time: at most ``count`` starts in any ``per`` seconds.

    Args:
        count: how many starts; from 1 on.
        per: the length of the window in seconds; above 0.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a number out of its range, infinite or not a number.
    """

    __slots__ = ("count", "per")
    FIELDS = ("count", "per")

    count: int
    per: float

    def __init__(self, count: int, per: float = 1.0) -> None:
        self._set(count=_whole("Rate", "count", count, 1), per=_window("Rate", "per", per))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.count}, per={self.per})"


#: A limit of a flow: so many task runs at the same time, or so many starts in a stretch of time.
Limit: TypeAlias = int | Rate


def check_limits(limits: Mapping[str, Limit] | None) -> dict[str, Limit]:
    """Return a copy of the ``limits`` of a flow, or refuse what are none.

    Args:
        limits: names to a whole number from 1 on (task runs at the same time) or a ``Rate``
            (starts in a stretch of time). None: no limits.

    Raises:
        TypeError: no mapping, a name that is no string, or a limit that is no whole number and no Rate.
        ValueError: an empty name, or a number below 1.
    """
    if limits is None:
        return {}
    if not isinstance(limits, Mapping):
        raise TypeError(f"The limits of a flow are a mapping of names to limits, such as {{'db': 2}}, not {limits!r}.")
    return {_limit_name(name): _limit(name, limit) for name, limit in limits.items()}


def _limit_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"The name of a limit is a string, not {name!r}.")
    if not name:
        raise ValueError("The name of a limit is empty: give it one.")
    return name


def _limit(name: str, limit: object) -> Limit:
    if isinstance(limit, Rate):
        return limit
    allowed = "a whole number from 1 on or a Rate"
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"Limit {name} is {allowed}, not {limit!r}.")
    if limit < 1:
        raise ValueError(f"Limit {name} is {allowed}, not {limit!r}.")
    return int(limit)


def _random() -> Callable[[], float]:
    from random import random  # not small: only for who asks for jitter

    return random


def _made_again(kind: type[_Value], fields: Mapping[str, Any]) -> _Value:
    return kind(**fields)


# ---- the options of a task --------------------------------------------------------------------------


def _check_forms(whose: str, retry: object, counts: Mapping[str, object], said: Mapping[str, object]) -> None:
    """Refuse options that exclude each other (whole policy and short forms), or that alone do nothing."""
    counted = [name for name, value in counts.items() if value is not None]
    rest = [name for name, value in said.items() if value is not None]
    if retry is not None and not isinstance(retry, Retry):
        raise TypeError(f"{whose} takes retry as a Retry, such as Retry(3), not {retry!r}.")
    if retry is not None and counted + rest:
        names = ", ".join(counted + rest)
        raise ValueError(f"{whose} has both retry and {names}: say it all in Retry(...), or leave retry out.")
    if len(counted) > 1:
        raise ValueError(
            f"{whose} has both retries and max_attempts: retries={counts['retries']!r} counts attempts after the "
            f"first, max_attempts={counts['max_attempts']!r} all of them, so leave one out."
        )
    if rest and not counted:
        raise ValueError(f"{whose} has {', '.join(rest)} but is never tried again: add retries or max_attempts.")


def _all_attempts(whose: str, retries: int | None, max_attempts: int | None) -> int:
    if retries is None:
        return _whole(whose, "max_attempts", max_attempts, 1)
    return 1 + _whole(whose, "retries", retries, 0)


# ---- checks: each returns the value as it is kept, or refuses it in one sentence ----------------------


def _refusal(whose: str, field: str, allowed: str, value: object) -> str:
    return f"{whose} takes {field} as {allowed}, not {value!r}."


def _whole(whose: str, field: str, value: object, least: int) -> int:
    allowed = f"a whole number from {least} on"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(_refusal(whose, field, allowed, value))
    if value < least:
        raise ValueError(_refusal(whose, field, allowed, value))
    return int(value)


def _number(whose: str, field: str, allowed: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(_refusal(whose, field, allowed, value))
    try:
        return float(value)
    except OverflowError:  # a whole number beyond every float
        return math.nan  # which is in no range


def _seconds(whose: str, field: str, value: object) -> float:
    allowed = "a finite number of seconds from 0 on"
    number = _number(whose, field, allowed, value)
    if not 0 <= number < math.inf:
        raise ValueError(_refusal(whose, field, allowed, value))
    return number


def _window(whose: str, field: str, value: object) -> float:
    allowed = "a finite number of seconds above 0"
    number = _number(whose, field, allowed, value)
    if not 0 < number < math.inf:
        raise ValueError(_refusal(whose, field, allowed, value))
    return number


def _share(whose: str, field: str, value: object) -> float:
    allowed = "a number from 0 to 1"
    number = _number(whose, field, allowed, value)
    if not 0 <= number <= 1:
        raise ValueError(_refusal(whose, field, allowed, value))
    return number


def _kind(whose: str, field: str, value: object) -> Backoff:
    kinds = get_args(Backoff)
    allowed = f"one of {', '.join(map(repr, kinds))}"
    if not isinstance(value, str):
        raise TypeError(_refusal(whose, field, allowed, value))
    if value not in kinds:
        raise ValueError(_refusal(whose, field, allowed, value))
    return cast(Backoff, kinds[kinds.index(value)])  # ours, also for a member of a StrEnum


def _classes(whose: str, field: str, value: object) -> tuple[type[BaseException], ...]:
    allowed = "an exception class or a tuple of exception classes"
    classes = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in classes):
        raise TypeError(_refusal(whose, field, allowed, value))
    if not classes:
        raise ValueError(_refusal(whose, field, f"{allowed} with at least one", value))
    return tuple(classes)
