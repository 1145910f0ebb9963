"""The units that `qwen_agent.tools.units` knows.

One line a unit: its names, " = ", what it is in units of the lines above. A name with a star takes the prefixes of the
SI (kilo, k, mega, M ...), for bits and bytes also the binary ones. What a temperature's zero is in kelvin stands after
" from ". US customary measures have the plain names (gallon, pint, cup), British ones say imperial.
"""

from __future__ import annotations

BASE_UNITS = ("m", "kg", "s", "K", "A", "mol", "cd", "bit", "rad")

UNIT_TABLE = """
*m, *metre, *meter, 米 = m
*g, *gram, *gramme, 克 = 0.001 kg
*s, *sec, *second, 秒 = s
*A, *amp, *ampere = A
*mol, *mole = mol
*cd, *candela = cd
*bit, *b, *Bit = bit
*byte, *B, *Byte, *octet = 8 bit
*rad, *radian = rad
K, °K, kelvin, Kelvin = K
C, °C, degC, celsius, Celsius, centigrade, 摄氏度 = K from 273.15
F, °F, degF, fahrenheit, Fahrenheit, 华氏度 = 5 / 9 K from 45967/180
rankine, °R, degR = 5 / 9 K
centimetre, centimeter, cm, 厘米 = 0.01 m
kilometre, kilometer, km, 公里, 千米 = 1000 m
millimetre, millimeter, mm, 毫米 = 0.001 m
kilogram, kilo, kg, 公斤, 千克 = 1 kg
inch, in, inches, ", ′′, 英寸 = 0.0254 m
foot, ft, feet, ', ′, 英尺 = 12 inch
yard, yd, 码 = 3 foot
mile, mi, statute mile, 英里 = 1760 yard
nautical mile, nmi, NM, sea mile, 海里 = 1852 m
thou, mil = 0.001 inch
fathom = 6 foot
rod = 5.5 yard
chain = 22 yard
furlong = 220 yard
micron, micrometre, micrometer = 0.000001 m
angstrom, ångström, Å = 0.0000000001 m
astronomical unit, au, AU = 149597870700 m
light year, light-year, lightyear, ly, 光年 = 9460730472580800 m
*parsec, *pc = 30856775814913672.789139379577965 m
li, 里 = 500 m
are = 100 m^2
hectare, ha, 公顷 = 10000 m^2
acre, ac, 英亩 = 4840 yard^2
mu, 亩 = 2000 / 3 m^2
tsubo, 坪 = 400 / 121 m^2
*litre, *liter, *l, *L, 升 = 0.001 m^3
millilitre, milliliter, mL, ml, 毫升 = 0.000001 m^3
cc, ccm, cubic centimetre, cubic centimeter = 0.000001 m^3
gallon, gal, US gallon, us gal, 加仑 = 231 inch^3
quart, qt, US quart = 0.25 gallon
pint, pt, US pint = 0.125 gallon
cup, US cup = 0.0625 gallon
fluid ounce, fl oz, floz, fl. oz., fl.oz., oz fl, US fluid ounce, US fl oz = 1 / 128 gallon
tablespoon, tbsp, Tbsp = 0.5 fluid_ounce
teaspoon, tsp = 1 / 6 fluid_ounce
imperial gallon, UK gallon, imp gal, British gallon = 0.00454609 m^3
imperial quart, UK quart = 0.25 imperial_gallon
imperial pint, UK pint = 0.125 imperial_gallon
imperial fluid ounce, UK fluid ounce, imperial fl oz, UK fl oz = 1 / 160 imperial_gallon
barrel, bbl, oil barrel = 42 gallon
bushel, US bushel = 2150.42 inch^3
tonne, *t, metric ton, metric tonne, 吨 = 1000 kg
pound, lb, lbs, lbm, 磅 = 0.45359237 kg
ounce, oz, 盎司 = 1 / 16 pound
stone, st = 14 pound
short ton, US ton = 2000 pound
long ton, UK ton, imperial ton = 2240 pound
grain, gr = 1 / 7000 pound
troy ounce, ozt, oz t = 480 grain
carat, ct = 0.0002 kg
jin, catty, 斤 = 0.5 kg
liang, 两 = 0.05 kg
minute, min, mins, 分钟 = 60 s
hour, h, hr, 小时 = 60 minute
day, d, 天 = 24 hour
week, wk, 周, 星期 = 7 day
fortnight = 14 day
year, yr, y, Julian year, 年 = 365.25 day
month, mo = 1 / 12 year
decade = 10 year
century, centuries = 100 year
millennium, millennia = 1000 year
degree, deg, °, degree of arc = 0.017453292519943295769236907684886 rad
arcminute, arcmin, minute of arc = 1 / 60 degree
arcsecond, arcsec, second of arc = 1 / 3600 degree
turn, revolution, full circle = 360 degree
gradian, gon, grad = 0.9 degree
*hertz, *Hz = 1 / s
rpm, revolutions per minute = 1 / minute
bpm, beats per minute = 1 / minute
mph, miles per hour, mile per hour = mile / hour
kph, kmh, kmph, km per h, kilometres per hour, kilometers per hour = 1000 m / hour
knot, kn, kt, 节 = nautical_mile / hour
mpg, miles per gallon, US mpg = mile / gallon
imperial mpg, UK mpg, mpg imperial, mpg UK = mile / imperial_gallon
KB, kilobytes = 1000 byte
Kb, Kbit = 1000 bit
*bps = bit / s
*Bps = byte / s
Kbps = 1000 bit / s
KBps = 1000 byte / s
*newton, *N = kg m / s^2
dyne, dyn = 0.00001 newton
kilogram-force, kgf, kp = 9.80665 newton
pound-force, pound force, lbf = 0.45359237 kgf
*pascal, *Pa = newton / m^2
*bar = 100000 pascal
atmosphere, atm, 大气压 = 101325 pascal
psi, pounds per square inch, pound per square inch = lbf / inch^2
torr, Torr = 101325 / 760 pascal
mmHg, mm Hg = 133.322387415 pascal
inHg, in Hg = 25.4 mmHg
*joule, *J = newton m
*watt, *W, 瓦 = joule / s
*Wh, *watt-hour, *watt hour, *watthour = watt hour
*calorie, *cal = 4.184 joule
kilocalorie, kcal, Cal, Calorie, Calories, food calorie, 大卡 = 4184 joule
BTU, Btu, btu, British thermal unit = 1055.05585262 joule
therm = 100000 BTU
*electronvolt, *electron volt, *eV = 0.0000000000000000001602176634 joule
erg = 0.0000001 joule
foot-pound, ft lbf, ft-lb, foot pound = foot lbf
horsepower, hp, HP = 550 foot lbf / s
metric horsepower, PS, 马力 = 75 kgf m / s
*volt, *V = watt / A
*ohm, *Ω = volt / A
*coulomb = A s
*Ah, *amp hour, *amp-hour, *ampere hour = A hour
*farad = coulomb / volt
*henry, *H = volt s / A
*tesla, *T = volt s / m^2
gauss = 0.0001 tesla
*becquerel, *Bq = 1 / s
*curie, *Ci = 37000000000 becquerel
*gray, *Gy = joule / kg
*sievert, *Sv = joule / kg
percent, per cent, % = 0.01
per mille, ‰ = 0.001
ppm, parts per million = 0.000001
ppb, parts per billion = 0.000000001
"""

# What is meant differently by one word, or too easily written by mistake.
_TONS = ("tonne (1000 kg)", "short ton (US)", "long ton (UK)")
AMBIGUOUS = {**dict.fromkeys(("ton", "tons", "Ton", "Tons"), _TONS), "ML": ("mL", "megalitre")}

_CURRENCIES = """
$ € £ ¥ ₹ ₽ ₩ usd eur gbp jpy cny rmb chf inr rub krw cad aud dollar euro yuan yen rupee ruble rouble won franc peso
real lira zloty krona krone bitcoin btc ether eth sterling 元 美元 欧元 日元 人民币 英镑
"""
CURRENCIES = frozenset(_CURRENCIES.split())

PREFIXES: dict[str, int | str] = {
    **{name: 1 << 10 * power for power, name in enumerate(("kibi", "mebi", "gibi", "tebi", "pebi"), 1)},
    **{name: 1 << 10 * power for power, name in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"), 1)},
    **{"quetta": 10**30, "ronna": 10**27, "yotta": 10**24, "zetta": 10**21, "exa": 10**18, "peta": 10**15},
    **{"tera": 10**12, "giga": 10**9, "mega": 10**6, "kilo": 10**3, "hecto": 10**2, "deca": 10, "deka": 10},
    **{"deci": "0.1", "centi": "0.01", "milli": "0.001", "micro": "1e-6", "nano": "1e-9", "pico": "1e-12"},
    **{"femto": "1e-15", "atto": "1e-18", "zepto": "1e-21", "yocto": "1e-24"},
    **{"Q": 10**30, "R": 10**27, "Y": 10**24, "Z": 10**21, "E": 10**18, "P": 10**15, "T": 10**12, "G": 10**9},
    **{"M": 10**6, "k": 10**3, "h": 10**2, "da": 10, "d": "0.1", "c": "0.01", "m": "0.001", "u": "1e-6"},
    **{"n": "1e-9", "p": "1e-12", "f": "1e-15", "a": "1e-18"},
}

# What a unit with these powers of base units measures, for messages.
KINDS = {
    "m1": "a length",
    "m2": "an area",
    "m3": "a volume",
    "m-2": "a distance per fuel",
    "kg1": "a mass",
    "s1": "a time",
    "s-1": "a frequency",
    "K1": "a temperature",
    "A1": "a current",
    "bit1": "an amount of data",
    "bit1 s-1": "a data rate",
    "rad1": "an angle",
    "m1 s-1": "a speed",
    "m1 s-2": "an acceleration",
    "kg1 m1 s-2": "a force",
    "kg1 m-1 s-2": "a pressure",
    "kg1 m2 s-2": "an energy",
    "kg1 m2 s-3": "a power",
    "kg1 m-3": "a density",
    "mol1": "an amount of substance",
}
