"""Cron expressions as pure arithmetic: when ``*/15 2 * * MON-FRI`` fires next on the clock of a zone.

The rules are those of Debian's crontab(5) and cron(8), here in a library without a daemon:

Rule 1: five fields (minute, hour, day of month, month, day of week) say which readings of the wall clock
    are meant. If one of the two day fields begins with ``*``, both must match; else one is enough.
Rule 2: an expression whose minute and hour both begin with something else than ``*`` names *fixed times*.
    Each comes once a day, whatever the clock does: a time that the clock jumps over (a gap) comes right
    after the jump, all times of one gap together; a time that the clock repeats (a fold) comes the first
    time only.
Rule 3: any other expression is a *rhythm*. It follows the wall clock: nothing in a gap, twice in a fold.
    So ``*/30 * * * *`` comes every 30 minutes of real time.
Rule 4: nothing here asks what time it is, sleeps, or walks through minutes. A question is answered in
    a few steps per date that the expression names, and nearly always the first date is the answer.

Debian treats jumps of 3 hours and more as somebody setting the clock; a zone's own jumps are treated alike
here, whatever their size (Samoa skipped a whole day). May import: the standard library.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Sequence
from datetime import MAXYEAR, UTC, date, datetime, timedelta, tzinfo
from typing import NamedTuple, cast
from zoneinfo import ZoneInfo

LONGEST = 1_000  #: characters of an expression
DAY, MINUTE, SECOND = timedelta(days=1), timedelta(minutes=1), timedelta(seconds=1)
MINUTES = 24 * 60  #: of a day
BEGIN, END = 2 * DAY, datetime.max - datetime.min - 2 * DAY  #: of the time when readings have a date everywhere

#: The calendar shows all 14 kinds of years within 40 years, and from 2100 on every zone known today goes by
#: the kind of the year alone. So a rhythm whose times fall into gaps for so long never fires again.
SETTLED = timedelta(days=date(2100, 1, 1).toordinal())
PATIENCE = 41 * 366 * DAY


class _Field(NamedTuple):
    name: str
    first: int
    last: int
    usage: str
    names: Sequence[str] = ()


MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
FIELDS = (
    _Field("minute", 0, 59, "0 to 59"),
    _Field("hour", 0, 23, "0 to 23"),
    _Field("day of month", 1, 31, "1 to 31"),
    _Field("month", 1, 12, "1 to 12 or JAN to DEC", MONTHS),
    _Field("day of week", 0, 7, "0 to 7 (0 and 7 are Sunday) or SUN to SAT", WEEKDAYS),
)
ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
#: What other dialects have, as they write it at the beginning of a term (but WED and JUL are names).
FOREIGN = re.compile(r"[^?#]*([?#])|\d*(LW?|W|H)(?![A-Z])", re.IGNORECASE | re.ASCII)
INSTEAD = {
    "?": "write * instead",
    "#": "name the day of week alone, and let the task see which of the month it is",
    "L": "name the days that may be the last, such as 28-31, and let the task see which it is",
    "LW": "name the days that may be the last, such as 26-31, and let the task see which it is",
    "W": "name the day and its neighbours, and let the task see which it is",
    "H": "write a number instead",
}


class Cron:
    """The times that a cron expression names, on the wall clock of a zone.

    Each of the five fields is ``*``, a value, a range ``a-b``, any of these with a step (``*/5``, ``8-18/2``;
    ``8/2`` goes on to the end of the field), or a list of all that, separated by commas::

        Cron("30 6 * * MON-FRI", "Europe/Berlin")  # at half past six on working days
        Cron("*/10 * * * *")                       # every ten minutes
        Cron("0 0 13 * 5")                         # on every 13th and on every Friday

    Args:
        expression: five fields (minute 0-59, hour 0-23, day of month 1-31, month 1-12 or JAN-DEC, day of
            week 0-7 or SUN-SAT; 0 and 7 are Sunday), or one of ``@yearly``, ``@annually``, ``@monthly``,
            ``@weekly``, ``@daily``, ``@midnight`` and ``@hourly``. Small and capital letters are the same.
        tz: zone of the wall clock: an IANA name, a ``tzinfo``, or None for UTC.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an expression that cannot be read or never fires, or an unknown zone.
    """

    __slots__ = ("_clock", "_days", "_either", "_expression", "_fixed", "_hours", "_minutes", "_months", "_weekdays")

    def __init__(self, expression: str, tz: str | tzinfo | None = None) -> None:
        words = _words(expression)
        # As cron does it, a set of numbers is an integer with a bit for each of them.
        self._minutes, self._hours, self._days, self._months, weekdays = (
            _bits(expression, field, word) for field, word in zip(FIELDS, words, strict=True)
        )
        #: The week from Sunday on, six times: enough for a month that begins on any of its days.
        self._weekdays = sum((weekdays | weekdays >> 7) % 128 << 7 * week for week in range(6))
        self._either = not (words[2].startswith("*") or words[4].startswith("*"))
        self._fixed = not (words[0].startswith("*") or words[1].startswith("*"))
        self._expression = expression
        self._clock = _WallClock(_zone(tz))
        # Every day that a month can have falls on every day of the week in some year. So only this is in vain:
        longest = max(monthrange(2000, month)[1] for month in range(1, 13) if self._months >> month & 1)
        if not self._either and not self._days & _up_to(longest):
            raise ValueError(
                f"Cron expression {expression!r} never fires, since no month {words[3]!r} has a day of month "
                f"{words[2]!r}: name a day that exists."
            )
        if self._fire(SETTLED, SETTLED + PATIENCE) is None:
            raise ValueError(
                f"Cron expression {expression!r} never fires again, since the clock of {self.tz} skips all its times: "
                "name minute and hour without *, and it fires where the clock goes on."
            )

    @property
    def expression(self) -> str:
        """The expression, as it was given."""
        return self._expression

    @property
    def tz(self) -> tzinfo:
        """The zone of the wall clock."""
        return self._clock.tz

    def next(self, after: datetime) -> datetime:
        """Return the first fire after an instant.

        Two times of the same zone are compared by Python as readings of the wall clock, which repeats
        itself in a fold. Compare them ``.astimezone(UTC)``.

        Args:
            after: an aware datetime, in any zone. The fire is later, never at the same instant.

        Returns:
            The fire, as an aware datetime in ``tz``.

        Raises:
            TypeError: ``after`` is no datetime.
            ValueError: ``after`` is naive, so it names no instant.
            OverflowError: there is no such fire in the years that Python knows, up to 9999.
        """
        fire = self._fire(_instant(after) + timedelta.resolution, timedelta.max)
        if fire is None:
            raise OverflowError(f"{self!r} does not fire after {after}: the calendar ends with the year {MAXYEAR}.")
        return self._clock.read(fire)

    def __repr__(self) -> str:
        """Show how to make it again."""
        zone = self.tz.key if isinstance(self.tz, ZoneInfo) and self.tz.key else self.tz
        return f"Cron({self._expression!r})" if zone is UTC else f"Cron({self._expression!r}, tz={zone!r})"

    def _fire(self, now: timedelta, last: timedelta) -> timedelta | None:
        """Return the first instant from ``now`` on that fires; None if the clock reads more than ``last`` by then."""
        while True:
            offset = self._clock.offset(now)
            wall = self._match(self._unseen(now, offset))
            if wall is None or wall > last:
                return None
            # If nothing changes the clock before, it reads `wall` then; and a fixed time that a gap jumped
            # over fires where the gap ends, which is now.
            fire = max(now, wall - offset)
            ahead = min(fire, now + DAY)
            change = self._clock.change(now, ahead)
            if change is not None:
                now = change
            elif fire == ahead:
                return fire
            else:
                # Nothing fires before the clock reads `wall`: nothing changes it for a day, and a later change
                # cannot put it back to what it reads now. And no clock is more than a day ahead of UTC.
                now = max(ahead, wall - DAY)

    def _unseen(self, now: timedelta, offset: timedelta) -> timedelta:
        """Return from which reading of the wall clock on readings count, at an instant and later."""
        reading = now + offset
        change = self._clock.change(now - DAY, now) if self._fixed else None
        if change is None:
            return reading
        # A fixed time counts once: in the second pass of a fold only what the first has not reached; and
        # at the end of a gap also what was jumped over.
        reached = change + self._clock.offset(now - DAY)
        return reached if change == now else max(reached, reading)

    def _match(self, wall: timedelta) -> timedelta | None:
        """Return the first reading of the wall clock from ``wall`` on that the five fields name."""
        today, minute = divmod(max(0, -(-wall // MINUTE)), MINUTES)
        day = self._day(today)
        time = self._time(minute if day == today else 0)
        if time is None:
            day, time = self._day(today + 1), self._time(0)
        return None if day is None or time is None else day * DAY + time * MINUTE

    def _time(self, start: int) -> int | None:
        """Return the first time of the day from ``start`` on, all in minutes since midnight."""
        hour, minute = divmod(start, 60)
        first = _first(self._minutes, minute) if self._hours >> hour & 1 else None
        if first is None:
            later, first = _first(self._hours, hour + 1), _first(self._minutes, 0)
            if later is None:
                return None
            hour = later
        return hour * 60 + cast(int, first)

    def _day(self, start: int) -> int | None:
        """Return the first day from ``start`` on, all in days since the first of January of year 1."""
        if start >= date.max.toordinal():
            return None
        begin = date.fromordinal(start + 1)
        day = begin.day
        for months in range(begin.year * 12 + begin.month - 1, (MAXYEAR + 1) * 12):
            year, month = months // 12, months % 12 + 1
            if self._months >> month & 1:
                found = _first(self._days_of(year, month), day)
                if found is not None:
                    return date(year, month, found).toordinal() - 1
            day = 1
        return None

    def _days_of(self, year: int, month: int) -> int:
        """Return the days of a month that match, bit 1 for the first."""
        monday_based, length = monthrange(year, month)
        weekdays = self._weekdays >> (monday_based + 1) % 7 << 1  # begins with the day of the week of the first
        return (self._days | weekdays if self._either else self._days & weekdays) & _up_to(length)


class _WallClock:
    """The wall clock of a zone. Instants, offsets and readings are all times since year 1 began, in UTC or here.

    Relies on three properties of all zones in the history that the IANA database tells: offsets and their
    changes are a day at most, a change comes at a whole second, and two changes are more than a day apart (the
    record is four days, in Freetown in 1939).
    """

    __slots__ = ("_year_1", "tz")

    def __init__(self, tz: tzinfo) -> None:
        self.tz = tz
        self._year_1 = datetime.min.replace(tzinfo=tz)

    def offset(self, instant: timedelta) -> timedelta:
        """Return how far the clock is ahead of UTC."""
        # No zone changes near the two ends of the calendar; so ask where the answer can be written down.
        here = self.tz.fromutc(self._year_1 + min(max(instant, BEGIN), END))
        return cast(timedelta, here.utcoffset())

    def change(self, start: timedelta, end: timedelta) -> timedelta | None:
        """Return the instant after ``start``, up to ``end``, that changes the offset; None if there is none."""
        before = self.offset(start)
        if self.offset(end) == before:
            return None
        low, high = start // SECOND, -(-end // SECOND)
        while high - low > 1:
            middle = (low + high) // 2
            if self.offset(middle * SECOND) == before:
                low = middle
            else:
                high = middle
        return high * SECOND

    def read(self, instant: timedelta) -> datetime:
        """Return an instant as a datetime of the zone."""
        offset = self.offset(instant)
        reading = self._year_1 + (instant + offset)
        return reading if reading.utcoffset() == offset else reading.replace(fold=1)


def _instant(moment: datetime) -> timedelta:
    """Return a moment as the time since year 1 began in UTC, which may be negative."""
    if not isinstance(moment, datetime):
        raise TypeError(f"A time must be an aware datetime, not {type(moment).__name__}: {moment!r}.")
    offset = moment.utcoffset()
    if offset is None:
        raise ValueError(
            f"The time {moment} is naive, so it names no instant: give it a zone, as datetime.now(UTC) and "
            "moment.replace(tzinfo=...) do."
        )
    return moment.replace(tzinfo=None) - datetime.min - offset


def _zone(tz: str | tzinfo | None) -> tzinfo:
    if tz is None:
        return UTC
    if isinstance(tz, str):
        try:
            return ZoneInfo(tz)
        except (LookupError, ValueError, OSError):  # not found; no proper name; a directory
            raise ValueError(
                f"Zone {tz!r} is unknown: use an IANA name such as 'Europe/Berlin'. If that is unknown too, this "
                "system has no zone data: pip install tzdata."
            ) from None
    if not isinstance(tz, tzinfo):
        raise TypeError(f"tz must be an IANA name such as 'Europe/Berlin', a tzinfo or None, not {tz!r}.")
    if datetime(2000, 1, 1, tzinfo=UTC).astimezone(tz).tzinfo is not tz:
        # Zones of pytz put another object for each season into a datetime. Such a zone by itself tells
        # the time of the 19th century.
        raise TypeError(f"tz {tz!r} is not one zone for all seasons: use zoneinfo.ZoneInfo({str(tz)!r}).")
    return tz


def _words(expression: str) -> list[str]:
    """Return the five fields of an expression, as text."""
    if not isinstance(expression, str):
        raise TypeError(f"A cron expression must be a str, not {type(expression).__name__}: {expression!r}.")
    if len(expression) > LONGEST:
        raise ValueError(
            f"Cron expression {expression[:40]!r}... has {len(expression)} characters: use {LONGEST} at most."
        )
    words = expression.split()
    if len(words) == 1 and words[0].startswith("@"):
        return _alias(expression, words[0].lower()).split()
    if len(words) != len(FIELDS):
        mend = f"write {', '.join(field.name for field in FIELDS)}"
        if len(words) > len(FIELDS):
            mend += ", without seconds or years"
        raise ValueError(f"Cron expression {expression!r} has {len(words)} fields instead of 5: {mend}.")
    return words


def _alias(expression: str, name: str) -> str:
    if name == "@reboot":
        raise ValueError(
            f"Cron expression {expression!r} names no time, since a library does not see the computer start: "
            "run the flow where your program starts."
        )
    if name not in ALIASES:
        raise ValueError(f"Cron expression {expression!r} is no alias: use {', '.join(ALIASES)}, or five fields.")
    return ALIASES[name]


def _bits(expression: str, field: _Field, text: str) -> int:
    bits = 0
    for term in text.split(","):
        for value in _values(expression, field, term):
            bits |= 1 << value
    return bits


def _values(expression: str, field: _Field, term: str) -> range:
    """Return the values of one term of a list: ``*``, ``a``, ``a-b`` or one of these with ``/n``."""

    def wrong(why: str) -> ValueError:
        return ValueError(f"Cron expression {expression!r}: {field.name} {term!r} {why}.")

    foreign = FOREIGN.match(term)
    if foreign:
        sign = (foreign[1] or foreign[2]).upper()
        raise wrong(f"has {sign}, which is not of cron: {INSTEAD[sign]}")
    span, slash, step = term.partition("/")
    if slash and not (_is_number(step) and int(step)):
        raise wrong(f"has the step {step!r}: use a whole number from 1 on")
    if span == "*":
        return range(field.first, field.last + 1, int(step or 1))
    start, dash, end = span.partition("-")
    low = _value(field, start)
    high = _value(field, end) if dash else field.last if slash else low
    if low is None or high is None:
        raise wrong(f"is neither * nor a value nor a range: use {field.usage}")
    for value in (low, high):
        if not field.first <= value <= field.last:
            raise wrong(f"is out of bounds: use {field.usage}")
    if high < low and end.upper() == "SUN":
        high = 7  # a Sunday that ends a range ends the week
    if high < low:
        raise wrong(f"runs backwards: use {start}-{field.last}{slash}{step},{field.first}-{end}{slash}{step}")
    return range(low, high + 1, int(step or 1))


def _value(field: _Field, word: str) -> int | None:
    if _is_number(word):
        return int(word)
    name = word.upper() if word.isascii() else ""
    return field.first + field.names.index(name) if name in field.names else None


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()  # isdigit also knows other alphabets


def _first(bits: int, start: int) -> int | None:
    """Return the lowest bit from ``start`` on that is set."""
    rest = bits >> start
    return start + (rest & -rest).bit_length() - 1 if rest else None


def _up_to(last: int) -> int:
    """Return the set of 1 to ``last``."""
    return (2 << last) - 2
