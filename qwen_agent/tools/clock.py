"""What time it is: here, in a named time zone, in a city that a zone is named after, or at an offset from UTC."""

from __future__ import annotations

import difflib
import re
from datetime import datetime, timedelta, timezone, tzinfo

from qwen_agent.errors import ToolError
from qwen_agent.tools.base import tool

_OFFSET = re.compile(r"(?:UTC|GMT|Z)?\s*([+-])(\d{1,2})(?::?(\d\d))?", re.IGNORECASE)
_UTC_NAMES = ("utc", "gmt", "z", "zulu")
# Large cities that no zone is named after.
_CITIES = {
    **dict.fromkeys(("beijing", "peking", "shenzhen", "guangzhou", "hangzhou", "wuhan", "china"), "asia/shanghai"),
    **dict.fromkeys(("osaka", "kyoto", "nagoya", "sapporo"), "asia/tokyo"),
    **dict.fromkeys(("delhi", "new_delhi", "mumbai", "bangalore", "chennai", "india"), "asia/kolkata"),
    **dict.fromkeys(("washington", "boston", "miami", "atlanta", "philadelphia"), "america/new_york"),
    **dict.fromkeys(("san_francisco", "seattle", "san_diego", "las_vegas", "silicon_valley"), "america/los_angeles"),
    **dict.fromkeys(("houston", "dallas", "austin", "new_orleans"), "america/chicago"),
    **dict.fromkeys(("munich", "frankfurt", "hamburg", "cologne", "germany"), "europe/berlin"),
    **dict.fromkeys(("barcelona", "spain"), "europe/madrid"),
    **dict.fromkeys(("milan", "italy"), "europe/rome"),
    **dict.fromkeys(("geneva", "basel", "switzerland"), "europe/zurich"),
    **dict.fromkeys(("saint_petersburg", "st._petersburg"), "europe/moscow"),
    **dict.fromkeys(("rio_de_janeiro", "rio", "brasilia"), "america/sao_paulo"),
    **dict.fromkeys(("hanoi", "vietnam"), "asia/ho_chi_minh"),
    **dict.fromkeys(("edinburgh", "manchester", "uk", "england"), "europe/london"),
    **dict.fromkeys(("ottawa", "montreal"), "america/toronto"),
    "abu_dhabi": "asia/dubai",
    "cape_town": "africa/johannesburg",
    "canberra": "australia/sydney",
    "france": "europe/paris",
    "mecca": "asia/riyadh",
}
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")  # not in the user's language


@tool(name="current_time", repeatable=True, seconds=10.0)
def current_time(timezone: str = "") -> str:
    """Tell the current date, weekday and time.

    Args:
        timezone: such as Europe/Oslo, Tokyo or UTC+2; empty for the user's own
    """
    return tell(_now(), timezone)


def tell(moment: datetime, name: str) -> str:
    """A moment on the clocks of a zone. Raises ToolError, with names that are nearly so, for one there is not."""
    label, zone = _zone(name.strip(), moment)
    local = moment.astimezone(zone)
    date, offset = local.isoformat(sep=" ", timespec="seconds")[:-6], local.isoformat()[-6:]
    return f"{_DAYS[local.weekday()]}, {date} ({label}, UTC{offset})"


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _zone(name: str, moment: datetime) -> tuple[str, tzinfo | None]:
    """(how the zone is called, the zone); None is the computer's own."""
    if not name or name.lower() in ("local", "here"):
        return "local time", None
    if name.lower() in _UTC_NAMES:
        return "UTC", timezone.utc
    if match := _OFFSET.fullmatch(name):
        hours, minutes = int(match[2]), int(match[3] or 0)
        if hours <= 14 and minutes < 60:  # Kiribati is 14 hours ahead
            offset = timedelta(hours=hours, minutes=minutes)
            return name.upper().replace(" ", ""), timezone(offset if match[1] == "+" else -offset)
    return _named(name, moment)


def _named(name: str, moment: datetime) -> tuple[str, tzinfo]:
    from zoneinfo import ZoneInfo, available_timezones  # costs import time

    names = sorted(available_timezones())
    if not names:
        raise ToolError("This computer has no list of time zones (pip install tzdata): use an offset such as UTC+2.")
    wanted = re.sub(r"[\s-]+", "_", name).lower()
    wanted = _CITIES.get(wanted, wanted)
    places: dict[str, list[str]] = {}
    for each in names:
        places.setdefault(each.lower(), []).append(each)
        if "/" in each:
            places.setdefault(each.lower().rpartition("/")[2], []).append(each)
    found = places.get(wanted, [])
    # America/Mendoza and America/Argentina/Mendoza are one clock, Australia/West and Brazil/West are two.
    if len({ZoneInfo(each).utcoffset(moment) for each in found}) == 1:
        return found[0], ZoneInfo(found[0])
    near = found or [places[each][0] for each in difflib.get_close_matches(wanted, places, n=4, cutoff=0.75)]
    hint = f" Did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""
    raise ToolError(
        f"There is no time zone '{name[:60]}': give one such as Europe/Oslo or an offset such as UTC+2.{hint}"
    )
