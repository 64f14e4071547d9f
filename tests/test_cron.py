"""Cron expressions: what they may say, when they fire next, and what clocks that change make of that."""

from __future__ import annotations

import copy
import pickle
import random
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from functools import cache
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from millstream.schedule.cron import Cron

checked = settings(max_examples=60, deadline=None, derandomize=True, database=None)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def at(text, tz="UTC"):
    """Read ``2024-03-31 01:30`` as the clock of a zone shows it; ``2024-10-27 02:30+01:00`` has its offset."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(tz))


def fires(expression, after, count, tz="UTC"):
    """Return the first fires, as the clock of the zone shows them, with the offset unless the zone is UTC."""
    cron, moment, seen = Cron(expression, tz), at(after, tz), []
    for _ in range(count):
        moment = cron.next(moment)
        shown = moment.isoformat(" ", "seconds" if moment.second else "minutes")
        seen.append(shown.removesuffix("+00:00") if tz == "UTC" else shown)
    return seen


def refused(expression, tz=None):
    """Return the sentence with which an expression is refused."""
    with pytest.raises(ValueError, match=r"\.$") as caught:
        Cron(expression, tz)
    return str(caught.value)


# ---- the fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("* * * * *", "2026-01-01 00:01"),
        ("0 * * * *", "2026-01-01 01:00"),
        ("59 23 31 12 *", "2026-12-31 23:59"),
        ("*/7 * * * *", "2026-01-01 00:07"),
        ("5/20 * * * *", "2026-01-01 00:05"),
        ("10-20/4 * * * *", "2026-01-01 00:10"),
        ("0 8-18/2 * * *", "2026-01-01 08:00"),
        ("30 6 * * MON-FRI", "2026-01-01 06:30"),
        ("30 6 * * sat,Sun", "2026-01-03 06:30"),
        ("0 0 * feb *", "2026-02-01 00:00"),
        ("0 0 1 MAR-may/2 *", "2026-03-01 00:00"),
        ("0 0 1 11,Jun *", "2026-06-01 00:00"),
        ("00 007 * * *", "2026-01-01 07:00"),
        ("  0\t0   2 * *\n", "2026-01-02 00:00"),
        ("*/999999999999 */24 * * *", "2026-01-02 00:00"),
        ("15-15 0 * * *", "2026-01-01 00:15"),
        ("40/100 * * * *", "2026-01-01 00:40"),
        ("3,1,2,2 0 * * *", "2026-01-01 00:01"),
    ],
)
def test_the_first_fire_of_the_year(expression, expected):
    """Values, lists, ranges, steps and names, in small and capital letters, mean what cron means by them."""
    assert fires(expression, "2026-01-01 00:00", 1) == [expected]


@pytest.mark.parametrize(
    ("field", "minutes"),
    [
        ("50/3", [50, 53, 56, 59]),
        ("*/25", [0, 25, 50]),
        ("1-9/4", [1, 5, 9]),
        ("1,30-32,50/5", [1, 30, 31, 32, 50, 55]),
        ("0-59/30,7", [0, 7, 30]),
        ("*/60", [0]),
    ],
)
def test_all_values_of_a_field(field, minutes):
    """A term is a set of values, a list of terms is their union, and each value fires once."""
    expected = [f"2026-01-01 03:{minute:02}" for minute in minutes]

    assert fires(f"{field} 3 1 1 *", "2026-01-01 00:00", len(minutes)) == expected


@pytest.mark.parametrize(
    ("field", "days"),
    [
        ("0", "SUN"),
        ("7", "SUN"),
        ("SUN", "SUN"),
        ("0,7", "SUN"),
        ("FRI-SUN", "FRI SAT SUN"),
        ("5-7", "FRI SAT SUN"),
        ("SUN-TUE", "SUN MON TUE"),
        ("0-2", "SUN MON TUE"),
        ("SUN-SUN", "SUN"),
        ("sat-7", "SAT SUN"),
        ("0-7", "MON TUE WED THU FRI SAT SUN"),
        ("FRI-SUN/2", "FRI SUN"),
        ("THU/2", "THU SAT"),
        ("1/2", "MON WED FRI SUN"),
        ("*/2", "SUN TUE THU SAT"),
        ("*/7", "SUN"),
        ("mon,WED-Fri", "MON WED THU FRI"),
    ],
)
def test_days_of_the_week(field, days):
    """0, 7 and SUN are Sunday, also where a range begins or ends with it."""
    cron, week, moment = Cron(f"0 12 * * {field}"), set(), at("2026-03-01 12:00")
    for _ in range(7):
        moment = cron.next(moment)
        week.add(moment.strftime("%a").upper())

    assert week == set(days.split())


@pytest.mark.parametrize(
    ("alias", "long"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * SUN"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
        (" @Daily ", "0 0 * * *"),
    ],
)
def test_r52_aliases(alias, long):
    """An alias fires when its five fields do, in every zone: only @hourly is a rhythm."""
    for after in ("2024-01-01 00:00", "2024-09-06 22:00", "2024-09-07 23:30"):
        assert fires(alias, after, 5, "America/Santiago") == fires(long, after, 5, "America/Santiago")


@pytest.mark.parametrize(
    ("expression", "days"),
    [
        ("0 0 13 * 5", [2, 9, 13, 16, 23, 30]),  # every 13th, and every Friday
        ("0 0 1-31 * 5", [*range(2, 32)]),  # no field begins with *, so every day is enough
        ("0 0 1,*/10 * 5", [2, 9, 11, 16, 21, 23, 30, 31]),  # * comes second: still one is enough
        ("0 0 */2 * 5", [9, 23]),  # begins with *: odd days that are Fridays
        ("0 0 *,13 * 5", [2, 9, 16, 23, 30]),
        ("0 0 13-19 * */5", [16, 18]),  # FRI and SUN, from the 13th to the 19th
        ("0 0 13 * *", [13]),
        ("0 0 * * 5", [2, 9, 16, 23, 30]),
    ],
)
def test_two_day_fields(expression, days):
    """If a day field begins with a star both must match, else one is enough: Debian's rule, to the letter."""
    expected = [f"2026-01-{day:02} 00:00" for day in days]

    assert fires(expression, "2026-01-01 00:00", len(days)) == expected


def test_r50_a_thirteenth_or_a_friday():
    """`0 0 13 * 5` after 2026-01-01 fires on Friday the 2nd, since one of the two day fields is enough."""
    assert fires("0 0 13 * 5", "2026-01-01 00:00", 3) == ["2026-01-02 00:00", "2026-01-09 00:00", "2026-01-13 00:00"]


def test_r51_the_29th_of_february():
    """`0 0 29 2 *` is accepted in any year, fires in 2028 and 2032, and not in 2100."""
    for after in ("2026-01-01 00:00", "2026-05-17 12:00", "2027-12-31 23:59"):
        assert fires("0 0 29 2 *", after, 2) == ["2028-02-29 00:00", "2032-02-29 00:00"]
    assert fires("0 0 29 2 *", "2092-03-01 00:00", 2) == ["2096-02-29 00:00", "2104-02-29 00:00"]


def test_r52_sunday_and_no_day_zero():
    """`7` is Sunday, and there is no day 0."""
    assert fires("0 0 * * 7", "2026-01-01 00:00", 2) == ["2026-01-04 00:00", "2026-01-11 00:00"]
    assert refused("0 0 0 * *") == ("Cron expression '0 0 0 * *': day of month '0' is out of bounds: use 1 to 31.")


def test_a_fire_comes_after_the_question():
    """An instant that fires is not its own next fire, but one a microsecond before has it as its next."""
    cron, noon = Cron("0 12 * * *"), at("2026-01-01 12:00")

    assert cron.next(noon) == noon + DAY
    assert cron.next(noon - timedelta.resolution) == noon
    assert cron.next(noon + timedelta(seconds=1)) == noon + DAY


def test_the_ends_of_months_and_years():
    """Days that a month does not have are passed over, and years follow each other."""
    assert fires("0 0 31 * *", "2026-01-31 00:00", 3) == ["2026-03-31 00:00", "2026-05-31 00:00", "2026-07-31 00:00"]
    assert fires("59 23 * * *", "2026-12-30 23:59", 2) == ["2026-12-31 23:59", "2027-01-01 23:59"]
    assert fires("0 0 30 2,4 *", "2026-01-01 00:00", 2) == ["2026-04-30 00:00", "2027-04-30 00:00"]


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("60 * * * *", ": minute '60' is out of bounds: use 0 to 59."),
        ("0 24 * * *", ": hour '24' is out of bounds: use 0 to 23."),
        ("0 0 32 * *", ": day of month '32' is out of bounds: use 1 to 31."),
        ("0 0 0-5 * *", ": day of month '0-5' is out of bounds: use 1 to 31."),
        ("0 0 1 13 *", ": month '13' is out of bounds: use 1 to 12 or JAN to DEC."),
        ("0 0 1 0 *", ": month '0' is out of bounds: use 1 to 12 or JAN to DEC."),
        (
            "0 0 * * 8",
            ": day of week '8' is out of bounds: use 0 to 7 (0 and 7 are Sunday) or SUN to SAT.",
        ),
        ("0 0 * * 1-9/2", ": day of week '1-9/2' is out of bounds: use 0 to 7 (0 and 7 are Sunday) or SUN to SAT."),
        ("0 22-2 * * *", ": hour '22-2' runs backwards: use 22-23,0-2."),
        ("0 0 1 NOV-feb/2 *", ": month 'NOV-feb/2' runs backwards: use NOV-12/2,1-feb/2."),
        ("0 0 * * SAT-MON", ": day of week 'SAT-MON' runs backwards: use SAT-7,0-MON."),
        ("0 0 * * 6-0", ": day of week '6-0' runs backwards: use 6-7,0-0."),
        ("*/0 * * * *", ": minute '*/0' has the step '0': use a whole number from 1 on."),
        ("*/ * * * *", ": minute '*/' has the step '': use a whole number from 1 on."),
        ("1-5/-1 * * * *", ": minute '1-5/-1' has the step '-1': use a whole number from 1 on."),
        ("1/2/3 * * * *", ": minute '1/2/3' has the step '2/3': use a whole number from 1 on."),
        ("1,,2 * * * *", ": minute '' is neither * nor a value nor a range: use 0 to 59."),
        ("-5 * * * *", ": minute '-5' is neither * nor a value nor a range: use 0 to 59."),
        ("1-2-3 * * * *", ": minute '1-2-3' is neither * nor a value nor a range: use 0 to 59."),
        ("*-5 * * * *", ": minute '*-5' is neither * nor a value nor a range: use 0 to 59."),
        ("+5 * * * *", ": minute '+5' is neither * nor a value nor a range: use 0 to 59."),
        ("1.5 * * * *", ": minute '1.5' is neither * nor a value nor a range: use 0 to 59."),
        ("JAN * * * *", ": minute 'JAN' is neither * nor a value nor a range: use 0 to 59."),
        (
            "0 0 * MON *",
            ": month 'MON' is neither * nor a value nor a range: use 1 to 12 or JAN to DEC.",
        ),
        ("\u0663 * * * *", ": minute '\u0663' is neither * nor a value nor a range: use 0 to 59."),
        ("0 0 1 \u017fEP *", ": month '\u017fEP' is neither * nor a value nor a range: use 1 to 12 or JAN to DEC."),
        ("0 0 ? * 1", ": day of month '?' has ?, which is not of cron: write * instead."),
        ("H/5 * * * *", ": minute 'H/5' has H, which is not of cron: write a number instead."),
        ("0 h(1-5) * * *", ": hour 'h(1-5)' has H, which is not of cron: write a number instead."),
        (
            "0 0 L-3 * *",
            ": day of month 'L-3' has L, which is not of cron: name the days that may be the last, such as 28-31, "
            "and let the task see which it is.",
        ),
        (
            "0 0 * * 5l",
            ": day of week '5l' has L, which is not of cron: name the days that may be the last, such as 28-31, "
            "and let the task see which it is.",
        ),
        (
            "0 0 1,LW * *",
            ": day of month 'LW' has LW, which is not of cron: name the days that may be the last, such as 26-31, "
            "and let the task see which it is.",
        ),
        (
            "0 0 15W * *",
            ": day of month '15W' has W, which is not of cron: name the day and its neighbours, and let the task "
            "see which it is.",
        ),
        (
            "0 0 * * MON#2",
            ": day of week 'MON#2' has #, which is not of cron: name the day of week alone, and let the task see "
            "which of the month it is.",
        ),
        ("", " has 0 fields instead of 5: write minute, hour, day of month, month, day of week."),
        ("@daily *", " has 2 fields instead of 5: write minute, hour, day of month, month, day of week."),
        (
            "0 0 * * * *",
            " has 6 fields instead of 5: write minute, hour, day of month, month, day of week, without seconds or "
            "years.",
        ),
        (
            "@reboot",
            " names no time, since a library does not see the computer start: run the flow where your program starts.",
        ),
        (
            "@fortnightly",
            " is no alias: use @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly, or five fields.",
        ),
        ("0 0 30 2 *", " never fires, since no month '2' has a day of month '30': name a day that exists."),
    ],
)
def test_expressions_that_are_refused(expression, sentence):
    """What is wrong is one sentence with the expression, the field, what is wrong with it and what to write."""
    assert refused(expression) == f"Cron expression {expression!r}{sentence}"


def test_the_mend_of_a_backward_range_works():
    """What the error offers instead of a backward range is accepted, and means what was meant."""
    assert fires("0 22-23,0-2 * * *", "2026-01-01 12:00", 6)[::5] == ["2026-01-01 22:00", "2026-01-02 22:00"]
    assert fires("0 0 1 NOV-12/2,1-feb/2 *", "2026-02-01 00:00", 2) == ["2026-11-01 00:00", "2027-01-01 00:00"]
    assert fires("0 0 * * SAT-7,0-MON", "2026-01-02 00:00", 4)[2:] == ["2026-01-05 00:00", "2026-01-10 00:00"]


@pytest.mark.parametrize("days", ["30 2 *", "31 2,4,6,9,11 *", "30-31 FEB */2", "31 4 */7", "30/1 2 *,MON"])
def test_dates_that_no_year_has(days):
    """A day that none of the months has is refused at once, if the day of month must match."""
    month = days.split()[1]
    assert f"never fires, since no month {month!r} has a day of month" in refused(f"0 0 {days}")


@pytest.mark.parametrize("days", ["29 2 *", "31 4,5 *", "30 2 1", "29 FEB */7", "*/31,31 11 *"])
def test_dates_that_some_year_has(days):
    """A rare date is accepted; so is one that never comes when the day of the week alone is enough."""
    Cron(f"0 0 {days}")


def test_expressions_of_the_wrong_type_or_length():
    """An expression is a str of at most 1,000 characters, and the error does not repeat a longer one."""
    with pytest.raises(TypeError, match="A cron expression must be a str, not bytes: b'@daily'"):
        Cron(b"@daily")
    with pytest.raises(TypeError, match="must be a str, not NoneType"):
        Cron(None)
    most = ",".join(["59"] * 330) + " 0 * * *"
    assert len(most) < 1000
    assert fires(most, "2026-01-01 00:00", 1) == ["2026-01-01 00:59"]
    assert fires("0 0 * * *".ljust(1000), "2026-01-01 00:00", 1) == ["2026-01-02 00:00"]
    assert refused("*,".ljust(1001, "*")) == (
        "Cron expression '*,**************************************'... has 1001 characters: use 1000 at most."
    )


def test_times_that_cannot_be_asked_about():
    """A naive time names no instant, and a date is no time: both are refused, the first with the mend."""
    cron = Cron("0 0 * * *")
    with pytest.raises(ValueError, match=r"The time 2026-01-01 00:00:00 is naive.*give it a zone.*tzinfo=") as caught:
        cron.next(datetime(2026, 1, 1))
    assert type(caught.value) is ValueError
    with pytest.raises(TypeError, match="must be an aware datetime, not date: "):
        cron.next(date(2026, 1, 1))
    with pytest.raises(TypeError, match="must be an aware datetime, not str: '2026-01-01'"):
        cron.next("2026-01-01")


# ---- the zone ----------------------------------------------------------------------------------------


def test_the_zone_is_utc_unless_given():
    """Without a zone the fields are UTC; with one they are its wall clock, and so is the answer."""
    after = at("2026-01-01 00:00")

    assert Cron("0 6 * * *").next(after) == at("2026-01-01 06:00")
    assert Cron("0 6 * * *").next(after).tzinfo is UTC
    there = Cron("0 6 * * *", "Asia/Kathmandu").next(after)
    assert there.isoformat() == "2026-01-01T06:00:00+05:45"
    assert there.tzinfo == ZoneInfo("Asia/Kathmandu")
    india = timezone(timedelta(hours=5, minutes=30))
    assert Cron("0 6 * * *", india).next(after) == at("2026-01-01 06:00", "Asia/Kolkata")
    odd = timezone(timedelta(hours=-3, seconds=-7, microseconds=-5))
    assert Cron("0 6 * * *", odd).next(after) == at("2026-01-01 09:00:07.000005")


def test_the_question_may_be_in_any_zone():
    """An instant is the same in every zone, so the answer is; also for a time in a fold or in a gap."""
    cron = Cron("*/30 * * * *", "Europe/Berlin")
    second = at("2024-10-27 02:10", "Europe/Berlin").replace(fold=1)
    skipped = at("2024-03-31 02:10", "Europe/Berlin")  # which is 03:10, says PEP 495

    assert cron.next(second).isoformat() == "2024-10-27T02:30:00+01:00"
    assert cron.next(second.astimezone(ZoneInfo("Asia/Tokyo"))).isoformat() == "2024-10-27T02:30:00+01:00"
    assert cron.next(skipped).isoformat() == "2024-03-31T03:30:00+02:00"
    assert cron.next(second).fold == 1


@pytest.mark.parametrize(
    "name", ["Mars/Olympus", "", "America", "../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "x" * 999]
)
def test_zones_that_nobody_knows(name):
    """An unknown name is a ValueError with the name, whatever the system makes of it."""
    assert refused("0 0 * * *", name) == (
        f"Zone {name!r} is unknown: use an IANA name such as 'Europe/Berlin'. If that is unknown too, this system "
        "has no zone data: pip install tzdata."
    )


class Seasonal(tzinfo):
    """A zone in the manner of pytz: what it puts into a datetime is another object."""

    def fromutc(self, moment):
        return moment.replace(tzinfo=timezone(timedelta(hours=1)))

    def utcoffset(self, moment):
        return timedelta(minutes=53)

    def __str__(self):
        return "Europe/Berlin"


def test_zones_of_the_wrong_type():
    """A zone is a name or a tzinfo, and must be able to tell its own offset: zones of pytz are not."""
    with pytest.raises(TypeError, match="tz must be an IANA name such as 'Europe/Berlin', a tzinfo or None, not 2"):
        Cron("0 0 * * *", 2)
    with pytest.raises(TypeError, match=r"not one zone for all seasons: use zoneinfo.ZoneInfo\('Europe/Berlin'\)"):
        Cron("0 0 * * *", Seasonal())


# ---- the object itself -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "shown"),
    [
        (Cron("0 0 * * *"), "Cron('0 0 * * *')"),
        (Cron("@daily", UTC), "Cron('@daily')"),
        (Cron("0 0 * * mon", "Europe/Berlin"), "Cron('0 0 * * mon', tz='Europe/Berlin')"),
        (Cron("* * * * *", ZoneInfo("UTC")), "Cron('* * * * *', tz='UTC')"),
        (
            Cron("* * * * *", timezone(timedelta(hours=1))),
            "Cron('* * * * *', tz=datetime.timezone(datetime.timedelta(seconds=3600)))",
        ),
    ],
)
def test_what_is_shown_makes_it_again(cron, shown):
    """The repr is the call that makes an equal one."""
    import datetime

    again = eval(shown, {"Cron": Cron, "datetime": datetime})

    assert repr(cron) == str(cron) == shown
    assert (again.expression, again.tz) == (cron.expression, cron.tz)


def test_it_cannot_be_changed():
    """The expression and the zone can be read, as they were given, and not set."""
    cron = Cron(" 0 0 * * mon", "Europe/Berlin")

    assert (cron.expression, cron.tz) == (" 0 0 * * mon", ZoneInfo("Europe/Berlin"))
    for name in ("expression", "tz", "other"):
        with pytest.raises(AttributeError):
            setattr(cron, name, "UTC")


def test_copies_fire_alike():
    """A copy, and one that travelled to another process, answer the same."""
    cron, after = Cron("30 2 * * *", "Europe/Berlin"), at("2024-03-30 12:00")

    for twin in (copy.copy(cron), copy.deepcopy(cron), pickle.loads(pickle.dumps(cron))):
        assert twin.next(after) == cron.next(after)
        assert repr(twin) == repr(cron)


# ---- clocks that change: examples --------------------------------------------------------------------

BERLIN, APIA = "Europe/Berlin", "Pacific/Apia"


def test_r52_a_fixed_time_in_a_gap_fires_once_where_the_clock_goes_on():
    """At 02:00 the clock goes on to 03:00: what is due in between fires then, together, and also what is due then."""
    night = "2024-03-30 12:00"
    assert fires("30 2 * * *", night, 2, BERLIN) == ["2024-03-31 03:00+02:00", "2024-04-01 02:30+02:00"]
    assert fires("30 1 * * *", night, 1, "Europe/London") == ["2024-03-31 02:00+01:00"]
    assert fires("0,20,40 2,3 * * *", night, 3, BERLIN) == [
        "2024-03-31 03:00+02:00",
        "2024-03-31 03:20+02:00",
        "2024-03-31 03:40+02:00",
    ]
    assert fires("59 1,2 * * *", night, 2, BERLIN) == ["2024-03-31 01:59+01:00", "2024-03-31 03:00+02:00"]
    # 02:00 itself is in the gap: the clock shows 01:59, then 03:00.
    assert fires("0 2 31 3 *", night, 2, BERLIN) == ["2024-03-31 03:00+02:00", "2025-03-31 02:00+02:00"]


def test_r52_a_fixed_time_in_a_fold_fires_once_the_first_time():
    """At 03:00 the clock goes back to 02:00: what is due in between fires before that, and not again after."""
    night = "2024-10-26 12:00"
    assert fires("30 2 * * *", night, 2, BERLIN) == ["2024-10-27 02:30+02:00", "2024-10-28 02:30+01:00"]
    assert fires("30 1 * * *", night, 2, "Europe/London") == ["2024-10-27 01:30+01:00", "2024-10-28 01:30+00:00"]
    assert fires("0 2,3 * * *", night, 3, BERLIN) == [
        "2024-10-27 02:00+02:00",
        "2024-10-27 03:00+01:00",
        "2024-10-28 02:00+01:00",
    ]
    assert fires("0-59/30 2 * * *", night, 3, BERLIN)[2] == "2024-10-28 02:00+01:00"
    # Asked in the second pass, or at the very instant it begins: it has been.
    for after in ("2024-10-27 02:00+01:00", "2024-10-27 02:10+01:00", "2024-10-27 02:45+02:00"):
        assert fires("30 2 * * *", after, 1, BERLIN) == ["2024-10-28 02:30+01:00"]


def test_r52_a_rhythm_keeps_its_pace():
    """`*/30` comes every 30 minutes of elapsed time: in both passes of a repeated hour, and not in a skipped one."""
    assert fires("*/30 * * * *", "2024-10-27 00:20+00:00", 5, BERLIN) == [
        "2024-10-27 02:30+02:00",
        "2024-10-27 02:00+01:00",
        "2024-10-27 02:30+01:00",
        "2024-10-27 03:00+01:00",
        "2024-10-27 03:30+01:00",
    ]
    assert fires("*/30 * * * *", "2024-03-31 01:20", 3, BERLIN) == [
        "2024-03-31 01:30+01:00",
        "2024-03-31 03:00+02:00",
        "2024-03-31 03:30+02:00",
    ]


def test_r52_a_star_in_minute_or_hour_makes_a_rhythm():
    """One field that begins with a star is enough for a rhythm: nothing in a gap, twice in a fold."""
    for minute, hour in (("*/15", "2"), ("30", "*"), ("*", "2"), ("30", "*/2"), ("*,5", "2")):
        expression = f"{minute} {hour} * * *"
        spring = fires(expression, "2024-03-31 01:59", 1, BERLIN)[0]
        autumn = fires(expression, "2024-10-27 02:59+02:00", 1, BERLIN)[0]
        assert not spring.startswith(("2024-03-31 02", "2024-03-31 03:00"))
        assert autumn.startswith("2024-10-27 02:")
        assert autumn.endswith("+01:00")
    assert fires("*/15 2 * * *", "2024-03-31 00:00", 1, BERLIN) == ["2024-04-01 02:00+02:00"]
    assert fires("30 * * * *", "2024-03-31 01:00", 2, BERLIN)[1] == "2024-03-31 03:30+02:00"
    # A star that is not at the beginning of the field is no star, to cron: fixed times.
    assert fires("0,*/30 2 * * *", "2024-03-31 00:00", 1, BERLIN) == ["2024-03-31 03:00+02:00"]


@pytest.mark.parametrize(
    ("zone", "after", "expression", "expected"),
    [
        # Lord Howe Island: half an hour back from 02:00 to 01:30, and forth from 02:00 to 02:30.
        (
            "Australia/Lord_Howe",
            "2024-04-07 01:20+11:00",
            "*/15 * * * *",
            "04-07 01:30+11:00, 04-07 01:45+11:00, 04-07 01:30+10:30, 04-07 01:45+10:30, 04-07 02:00+10:30",
        ),
        (
            "Australia/Lord_Howe",
            "2024-04-07 00:00",
            "15,45 1 * * *",
            "04-07 01:15+11:00, 04-07 01:45+11:00, 04-08 01:15+10:30",
        ),
        ("Australia/Lord_Howe", "2024-10-06 00:00", "0 * * * *", "10-06 01:00+10:30, 10-06 03:00+11:00"),
        (
            "Australia/Lord_Howe",
            "2024-10-06 00:00",
            "15,45 2 * * *",
            "10-06 02:30+11:00, 10-06 02:45+11:00, 10-07 02:15+11:00",
        ),
        # Kathmandu went from 5:30 to 5:45 when 1986 began.
        ("Asia/Kathmandu", "1985-12-31 12:00", "5,20 0 1 1 *", "01-01 00:15+05:45, 01-01 00:20+05:45"),
        ("Asia/Kathmandu", "1985-12-31 23:40", "*/10 * * * *", "12-31 23:50+05:30, 01-01 00:20+05:45"),
        # Newfoundland changed a minute after midnight.
        (
            "America/St_Johns",
            "2010-03-13 12:00",
            "0,30 0 * * *",
            "03-14 00:00-03:30, 03-14 01:01-02:30, 03-15 00:00-02:30",
        ),
        (
            "America/St_Johns",
            "2010-11-06 12:00",
            "0,30 0,23 * * *",
            "11-06 23:00-02:30, 11-06 23:30-02:30, 11-07 00:00-02:30, 11-07 00:30-03:30",
        ),
        (
            "America/St_Johns",
            "2010-11-06 23:20-02:30",
            "*/30 * * * *",
            "11-06 23:30-02:30, 11-07 00:00-02:30, 11-06 23:30-03:30, 11-07 00:00-03:30",
        ),
        # Morocco has its winter time in Ramadan.
        ("Africa/Casablanca", "2024-03-09 12:00", "30 2 * * *", "03-10 02:30+01:00, 03-11 02:30+00:00"),
        ("Africa/Casablanca", "2024-04-13 12:00", "30 2 * * *", "04-14 03:00+01:00, 04-15 02:30+01:00"),
        # In Ireland winter is the exception, by law and in the data.
        ("Europe/Dublin", "2024-10-26 12:00", "30 1 * * *", "10-27 01:30+01:00, 10-28 01:30+00:00"),
        ("Europe/Dublin", "2024-03-30 12:00", "30 1 * * *", "03-31 02:00+01:00, 04-01 01:30+01:00"),
        # Troll station changes by two hours.
        ("Antarctica/Troll", "2024-03-30 12:00", "30 1,2 * * *", "03-31 03:00+02:00, 04-01 01:30+02:00"),
        (
            "Antarctica/Troll",
            "2024-10-27 00:30+00:00",
            "0 * * * *",
            "10-27 01:00+00:00, 10-27 02:00+00:00, 10-27 03:00+00:00",
        ),
        (
            "Antarctica/Troll",
            "2024-10-26 12:00",
            "30 1,2 * * *",
            "10-27 01:30+02:00, 10-27 02:30+02:00, 10-28 01:30+00:00",
        ),
        # Changes at midnight: no midnight in spring; in autumn one (Havana: the first of two) and the evening twice.
        ("America/Havana", "2024-03-09 12:00", "0 0 * * *", "03-10 01:00-04:00, 03-11 00:00-04:00"),
        ("America/Havana", "2024-11-02 12:00", "0 0 * * *", "11-03 00:00-04:00, 11-04 00:00-05:00"),
        (
            "America/Havana",
            "2024-11-02 12:00",
            "*/60 0 * * *",
            "11-03 00:00-04:00, 11-03 00:00-05:00, 11-04 00:00-05:00",
        ),
        ("Asia/Beirut", "2024-03-30 12:00", "@daily", "03-31 01:00+03:00, 04-01 00:00+03:00"),
        ("Asia/Beirut", "2024-10-26 12:00", "@daily", "10-27 00:00+02:00, 10-28 00:00+02:00"),
        ("Asia/Beirut", "2024-10-26 12:00", "*/60 23 * * *", "10-26 23:00+03:00, 10-26 23:00+02:00, 10-27 23:00+02:00"),
        ("America/Santiago", "2024-04-06 12:00", "30 23 * * *", "04-06 23:30-03:00, 04-07 23:30-04:00"),
        ("America/Santiago", "2024-09-07 12:00", "0 0 8 9 *", "09-08 01:00-03:00, 09-08 00:00-03:00"),
        # Samoa skipped the 30th of December 2011: what was due fires at once when the 31st begins.
        (APIA, "2011-12-29 12:00", "0 12 * * *", "12-31 00:00+14:00, 12-31 12:00+14:00"),
        (APIA, "2011-12-29 12:00", "0 */12 * * *", "12-31 00:00+14:00, 12-31 12:00+14:00"),
        (APIA, "2011-12-29 12:00", "0 12 30 * *", "12-31 00:00+14:00, 01-30 12:00+14:00"),
        (APIA, "2011-12-29 12:00", "*/60 12 30 * *", "01-30 12:00+14:00, 03-30 12:00+14:00"),
        # Kwajalein had the 30th of September 1969 nearly twice: 23 hours back when the next day began.
        ("Pacific/Kwajalein", "1969-09-30 11:00+11:00", "0 9 * * *", "10-01 09:00-12:00"),
        ("Pacific/Kwajalein", "1969-09-30 20:00-12:00", "0 21 * * *", "10-01 21:00-12:00"),
        ("Pacific/Kwajalein", "1969-09-30 20:00-12:00", "*/60 21 * * *", "09-30 21:00-12:00, 10-01 21:00-12:00"),
        # Liberia was 44 and a half minutes behind, until the 7th of January 1972.
        ("Africa/Monrovia", "1972-01-06 12:00", "0,50 0 * * *", "01-07 00:44:30+00:00, 01-07 00:50+00:00"),
        ("Africa/Monrovia", "1972-01-06 23:20", "*/30 * * * *", "01-06 23:30-00:44:30, 01-07 01:00+00:00"),
    ],
)
def test_clocks_that_change_in_other_ways(zone, after, expression, expected):
    """No size, hour or direction of a change is special."""
    wanted = expected.split(", ")
    seen = [shown.removeprefix(shown[:5]) for shown in fires(expression, after, len(wanted), zone)]

    assert seen == wanted


# ---- against a slow model ----------------------------------------------------------------------------


class Drawn(NamedTuple):
    """An expression drawn at random, and what it means: a set per field, and which fields begin with a star."""

    text: str
    sets: tuple[frozenset[int], ...]
    stars: tuple[bool, ...]

    def matches(self, wall):
        """Whether this minute of the wall clock is meant."""
        minutes, hours, days, months, weekdays = self.sets
        if wall.minute not in minutes or wall.hour not in hours or wall.month not in months:
            return False
        by_day, by_weekday = wall.day in days, wall.isoweekday() % 7 in weekdays
        both = self.stars[2] or self.stars[4]
        return (by_day and by_weekday) if both else (by_day or by_weekday)


NAMES = {
    3: ("JAN", "feb", "Mar", "APR", "MAY", "JUN", "JUL", "AUG", "sep", "OCT", "NOV", "Dec"),
    4: ("SUN", "MON", "TUE", "wed", "THU", "Fri", "SAT"),
}
BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def drawn_term(chance, number):
    """Draw one term of a field: its text, and the values that it stands for, spelled out."""
    first, last = BOUNDS[number]

    def spell(value):
        names = NAMES.get(number)
        if names is None or value - first >= len(names) or chance.random() < 0.5:
            return str(value)
        return names[value - first]

    kind = chance.choice(("*", "a", "a", "a-b", "*/n", "a-b/n", "a/n"))
    low, high = sorted((chance.randint(first, last), chance.randint(first, last)))
    step = chance.choice((1, 2, 3, 5, 7, 15, 30, 100))
    if kind == "*":
        return "*", range(first, last + 1)
    if kind == "a":
        return spell(low), [low]
    if kind == "a-b":
        return f"{spell(low)}-{spell(high)}", range(low, high + 1)
    if kind == "*/n":
        return f"*/{step}", range(first, last + 1, step)
    if kind == "a-b/n" and low < high:  # cronsim takes 5-5/n for 5/n
        return f"{spell(low)}-{spell(high)}/{step}", range(low, high + 1, step)
    return f"{spell(low)}/{step}", range(low, last + 1, step)


def drawn_field(chance, number):
    """Draw a field: a star half of the time, so that the others have something to say."""
    if chance.random() < (0.3, 0.3, 0.5, 0.7, 0.6)[number]:
        return "*", frozenset(range(*BOUNDS[number])) | {BOUNDS[number][1]}
    terms = [drawn_term(chance, number) for _ in range(chance.choice((1, 1, 2, 3)))]
    values = {value for _, some in terms for value in some}
    return ",".join(text for text, _ in terms), frozenset(values)


def drawn(chance):
    """Draw an expression which names times that come."""
    while True:
        texts, sets = zip(*(drawn_field(chance, number) for number in range(5)), strict=True)
        made = Drawn(
            " ".join(texts),
            (*sets[:4], frozenset(day % 7 for day in sets[4])),
            tuple(text.startswith("*") for text in texts),
        )
        longest = max((31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[month - 1] for month in made.sets[3])
        if min(made.sets[2]) <= longest or not (made.stars[2] or made.stars[4]):
            return made


LONG = 3  #: days that are walked


class Minute(NamedTuple):
    """A minute of real time, what the clock shows then, and what it shows or has jumped over for the first time."""

    instant: datetime
    wall: datetime
    new: list[datetime]


@cache
def minutes_of(zone, begin):
    """Walk minute by minute in UTC, and look at the clock of the zone."""
    minutes, tz, shown = [], ZoneInfo(zone), None
    for number in range(LONG * 24 * 60):
        instant = at(begin) + number * MINUTE
        wall = instant.astimezone(tz).replace(tzinfo=None)
        shown = shown or wall - MINUTE  # the latest so far
        minutes.append(Minute(instant, wall, [shown + n * MINUTE for n in range(1, (wall - shown) // MINUTE + 1)]))
        shown = max(shown, wall)
    return minutes


@cache
def walked(made, zone, begin):
    """Return all instants that fire, found by looking at every minute.

    A rhythm fires when the clock shows a minute that is meant. A fixed time fires when the clock first
    shows it or, having jumped, a later one.
    """
    minutes = minutes_of(zone, begin)
    if made.stars[0] or made.stars[1]:
        return [minute.instant for minute in minutes if made.matches(minute.wall)]
    return [minute.instant for minute in minutes if any(map(made.matches, minute.new))]


#: A zone and when three days begin (in UTC) in the middle of which its clock changes; whole minutes all.
CHANGES = [
    ("UTC", "2024-03-30 00:00"),
    ("Asia/Kolkata", "2024-10-26 00:00"),
    ("Europe/Berlin", "2024-03-30 00:00"),
    ("Europe/Berlin", "2024-10-26 00:00"),
    ("Europe/Dublin", "2024-03-30 00:00"),
    ("Europe/Dublin", "2024-10-26 00:00"),
    ("America/New_York", "2024-03-09 00:00"),
    ("America/New_York", "2024-11-02 00:00"),
    ("Australia/Sydney", "2024-04-05 00:00"),
    ("Australia/Sydney", "2024-10-04 00:00"),
    ("America/St_Johns", "2010-03-13 00:00"),
    ("America/St_Johns", "2024-11-02 00:00"),
    ("Africa/Casablanca", "2024-03-09 00:00"),
    ("Africa/Casablanca", "2024-04-13 00:00"),
    ("America/Havana", "2024-03-09 00:00"),
    ("America/Havana", "2024-11-02 00:00"),
    ("Asia/Beirut", "2024-03-29 12:00"),
    ("Asia/Beirut", "2024-10-25 12:00"),
    ("America/Santiago", "2024-04-05 12:00"),
    ("America/Santiago", "2024-09-06 12:00"),
    ("Antarctica/Troll", "2024-03-30 00:00"),
    ("Antarctica/Troll", "2024-10-26 00:00"),
]
#: Where cronsim cannot follow: changes by half an hour, a quarter or a day, and back across midnight (there
#: it never returns).
ODD_CHANGES = [
    ("America/St_Johns", "2010-11-06 00:00"),
    ("Australia/Lord_Howe", "2024-04-05 00:00"),
    ("Australia/Lord_Howe", "2024-10-04 00:00"),
    ("Asia/Kathmandu", "1985-12-30 00:00"),
    ("Asia/Pyongyang", "2015-08-13 00:00"),
    ("America/Caracas", "2007-12-07 12:00"),
    ("Pacific/Apia", "2011-12-28 22:00"),
    ("Pacific/Kwajalein", "1969-09-29 00:00"),
    ("Pacific/Kwajalein", "1993-08-20 00:00"),
]


@cache
def change_of(zone, begin):
    """Return the number of the minute before the change."""
    return next((n for n, (a, b) in enumerate(pairwise(minutes_of(zone, begin))) if b.wall - a.wall != MINUTE), 2000)


def asked(chance, zone, begin):
    """Draw an instant in the middle of the walked days: most are less than three hours from the change."""
    change = change_of(zone, begin)
    number = chance.randint(change - 180, change + 180) if chance.random() < 0.7 else chance.randint(1500, 3500)
    return minutes_of(zone, begin)[number].instant + timedelta(seconds=chance.choice((0, 0, 0, -1, 1)))


def agrees(made, zone, begin, after, fire):
    """Whether a fire is what the walk finds; beyond the days walked the walk says only that there is none before."""
    found = next((instant for instant in walked(made, zone, begin) if instant > after), None)
    return fire.astimezone(UTC) == found if found else fire.astimezone(UTC) >= at(begin) + LONG * DAY


@pytest.mark.parametrize(("zone", "begin"), CHANGES + ODD_CHANGES)
def test_around_a_change_the_walk_finds_the_same(zone, begin):
    """For drawn expressions, the fires around a change are those that a walk through the minutes finds."""
    chance = random.Random(f"{zone} {begin}")
    hour_before = minutes_of(zone, begin)[change_of(zone, begin) - 60].instant
    for _ in range(12):
        made = drawn(chance)
        cron, moment = Cron(made.text, zone), hour_before
        for expected in [instant for instant in walked(made, zone, begin) if instant > hour_before][:100]:
            moment = cron.next(moment)
            assert moment.astimezone(UTC) == expected, made.text
        for after in (asked(chance, zone, begin) for _ in range(10)):
            assert agrees(made, zone, begin, after, cron.next(after)), (made.text, after)


@pytest.mark.parametrize(("zone", "begin"), CHANGES)
def test_around_a_change_cronsim_finds_the_same_or_is_wrong(zone, begin):
    """For drawn expressions, the next fire is that of cronsim; where it is not, the walk says that ours is right."""
    cronsim = pytest.importorskip("cronsim")
    chance = random.Random(f"cronsim {zone} {begin}")
    differ = 0
    for _ in range(200):
        made, after = drawn(chance), asked(chance, zone, begin)
        mine = Cron(made.text, zone).next(after)
        theirs = next(cronsim.CronSim(made.text, after.astimezone(ZoneInfo(zone))))
        if mine.astimezone(UTC) != theirs.astimezone(UTC):
            differ += 1
            assert agrees(made, zone, begin, after, mine), (made.text, after)
            assert not agrees(made, zone, begin, after, theirs), (made.text, after)
    assert differ < 60  # the second pass of a fold, and midnights that do not exist


@pytest.mark.parametrize(
    "zone", ["UTC", "Europe/Berlin", "America/New_York", "Australia/Sydney", "America/St_Johns", "Asia/Kolkata"]
)
def test_on_any_day_cronsim_finds_the_same(zone):
    """For drawn expressions and instants of many years, the next three fires are those of cronsim."""
    cronsim = pytest.importorskip("cronsim")
    chance = random.Random(zone)
    for _ in range(400):
        made = drawn(chance)
        moment = at("2012-01-01 00:00") + chance.randrange(25 * 365 * 24 * 60) * MINUTE
        cron, other = Cron(made.text, zone), cronsim.CronSim(made.text, moment.astimezone(ZoneInfo(zone)))
        for _ in range(3):
            moment = cron.next(moment)
            assert moment.isoformat() == next(other).isoformat(), made.text


# ---- what holds for all ------------------------------------------------------------------------------

ZONES = sorted({zone for zone, _ in CHANGES + ODD_CHANGES} | {"Africa/Monrovia", "Europe/Amsterdam", "America/Juneau"})
zones = st.sampled_from(ZONES) | st.timedeltas(-DAY, DAY).filter(lambda offset: abs(offset) < DAY).map(timezone)
expressions = st.randoms(use_true_random=False).map(drawn)
moments = st.datetimes(
    datetime(1, 1, 3), max_value=datetime(9900, 1, 1), timezones=st.sampled_from([UTC, *map(ZoneInfo, ZONES)])
)


@checked
@given(expressions, zones, moments)
def test_the_next_fire_is_later_and_shows_the_zone(made, zone, after):
    """A fire is after the question, and its clock shows a minute that is meant, or has just jumped over one."""
    cron = Cron(made.text, zone)
    fire = cron.next(after)

    assert fire.astimezone(UTC) > after.astimezone(UTC)
    assert fire.tzinfo is cron.tz
    assert fire.astimezone(UTC).astimezone(cron.tz) == fire  # it exists
    if not made.matches(fire) or fire.second:
        before = (fire.astimezone(UTC) - timedelta(seconds=1)).astimezone(cron.tz)
        assert fire.utcoffset() > before.utcoffset()


@checked
@given(expressions, zones, moments, st.timedeltas(timedelta(0), 400 * DAY))
def test_a_later_question_has_no_earlier_answer(made, zone, after, wait):
    """Between a question and its answer the answer stays the same, and it never goes back."""
    cron = Cron(made.text, zone)
    later, fire = after.astimezone(UTC) + wait, cron.next(after).astimezone(UTC)

    assert cron.next(later).astimezone(UTC) >= fire
    assert cron.next(fire - timedelta.resolution).astimezone(UTC) == fire
    if later < fire:
        assert cron.next(later).astimezone(UTC) == fire


@checked
@given(st.sampled_from(CHANGES + ODD_CHANGES), expressions, st.integers(1500, 3500))
def test_nothing_fires_between_the_question_and_the_answer(change, made, minute):
    """A walk from the question on finds nothing before the answer, and the answer."""
    zone, begin = change
    after = at(begin) + minute * MINUTE

    assert agrees(made, zone, begin, after, Cron(made.text, zone).next(after))


@checked
@given(expressions, zones, moments)
def test_what_is_shown_fires_alike(made, zone, after):
    """What the repr shows can be parsed again, and fires at the same instants."""
    import datetime

    cron = Cron(made.text, zone)

    assert eval(repr(cron), {"Cron": Cron, "datetime": datetime}).next(after) == cron.next(after)


@checked
@given(st.text("0123456789*,-/ @LW#?HSUNMONJ", max_size=30) | st.text(max_size=30))
def test_any_text_is_read_or_refused_in_a_sentence(text):
    """Whatever is given as an expression, it fires or the ValueError is a sentence that names it."""
    try:
        cron, said = Cron(text), None
    except ValueError as error:
        cron, said = None, str(error)

    if cron:
        assert cron.next(at("2026-01-01 00:00")) > at("2026-01-01 00:00")
    else:
        assert said.startswith(f"Cron expression {text!r}")
        assert said.endswith(".")


# ---- the ends of time, and how long a question takes ----------------------------------------------------


def test_from_year_1_to_year_9999():
    """Every year that Python knows can be asked about, in every zone, and after the last one there is an error."""
    for zone in (UTC, *map(ZoneInfo, ZONES), timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))):
        cron, first = Cron("0 0 1 1 *", zone), datetime.min.replace(tzinfo=zone)
        assert cron.next(first).replace(tzinfo=None) == datetime(2, 1, 1)
        assert cron.next(first + 9997 * 365 * DAY).replace(tzinfo=None) > datetime(9990, 1, 1)
        latest = Cron("59 23 31 12 *", zone).next(datetime(9999, 12, 31, 12, tzinfo=zone))
        assert latest.replace(tzinfo=None) == datetime(9999, 12, 31, 23, 59)
        for last in (latest, datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=zone)):
            with pytest.raises(OverflowError, match=r"does not fire after 9999-12-31 .*: the calendar ends with"):
                Cron("* * * * *", zone).next(last)
    # Also where the instant itself has no date in UTC.
    assert Cron("0 * * * *").next(datetime.min.replace(tzinfo=timezone(timedelta(hours=23)))) == at("0001-01-01 00:00")
    with pytest.raises(OverflowError, match="the calendar ends with the year 9999"):
        Cron("0 * * * *").next(datetime.max.replace(tzinfo=timezone(timedelta(hours=-23))))


def test_the_rarest_dates():
    """A 29th of February on a given day of the week comes every 28 years, and after 40 when a century has none."""
    for day in range(7):
        years = [int(shown[:4]) for shown in fires(f"0 0 29 2 */7,{day}-{day}", "1804-01-01 00:00", 3)]
        assert all(date(year, 2, 29).isoweekday() in {7, day or 7} for year in years)
    years = [int(shown[:4]) for shown in fires("0 0 29 2 */7", "1900-01-01 00:00", 15)]
    assert max(two - one for one, two in pairwise(years)) == 40
    assert all(date(year, 2, 29).isoweekday() == 7 for year in years)


def test_a_rhythm_in_a_gap_waits_for_the_next_date():
    """A rhythm whose time is skipped this year comes when the clock shows it again; fixed, it is not lost."""
    assert fires("*/60 2 10 3 *", "2024-01-01 00:00", 1, "America/New_York") == ["2025-03-10 02:00-04:00"]
    assert fires("0 2 10 3 *", "2024-01-01 00:00", 1, "America/New_York") == ["2024-03-10 03:00-04:00"]
    # The first Sunday in April was the day until 2006.
    assert fires("*/60 2 1-7 4 */7", "1987-01-01 00:00", 1, "America/New_York") == ["2007-04-01 02:00-04:00"]


def test_a_rhythm_that_gaps_swallow_for_good_is_refused():
    """A rhythm at 02:00 on the second Sundays of March never comes in New York: an error, with what to write."""
    assert refused("*/60 2 8-14 3 */7", "America/New_York") == (
        "Cron expression '*/60 2 8-14 3 */7' never fires again, since the clock of America/New_York skips all its "
        "times: name minute and hour without *, and it fires where the clock goes on."
    )
    assert fires("0 2 8-14 3 */7", "2026-01-01 00:00", 1, "America/New_York") == ["2026-03-08 03:00-04:00"]
    assert fires("*/60 2 8-14 3 */7", "2026-01-01 00:00", 1, "Europe/Berlin") == ["2026-03-08 02:00+01:00"]


class Counting(tzinfo):
    """A zone that counts how often it is asked what its clock shows."""

    def __init__(self, name):
        self.zone, self.count = ZoneInfo(name), 0

    def fromutc(self, moment):
        self.count += 1
        return self.zone.fromutc(moment.replace(tzinfo=self.zone)).replace(tzinfo=self)

    def utcoffset(self, moment):
        return self.zone.utcoffset(moment.replace(tzinfo=self.zone))


@pytest.mark.parametrize("name", ["UTC", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", APIA])
def test_r51_no_question_takes_many_steps(name):
    """However rare the date, the zone is asked a few times; a gap costs a search, and so does each in a row of gaps."""
    zone, chance = Counting(name), random.Random(name)
    rare = [
        *("0 0 29 2 *", "*/60 2 29 2 */7", "59 23 31 12 */7", "* * 31 */5 */6", "*/60 2 1-7 4 */7", "*/30 2 10 3 *"),
        *(drawn(chance).text for _ in range(30)),
    ]
    most = 0
    for expression in rare:
        cron = Cron(expression, zone)
        for year in (1, 1899, 1967, 1987, 2007, 2026, 2097, 9900):
            for _ in range(5):
                zone.count = 0
                cron.next(at(f"{year:04}-01-01 00:00") + chance.random() * 365 * DAY)
                most = max(most, zone.count)
    assert most < 1000
