"""The clock: one fixed moment, told for many places."""

from __future__ import annotations

import zoneinfo
from datetime import datetime, timezone

import pytest

from qwen_agent.errors import ToolError
from qwen_agent.tools import clock
from qwen_agent.tools.clock import current_time, tell

MOMENT = datetime(2024, 7, 4, 22, 30, 5, tzinfo=timezone.utc)
needs_zones = pytest.mark.skipif(not zoneinfo.available_timezones(), reason="no list of time zones here")


def test_it_is_a_tool_whose_answer_changes():
    assert (current_time.name, current_time.repeatable, current_time.untrusted) == ("current_time", True, False)
    result = current_time.invoke({})
    assert result.ok and "(local time, UTC" in result.content
    told = datetime.fromisoformat(current_time.invoke({"timezone": "UTC"}).content.split(", ")[1][:19] + "+00:00")
    assert abs((datetime.now(timezone.utc) - told).total_seconds()) < 60


@needs_zones
@pytest.mark.parametrize(
    ("zone", "text"),
    [
        ("UTC", "Thursday, 2024-07-04 22:30:05 (UTC, UTC+00:00)"),
        ("Europe/Oslo", "Friday, 2024-07-05 00:30:05 (Europe/Oslo, UTC+02:00)"),
        ("europe/oslo", "Friday, 2024-07-05 00:30:05 (Europe/Oslo, UTC+02:00)"),
        ("Tokyo", "Friday, 2024-07-05 07:30:05 (Asia/Tokyo, UTC+09:00)"),
        ("New York", "Thursday, 2024-07-04 18:30:05 (America/New_York, UTC-04:00)"),
        ("beijing", "Friday, 2024-07-05 06:30:05 (Asia/Shanghai, UTC+08:00)"),
        ("Kolkata", "Friday, 2024-07-05 04:00:05 (Asia/Kolkata, UTC+05:30)"),
        ("UTC+2", "Friday, 2024-07-05 00:30:05 (UTC+2, UTC+02:00)"),
        ("gmt -3:30", "Thursday, 2024-07-04 19:00:05 (GMT-3:30, UTC-03:30)"),
        ("+0545", "Friday, 2024-07-05 04:15:05 (+0545, UTC+05:45)"),
        ("Buenos Aires", "Thursday, 2024-07-04 19:30:05 (America/Argentina/Buenos_Aires, UTC-03:00)"),
    ],
)
def test_a_moment_in_many_places(zone, text):
    assert tell(MOMENT, zone) == text


@needs_zones
def test_every_city_of_the_list_has_a_zone():
    for name in clock._CITIES:
        assert tell(MOMENT, name)


@needs_zones
@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("Toky", "Did you mean Asia/Tokyo?"),
        ("Europe/Olso", "Europe/Oslo"),
        ("West", "Australia/West or Brazil/West"),
        ("UTC+20", "no time zone 'UTC+20'"),
        ("../../etc/passwd", "no time zone"),
        ("\0", "no time zone"),
        ("x" * 500, "no time zone"),
    ],
)
def test_an_unknown_zone_is_named_with_near_ones(zone, hint):
    with pytest.raises(ToolError) as error:
        tell(MOMENT, zone)
    assert hint in str(error.value) and len(str(error.value)) < 250


def test_without_a_list_of_zones_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    with pytest.raises(ToolError, match="pip install tzdata"):
        tell(MOMENT, "Europe/Oslo")
    assert tell(MOMENT, "UTC-5")
