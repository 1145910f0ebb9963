"""Unit conversion: what people write, exactly, against pint where that reads the same."""

from __future__ import annotations

import doctest
import unicodedata
import zoneinfo
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent.errors import ToolError
from qwen_agent.tools import units
from qwen_agent.tools.units import convert, convert_units, read_unit


def test_it_is_a_tool_and_says_the_whole_equation():
    assert (convert_units.name, convert_units.untrusted, convert_units.side_effects) == ("convert_units", False, False)
    result = convert_units.invoke({"value": "3.5", "from_unit": "miles", "to_unit": "km"})
    assert (result.ok, result.content) == (True, "3.5 miles = 5.632704 km")
    assert convert_units.invoke({"value": 1e300, "from_unit": "km", "to_unit": "m"}).content == "1e+300 km = 1e+303 m"


CASES = """
1 inch = 2.54 cm                    | 1 in = 2.54 cm                   | 6 feet = 182.88 cm
1 metre = 1 m                       | 1 meter = 1 metres               | 1 meters = 100 centimetres
100 °C = 212 °F                     | -40 F = -40 C                    | 0 K = -273.15 degC
98.6 fahrenheit = 37 celsius        | 100 degrees Celsius = 373.15 K   | 1 °C = 33.8 degF
1 GB = 1000 MB                      | 1 GiB = 1024 MiB                 | 8 Mb = 1 MB
100 Mbps = 12.5 MB/s                | 1 KB = 1000 bytes                | 1 kilobyte = 8 kilobits
60 mph = 96.56064 km/h              | 36 km/h = 10 m/s                 | 1 knot = 1.852 kph
8 L/100km = 12.5 km/l               | 20 km/l = 5 L/100 km             | 5 min/km = 12 km/h
15 kWh/100km = 150 Wh/km            | 50 Hz = 20 ms                    | 60 rpm = 1 Hz
1 hectare = 10000 m2                | 1 m² = 10000 cm²                 | 1 sq ft = 144 square inches
1 cubic metre = 1000 litres         | 1 cm cubed = 1 ml                | 1 l = 1 dm³
1 gallon = 128 fl oz                | 16 US fl oz = 1 pint             | 3 tsp = 1 tbsp
1 imperial pint = 20 UK fl oz       | 1 barrel = 42 gallons            | 1 fluid ounce = 2 tablespoons
1 lb = 16 oz                        | 1 stone = 14 lbs                 | 1 tonne = 1000 Kilograms
1 short ton = 2000 pounds           | 1 long ton = 2240 pounds         | 5 carats = 1 g
1 kWh = 3.6 MJ                      | 1 Cal = 1 kcal                   | 1 kcal = 4.184 kJ
1 atm = 101325 Pa                   | 1 bar = 1000 hPa                 | 1 kg*m/s^2 = 1 N
1 J/°C = 1 J/K                      | 1 W/m^2/K = 1 W/m2/K             | 1 N m = 1 J
90 minutes = 1.5 hours              | 1 week = 168 h                   | 1 year = 365.25 days
180 degrees = 0.5 turn              | 1 ° = 60 arcmin                  | 1 percent = 10000 ppm
1 公里 = 1000 米                    | 1 斤 = 0.5 公斤                  | 37 摄氏度 = 98.6 华氏度
1 µm = 1000 nm                      | 1 Å = 100 pm                     | 1 light year = 9460730472580.8 km
1 mW = 0.001 W                      | 1 MW = 1000000 W                 | 1 nautical mile = 1852 m
""".replace("\n", "|").split("|")


@pytest.mark.parametrize("case", [case.strip() for case in CASES if case.strip()])
def test_exactly(case):
    left, right = case.split(" = ")
    amount, source = left.split(" ", 1)
    result, target = right.split(" ", 1)
    assert convert(Fraction(amount), source, target) == Fraction(result)


def test_fuel_both_ways():
    assert float(convert(Fraction(30), "mpg", "L/100km")) == pytest.approx(7.840486)
    assert float(convert(Fraction(30), "mpg UK", "L/100km")) == pytest.approx(9.416031)
    with pytest.raises(ToolError, match="has no inverse"):
        convert(Fraction(0), "mpg", "L/100km")


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("kg", "m", "'kg' is a mass and 'm' is a length: one cannot be converted into the other."),
        (
            "oz",
            "ml",
            "'oz' is a mass and 'ml' is a volume: one cannot be converted into the other. The ounce of volumes is",
        ),
        ("metr", "cm", "The unit 'metr' is not known. Did you mean metre or meter"),
        ("klometer", "mile", "Did you mean kilometer"),
        ("xyzzy", "m", "Give its usual name or sign"),
        ("ton", "kg", "'ton' may mean tonne (1000 kg) or short ton (US) or long ton (UK): say which."),
        ("ML", "l", "'ML' may mean mL or megalitre"),
        ("USD", "EUR", "'USD' is a currency, and exchange rates change every minute: look up today's rate"),
        ("m", "euros", "'euros' is a currency"),
        ("m/", "m", "not a whole unit"),
        ("", "m", "not a whole unit"),
        ("/", "m", "not a whole unit"),
        ("m^99", "m", "The power 99"),
        ("m+s", "m", "Cannot read the unit 'm+s' near '+s'"),
        ("x" * 100, "m", "too long"),
    ],
)
def test_what_cannot_be_converted_is_said_clearly(source, target, words):
    with pytest.raises(ToolError) as error:
        convert(Fraction(1), source, target)
    assert words in str(error.value) and len(str(error.value)) < 250


def test_nothing_is_colder_than_nothing():
    with pytest.raises(ToolError, match="-300 C is below absolute zero"):
        convert(Fraction(-300), "C", "F")
    assert not convert_units.invoke({"value": float("inf"), "from_unit": "m", "to_unit": "km"}).ok


NAMES_OF_PINT = """
m metre meter s second A mol cd bit byte B rad K degC degF degR km mm cm kg g inch foot ft yard mile mi nautical_mile
nmi thou fathom rod chain furlong micron angstrom au light_year parsec hectare acre litre l gallon quart pint cup
fluid_ounce tablespoon teaspoon imperial_gallon imperial_pint bushel tonne pound lb ounce oz stone short_ton
long_ton grain
troy_ounce carat minute hour day week fortnight year month century millennium degree arcminute arcsecond turn mph kph
knot newton dyne kgf lbf pascal bar atm psi torr mmHg inHg joule watt Wh calorie eV erg horsepower metric_horsepower
volt ohm coulomb farad henry tesla becquerel curie gray sievert percent ppm GB MiB kWh hPa mW MW kcal um
"""
OF_SURVEYORS = ("fathom", "rod", "chain", "furlong", "acre")  # pint's are of the US survey foot, 2 millionths longer


def test_every_unit_agrees_with_pint():
    pint = pytest.importorskip("pint")
    registry = pint.UnitRegistry(autoconvert_offset_to_baseunit=True)
    for name in NAMES_OF_PINT.split():
        check_against(registry, name)


def check_against(registry, name):
    ours = read_unit(name)
    theirs = registry.Quantity(1, name).to_base_units()
    plain = registry.Quantity(1, name).dimensionality
    symbols = {"[length]": "m", "[mass]": "kg", "[time]": "s", "[temperature]": "K", "[current]": "A"}
    symbols |= {"[substance]": "mol", "[luminosity]": "cd"}
    dimensions = {symbols[base]: power for base, power in plain.items()}
    known = {base: power for base, power in ours.dimensions if base not in ("bit", "rad")}
    assert known == dimensions, f"{name} (bits and radians have no dimension in pint)"
    tolerance = 1e-5 if name in OF_SURVEYORS else 1e-7
    assert float(ours.factor + ours.zero) == pytest.approx(float(theirs.magnitude), rel=tolerance), name


def test_the_table_names_every_unit_once():
    lines = units.UNIT_TABLE.strip().splitlines()
    names = [name.strip().removeprefix("*") for line in lines for name in line.partition(" = ")[0].split(",")]
    assert len(names) == len(set(names))
    assert names == [unicodedata.normalize("NFKC", name) for name in names]
    assert not set(names) & units.CURRENCIES


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30) | st.from_regex(r"[kMmcul]?[a-zA-Z°µ]{1,6}[ */^]?[-0-9]{0,2}", fullmatch=True))
def test_no_text_does_anything_but_convert_or_explain(text):
    try:
        assert read_unit(text).factor > 0
    except ToolError as error:
        assert str(error)


@pytest.mark.skipif(not zoneinfo.available_timezones(), reason="no list of time zones here")
def test_the_documentation_is_true():
    page = Path(__file__).parents[2] / "docs" / "tools" / "small.md"
    assert doctest.testfile(str(page), module_relative=False).failed == 0
