"""Retries and limits: what a policy decides, and which values it refuses."""

import ast
import copy
import inspect
import itertools
import math
import pickle
import random
import subprocess
import sys
from enum import IntEnum, StrEnum

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from millstream import policies
from millstream.errors import RunCancelledError, RunTimeoutError, TaskCancelledError, TaskFailedError, TaskTimeoutError
from millstream.policies import Rate, Retry, check_limits

checked = settings(max_examples=150, deadline=None, derandomize=True, database=None)

NAN, INF = math.nan, math.inf
KINDS = ["none", "linear", "exponential"]
DEFAULTS = {
    "attempts": 3,
    "backoff": "exponential",
    "base": 1.0,
    "max_delay": 30.0,
    "jitter": 0.0,
    "on": (Exception,),
}


class OurTimeoutError(TaskTimeoutError):
    """A class below the engine's own timeout."""


class Word(StrEnum):
    """A back-off as a member of the user's own enum."""

    LINEAR = "linear"


class Number(IntEnum):
    """A number as a member of the user's own enum."""

    TWO = 2


def refusal(kind, call, *args, **kwargs):
    """Return the one sentence with which a call is refused."""
    with pytest.raises(kind) as caught:
        call(*args, **kwargs)
    assert caught.type is kind
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


seconds = st.floats(0, sys.float_info.max) | st.integers(0, 10**6)
draws = st.floats(0, 1, exclude_max=True)
failures = st.integers(1, 50) | st.integers(1, 10**12) | st.just(10**400)
plain = st.builds(
    Retry,
    st.integers(1, 10**9),
    st.sampled_from(KINDS),
    base=seconds,
    max_delay=seconds,
    on=st.sampled_from([Exception, OSError, (OSError, ValueError), BaseException]),
)
retries = st.builds(lambda retry, jitter: Retry(**retry.to_dict() | {"jitter": jitter}), plain, st.floats(0, 1))


# ---- the values -------------------------------------------------------------------------------------


def test_a_retry_has_defaults_for_everything():
    """A bare Retry makes three attempts with exponential back-off from one second, at most thirty."""
    assert Retry().to_dict() == DEFAULTS


def test_to_dict_gives_the_arguments_of_the_constructor():
    """What to_dict gives makes an equal policy, with a name for every parameter."""
    retry = Retry(5, "linear", base=0.5, max_delay=9, jitter=0.25, on=(OSError, KeyError))
    assert Retry(**retry.to_dict()) == retry
    assert list(retry.to_dict()) == list(inspect.signature(Retry).parameters)
    assert Rate(**Rate(3, per=2).to_dict()) == Rate(3, per=2)
    assert Rate(3).to_dict() == {"count": 3, "per": 1.0}


@pytest.mark.parametrize("kind", [Retry, Rate])
def test_at_most_two_arguments_go_by_position(kind):
    """Whoever reads a call knows what its numbers mean: from the third on they have names."""
    parameters = inspect.signature(kind).parameters.values()
    assert len([p for p in parameters if p.kind is not p.KEYWORD_ONLY]) == 2


def test_attempts_and_backoff_may_have_names_or_none():
    """The two that go by position go by name too."""
    assert Retry(5, "linear") == Retry(attempts=5, backoff="linear")
    assert Rate(5, 2.0) == Rate(count=5, per=2.0)


@pytest.mark.parametrize(("given", "kept"), [(OSError, (OSError,)), ((OSError, KeyError), (OSError, KeyError))])
def test_on_is_kept_as_a_tuple(given, kept):
    """One class or several: the policy keeps a tuple."""
    assert Retry(on=given).on == kept


def test_numbers_and_words_are_kept_as_plain_ones():
    """Whole numbers of seconds and members of enums become a float, an int and a str."""
    retry = Retry(Number.TWO, Word.LINEAR, base=1, max_delay=2, jitter=1)
    assert [type(value) for value in retry.to_dict().values()] == [int, str, float, float, float, tuple]
    assert type(Rate(Number.TWO).count) is int
    assert type(check_limits({"db": Number.TWO})["db"]) is int


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            Retry(),
            "Retry(3, backoff='exponential', base=1.0, max_delay=30.0, jitter=0.0, on=Exception)",
        ),
        (
            Retry(1, "none", on=(OSError, KeyError)),
            "Retry(1, backoff='none', base=1.0, max_delay=30.0, jitter=0.0, on=(OSError, KeyError))",
        ),
        (Rate(10), "Rate(10, per=1.0)"),
        (Rate(10, per=60), "Rate(10, per=60.0)"),
    ],
    ids=str,
)
def test_the_repr_is_the_call_that_makes_it(value, text):
    """A policy shows itself as the code that makes an equal one."""
    assert repr(value) == text
    assert eval(text) == value


@pytest.mark.parametrize("change", [{"attempts": 4}, {"backoff": "none"}, {"base": 2}, {"max_delay": 2}, {"jitter": 1}])
def test_policies_that_differ_in_a_field_are_not_equal(change):
    """Equality looks at every field."""
    assert Retry(**change) != Retry()
    assert Retry(on=OSError) != Retry()
    assert Rate(1) != Rate(2)
    assert Rate(1) != Rate(1, per=2)


def test_equal_policies_have_one_hash():
    """Equal policies are one key of a dict; a policy is never equal to something else."""
    assert {Retry(base=1), Retry(base=1.0, on=(Exception,))} == {Retry()}
    assert len({Rate(1), Rate(1, per=1), Rate(2)}) == 2
    assert Retry() != DEFAULTS
    assert Rate(1) != 1
    assert Rate(1) != Retry(1)


class Patient(Retry):
    """A policy that a user made of ours."""


def test_a_class_below_ours_is_another_value():
    """A user's own policy keeps its class in copies and is not equal to ours."""
    assert Patient(3) != Retry(3)
    assert type(copy.copy(Patient(3))) is Patient
    assert repr(Patient(3)).startswith("Patient(3, ")
    assert type(Patient.of("load", retries=1)) is Patient


@checked
@given(retries, st.sampled_from(range(pickle.HIGHEST_PROTOCOL + 1)))
def test_a_retry_survives_pickling_and_copying(retry, protocol):
    """A policy that travelled or was copied is equal to what it was."""
    for back in (pickle.loads(pickle.dumps(retry, protocol)), copy.copy(retry), copy.deepcopy(retry)):
        assert back == retry
        assert hash(back) == hash(retry)
        assert repr(back) == repr(retry)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_rate_survives_pickling_and_copying(protocol):
    """A rate that travelled or was copied is equal to what it was."""
    rate = Rate(10, per=2.5)
    assert pickle.loads(pickle.dumps(rate, protocol)) == copy.copy(rate) == copy.deepcopy(rate) == rate


@pytest.mark.parametrize(
    ("value", "name"), [*((Retry(), name) for name in DEFAULTS), (Rate(1), "count"), (Rate(1), "per"), (Rate(1), "new")]
)
def test_policies_cannot_be_changed(value, name):
    """Neither a field nor something new can be set or deleted, and trying changes nothing."""
    before = repr(value)
    assert name in refusal(AttributeError, setattr, value, name, 5)
    assert name in refusal(AttributeError, delattr, value, name)
    assert repr(value) == before
    assert not hasattr(value, "__dict__")


# ---- bad values -------------------------------------------------------------------------------------


BAD_WHOLE = [
    *((TypeError, value) for value in (True, False, 1.0, "3", None, [3])),
    *((ValueError, value) for value in (0, -1, -(10**30))),
]
BAD_SECONDS = [
    *((TypeError, value) for value in (True, "1", None, 1j, [1])),
    *((ValueError, value) for value in (-1, -0.001, NAN, INF, -INF, 10**400, -(10**400))),
]
BAD_SHARE = [
    *((TypeError, value) for value in (True, False, "0.5", None)),
    *((ValueError, value) for value in (-0.1, 1.1, 2, NAN, INF, 10**400)),
]
BAD_WORD = [
    *((TypeError, value) for value in (None, 2, True, ["linear"], b"linear")),
    *((ValueError, value) for value in ("", "Linear", "quadratic", "constant")),
]
BAD_CLASSES = [
    *((TypeError, value) for value in (None, "OSError", OSError("full"), int, object, [OSError], {OSError})),
    *((TypeError, value) for value in ((OSError, "KeyError"), (OSError, (KeyError,)), (None,), lambda error: True)),
    (ValueError, ()),
]
BAD_FIELDS = [
    *(("attempts", *bad) for bad in BAD_WHOLE),
    *(("backoff", *bad) for bad in BAD_WORD),
    *(("base", *bad) for bad in BAD_SECONDS),
    *(("max_delay", *bad) for bad in BAD_SECONDS),
    *(("jitter", *bad) for bad in BAD_SHARE),
    *(("on", *bad) for bad in BAD_CLASSES),
]


@pytest.mark.parametrize(("field", "kind", "value"), BAD_FIELDS)
def test_a_bad_field_of_a_retry_is_refused(field, kind, value):
    """The sentence names the field, the value and what is allowed."""
    said = refusal(kind, Retry, **{field: value})
    assert said.startswith(f"Retry takes {field} as ")
    assert said.endswith(f", not {value!r}.")


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("attempts", 0, "a whole number from 1 on"),
        ("backoff", "cubic", "one of 'none', 'linear', 'exponential'"),
        ("base", -1, "a finite number of seconds from 0 on"),
        ("jitter", 2, "a number from 0 to 1"),
        ("on", [OSError], "an exception class or a tuple of exception classes"),
        ("on", (), "an exception class or a tuple of exception classes with at least one"),
    ],
)
def test_the_refusal_says_what_is_allowed(field, value, allowed):
    """Whoever reads the error knows what to write instead."""
    kind = TypeError if value == [OSError] else ValueError
    assert refusal(kind, Retry, **{field: value}) == f"Retry takes {field} as {allowed}, not {value!r}."


@pytest.mark.parametrize(
    "fields",
    [{"attempts": 1}, {"base": 0}, {"max_delay": 0}, {"jitter": 0}, {"jitter": 1}, {"on": BaseException}],
    ids=str,
)
def test_the_ends_of_the_ranges_are_allowed(fields):
    """The least and the greatest of what is allowed is allowed."""
    ((field, value),) = fields.items()
    assert getattr(Retry(**fields), field) in (value, (value,))


@pytest.mark.parametrize(
    ("field", "kind", "value"),
    [*(("count", *bad) for bad in BAD_WHOLE), *(("per", *bad) for bad in BAD_SECONDS), ("per", ValueError, 0)],
)
def test_a_bad_field_of_a_rate_is_refused(field, kind, value):
    """A rate has at least one start in a window of more than nothing."""
    said = refusal(kind, Rate, **{"count": 1, field: value})
    assert said.startswith(f"Rate takes {field} as ")
    assert said.endswith(f", not {value!r}.")


# ---- how long to wait -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry", "waits"),
    [
        (Retry(backoff="none"), [0, 0, 0, 0]),
        (Retry(backoff="none", base=5, jitter=1), [0, 0, 0, 0]),
        (Retry(backoff="linear"), [1, 2, 3, 4]),
        (Retry(backoff="linear", base=0.5, max_delay=1.2), [0.5, 1, 1.2, 1.2]),
        (Retry(), [1, 2, 4, 8, 16, 30, 30]),
        (Retry(base=0.5), [0.5, 1, 2, 4]),
        (Retry(base=0), [0, 0, 0]),
        (Retry(max_delay=0), [0, 0, 0]),
        (Retry(base=100), [30, 30]),
    ],
    ids=str,
)
def test_the_wait_follows_its_formula(retry, waits):
    """Nothing, in even steps, or doubling: from the base to the bound."""
    assert [retry.delay(n) for n in range(1, len(waits) + 1)] == waits


@pytest.mark.parametrize(("draw", "share"), [(0.0, 0.75), (0.5, 1.0), (0.75, 1.125)])
def test_jitter_multiplies_the_wait(draw, share):
    """The lowest draw gives 1 - jitter of the wait, the middle one all of it."""
    assert Retry(base=2, jitter=0.25).delay(2, lambda: draw) == 4 * share
    assert Retry(backoff="linear", base=2, jitter=0.25).delay(3, lambda: draw) == 6 * share


def test_the_bound_comes_after_the_jitter():
    """A jittered wait is at most max_delay, and a wait beyond the bound may be jittered to below it."""
    retry = Retry(base=8, max_delay=10, jitter=0.5)
    assert retry.delay(1, lambda: 0.99) == 10
    assert retry.delay(2, lambda: 0.0) == 8
    assert retry.delay(3, lambda: 0.0) == 10


def test_chance_is_asked_once_and_only_for_jitter():
    """Without jitter nothing is drawn; with it one number a wait."""
    drawn = iter([0.5])
    for backoff in KINDS:
        Retry(backoff=backoff).delay(1, lambda: pytest.fail("drawn without jitter"))
    assert Retry(jitter=0.5).delay(1, lambda: next(drawn)) == 1
    assert list(drawn) == []


def test_without_a_draw_chance_is_that_of_the_random_module():
    """The waits of tasks that failed together differ, and stay within the jitter."""
    state = random.getstate()
    try:
        random.seed(7)
        expected = [0.5 + random.random() for _ in range(20)]
        random.seed(7)
        assert [Retry(jitter=0.5).delay(1) for _ in range(20)] == expected
    finally:
        random.setstate(state)


@pytest.mark.parametrize("failed", [2_000, 10**9, 10**20, 10**400])
@pytest.mark.parametrize("backoff", ["linear", "exponential"])
@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_a_wait_never_overflows(failed, backoff, jitter):
    """After any number of failures the wait is the bound, and nothing when the base is nothing."""
    assert Retry(backoff=backoff, jitter=jitter).delay(failed, lambda: 0.5) == 30.0
    assert Retry(backoff=backoff, base=0, jitter=jitter).delay(failed, lambda: 0.5) == 0.0
    greatest = Retry(backoff=backoff, base=sys.float_info.max, max_delay=sys.float_info.max, jitter=jitter)
    assert greatest.delay(failed, lambda: 0.5) == sys.float_info.max


@pytest.mark.parametrize("backoff", ["linear", "exponential"])
def test_full_jitter_on_an_endless_wait_is_a_number(backoff):
    """The lowest draw of full jitter gives no wait, however long the wait would have been."""
    assert Retry(backoff=backoff, base=1e308, jitter=1).delay(10**400, lambda: 0.0) == 0.0


@checked
@given(retries, failures, draws)
def test_a_wait_is_between_nothing_and_the_bound(retry, failed, draw):
    """Any policy, any failure, any draw: a number from 0 to max_delay."""
    assert 0 <= retry.delay(failed, lambda: draw) <= retry.max_delay
    assert type(retry.delay(failed, lambda: draw)) is float


@checked
@given(plain, failures, failures)
def test_without_jitter_waits_never_get_shorter(retry, one, other):
    """The more failures, the longer the wait, up to the bound."""
    assert retry.delay(min(one, other)) <= retry.delay(max(one, other))


@checked
@given(plain, st.floats(0, 1), st.integers(1, 50), draws)
def test_jitter_stays_within_its_share(retry, jitter, failed, draw):
    """A jittered wait that meets no bound is from 1 - jitter to 1 + jitter times the plain one."""
    free = Retry(**retry.to_dict() | {"max_delay": sys.float_info.max})
    wait = free.delay(failed)
    assume(wait == 0 or 1e-300 < wait < 1e300)  # else rounding and the greatest float are what one sees
    jittered = Retry(**free.to_dict() | {"jitter": jitter}).delay(failed, lambda: draw)
    assert wait * (1 - jitter) * (1 - 1e-12) <= jittered <= wait * (1 + jitter) * (1 + 1e-12)


@pytest.mark.parametrize(("kind", "failed"), BAD_WHOLE)
@pytest.mark.parametrize("backoff", KINDS)
def test_a_wait_is_for_at_least_one_failure(backoff, kind, failed):
    """Before the first failure there is nothing to wait for."""
    assert refusal(kind, Retry(backoff=backoff).delay, failed).startswith("Retry.delay takes failed as a whole number")


# ---- whether to try again ---------------------------------------------------------------------------


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_attempts_count_the_first_one(attempts):
    """A task that always fails is called as often as attempts says."""
    calls = next(n for n in itertools.count(1) if not Retry(attempts).again(OSError(), n))
    assert calls == attempts


@pytest.mark.parametrize(
    ("on", "error", "again"),
    [
        (Exception, OSError(), True),
        (OSError, FileNotFoundError(), True),
        (FileNotFoundError, OSError(), False),
        ((KeyError, OSError), KeyError("x"), True),
        ((KeyError, OSError), ValueError(), False),
        (Exception, TimeoutError(), True),
        (TimeoutError, TimeoutError(), True),
        (Exception, TaskFailedError("load", "SystemExit(3)"), True),
        (Exception, RunTimeoutError("orders-7", 2), True),
        (Exception, KeyboardInterrupt(), False),
        (BaseException, KeyboardInterrupt(), True),
    ],
    ids=repr,
)
def test_only_the_errors_it_names_are_tried_again(on, error, again):
    """The classes of on cover what is below them, as in an except clause."""
    assert Retry(on=on).again(error, 1) is again


@pytest.mark.parametrize(
    ("on", "again"),
    [
        (Exception, False),
        (TimeoutError, False),
        (OSError, False),
        (BaseException, False),
        ((Exception, TimeoutError), False),
        (OurTimeoutError, False),
        (TaskTimeoutError, True),
        ((OSError, TaskTimeoutError), True),
    ],
)
@pytest.mark.parametrize("kind", [TaskTimeoutError, OurTimeoutError])
def test_a_timeout_of_the_task_is_final_unless_named(kind, on, again):
    """Only TaskTimeoutError by that name covers the engine's own timeouts."""
    assert Retry(on=on).again(kind("load", 1.5), 1) is again
    assert not Retry(1, on=on).again(kind("load", 1.5), 1)


@pytest.mark.parametrize("error", [TaskCancelledError("load"), RunCancelledError("orders-7")], ids=repr)
def test_a_cancellation_is_final(error):
    """Who was told to stop is not tried again, whatever on says."""
    for on in (Exception, BaseException, type(error), (TaskTimeoutError, type(error))):
        assert not Retry(on=on).again(error, 1)


# ---- the options of a task ----------------------------------------------------------------------------


def test_without_options_there_is_no_policy():
    """A task that says nothing is called once."""
    assert Retry.of("load") is None
    nothing = dict.fromkeys(
        ("retry", "retries", "max_attempts", "backoff", "backoff_base", "backoff_max", "retry_on"), None
    )
    assert Retry.of("load", **nothing) is None


def test_a_whole_policy_is_taken_as_it_is():
    """The option retry gives the policy itself."""
    retry = Retry(5)
    assert Retry.of("load", retry=retry) is retry


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ({"retries": 0}, Retry(1, "none")),
        ({"retries": 2}, Retry(3, "none")),
        ({"max_attempts": 1}, Retry(1, "none")),
        ({"max_attempts": 3}, Retry(3, "none")),
        ({"retries": 2, "backoff": "linear"}, Retry(3, "linear")),
        ({"retries": 0, "backoff": "linear"}, Retry(1, "linear")),
        ({"retries": 2, "backoff": "exponential"}, Retry(3)),
        ({"retries": 2, "backoff_base": 0.5}, Retry(3, base=0.5)),
        ({"retries": 2, "backoff_base": 0}, Retry(3, base=0)),
        ({"max_attempts": 2, "backoff_max": 5}, Retry(2, max_delay=5)),
        ({"retries": 2, "backoff": "none", "backoff_base": 5}, Retry(3, "none", base=5)),
        ({"retries": 2, "retry_on": OSError}, Retry(3, "none", on=OSError)),
        (
            {"retries": 4, "backoff": "linear", "backoff_base": 2, "backoff_max": 9, "retry_on": (OSError, KeyError)},
            Retry(5, "linear", base=2, max_delay=9, on=(OSError, KeyError)),
        ),
    ],
    ids=str,
)
def test_short_forms_make_a_policy(options, policy):
    """Retries count from the second attempt on; a word about back-off brings it, no word means no wait."""
    assert Retry.of("load", **options) == policy


REST = {"backoff": "none", "backoff_base": 0, "backoff_max": 0, "retry_on": OSError}
SHORT = {"retries": 0, "max_attempts": 1, **REST}


@pytest.mark.parametrize("option", SHORT)
def test_the_whole_policy_excludes_short_forms(option):
    """Two ways of saying how often would have to be reconciled, so one is refused."""
    said = refusal(ValueError, Retry.of, "load", retry=Retry(), **{option: SHORT[option]})
    assert said == f"Task load has both retry and {option}: say it all in Retry(...), or leave retry out."


def test_every_short_form_beside_a_whole_policy_is_named():
    """The refusal lists all that has to go."""
    said = refusal(ValueError, Retry.of, "load", retry=Retry(), **SHORT)
    assert ", ".join(SHORT) in said


@pytest.mark.parametrize("given", [{"retries": 2, "max_attempts": 3}, {"retries": 0, "max_attempts": 1}], ids=str)
def test_retries_and_max_attempts_exclude_each_other(given):
    """Even when they agree, one of them is one too many."""
    said = refusal(ValueError, Retry.of, "load", **given)
    assert said.startswith("Task load has both retries and max_attempts")
    assert all(f"{name}={value}" in said for name, value in given.items())


@pytest.mark.parametrize("option", REST)
def test_back_off_without_a_second_attempt_is_refused(option):
    """Options that would do nothing are a mistake."""
    said = refusal(ValueError, Retry.of, "load", **{option: REST[option]})
    assert said == f"Task load has {option} but is never tried again: add retries or max_attempts."


@pytest.mark.parametrize("value", [3, True, "3", {"attempts": 3}, Retry, False, 0, Rate(1)], ids=repr)
def test_retry_is_a_retry(value):
    """The option retry takes a policy and no number, with or without short forms beside it."""
    for more in ({}, {"retries": 2}):
        said = refusal(TypeError, Retry.of, "load", retry=value, **more)
        assert said == f"Task load takes retry as a Retry, such as Retry(3), not {value!r}."


@pytest.mark.parametrize(
    ("option", "kind", "value"),
    [
        (option, kind, value)
        for option, bad in [
            ("retries", [bad for bad in BAD_WHOLE if bad != (ValueError, 0)]),
            ("max_attempts", BAD_WHOLE),
            ("backoff", BAD_WORD),
            ("backoff_base", BAD_SECONDS),
            ("backoff_max", BAD_SECONDS),
            ("retry_on", BAD_CLASSES),
        ]
        for kind, value in bad
        if value is not None  # that is: not given
    ],
)
def test_a_bad_short_form_is_refused_by_its_own_name(option, kind, value):
    """The sentence has the name of the task and of the option that was written, not of ours."""
    count = {} if option in ("retries", "max_attempts") else {"retries": 2}
    said = refusal(kind, Retry.of, "load", **count, **{option: value})
    assert said.startswith(f"Task load takes {option} as ")
    assert said.endswith(f", not {value!r}.")


# ---- the limits of a flow -----------------------------------------------------------------------------


def test_no_limits_are_an_empty_mapping():
    """A flow without limits has none."""
    assert check_limits(None) == check_limits({}) == {}


def test_limits_are_copied():
    """What is done to the mapping afterwards does not reach the flow."""
    given = {"db": 2, "api": Rate(10, per=60)}
    limits = check_limits(given)
    assert limits == given
    given["db"] = 3
    assert limits["db"] == 2


@pytest.mark.parametrize("limits", [[("db", 2)], "db", 2, {"db"}, Rate(1), False], ids=repr)
def test_limits_are_a_mapping(limits):
    """Anything but a mapping is refused."""
    assert repr(limits) in refusal(TypeError, check_limits, limits)


@pytest.mark.parametrize(("kind", "name"), [(TypeError, 1), (TypeError, None), (TypeError, b"db"), (ValueError, "")])
def test_a_limit_has_a_name(kind, name):
    """The name of a limit is a string with something in it."""
    assert refusal(kind, check_limits, {"db": 2, name: 1}).startswith("The name of a limit is ")


@pytest.mark.parametrize(("kind", "value"), [*BAD_WHOLE, (TypeError, Retry()), (TypeError, Rate), (TypeError, INF)])
def test_a_bad_limit_is_refused(kind, value):
    """The sentence names the limit, the value and what is allowed."""
    said = refusal(kind, check_limits, {"api": Rate(1), "db": value})
    assert said == f"Limit db is a whole number from 1 on or a Rate, not {value!r}."


# ---- what it costs ------------------------------------------------------------------------------------


def test_chance_is_loaded_when_it_is_drawn():
    """The random module is loaded for the first jitter, not before."""
    program = (
        "import sys\n"
        "from millstream.policies import Retry\n"
        "Retry().delay(1)\n"
        "print('random' in sys.modules)\n"
        "Retry(jitter=0.5).delay(1)\n"
        "print('random' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["False", "True"]


def test_policies_import_nothing_heavy():
    """What the module imports at its top is small, and of ours only the errors."""
    top = ast.parse(inspect.getsource(policies)).body
    names = {node.module for node in top if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    assert names <= {"__future__", "collections.abc", "math", "sys", "typing", "millstream.errors"}
