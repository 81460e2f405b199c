"""Hardware files: what ships is checked, and what is wrong is refused by file, constant and reason."""

import re

import pytest
from spiking.hw_models import Hardware, available, load
from spiking.hw_models.hardware import MARKS

from spiking.errors import SpikingError

GOOD = """
name = "mine"
node_nm = 45
voltage = 0.9
[[constant]]
name = "fp32_add"
value = 0.9
unit = "pJ"
source = "me2020"
mark = "R"
[sources]
me2020 = "@misc{me2020}"
"""


@pytest.fixture
def chip(tmp_path):
    """A function that writes a hardware file, with replacements, and loads it."""

    def make(**changes: str) -> Hardware:
        text = GOOD
        for line, other in changes.items():
            old = next(x for x in GOOD.splitlines() if x.startswith(line))
            text = text.replace(old, other)
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return load(path)

    return make


@pytest.mark.parametrize("name", available())
def test_every_constant_that_ships_has_unit_interval_and_source(name):
    hardware = load(name)
    assert hardware.constants
    for constant in hardware.constants.values():
        assert 0 < constant.low <= constant.value <= constant.high
        assert constant.mark in MARKS
        for key in (constant.source, *constant.bounds):
            assert re.search(rf"@\w+\{{{key},", hardware.sources[key])


def test_published_values_at_45_nm():
    chip = load("digital-45nm")
    values = {name: c.value * 1e12 for name, c in chip.constants.items()}
    published = {
        "fp32_add": 0.9,
        "fp32_mul": 3.7,
        "fp16_add": 0.4,
        "fp16_mul": 1.1,
        "int8_add": 0.03,
        "int8_mul": 0.2,
        "int32_add": 0.1,
        "int32_mul": 3.1,
        "sram_8KiB": 10,
        "sram_32KiB": 20,
        "sram_1MiB": 100,
    }
    for name, value in published.items():
        assert values[name] == pytest.approx(value, rel=1e-12)
    assert values["dram"] == pytest.approx((1300 * 2600) ** 0.5)
    assert (chip["int32_mul"].high, chip["int32_add"].high) == pytest.approx((12.68e-12, 0.21e-12))
    assert chip["fp32_add"].single_source
    assert not chip["int32_add"].single_source


def test_units_become_si_once(chip):
    assert chip()["fp32_add"].value == pytest.approx(0.9e-12)
    assert chip(value="value = 900.0", unit='unit = "fJ"')["fp32_add"].value == pytest.approx(0.9e-12)
    assert str(chip()["fp32_add"]) == "0.9 pJ no interval known"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": ""}, "fp32_add: the constant has no source"),
        ({"source": 'source = "other"'}, "fp32_add: got source 'other'; expected a key of .sources.: me2020"),
        ({"unit": 'unit = "pJ/s"'}, "fp32_add: got unit 'pJ/s'; expected one of"),
        ({"unit": 'unit = "ns"'}, "fp32_add: got unit 'ns', a time; expected an energy such as"),
        ({"unit": 'unit = "mW"'}, "fp32_add: got unit 'mW', a power; expected an energy"),
        ({'name = "fp32': 'name = "fp32_ad"'}, "fp32_ad: no estimate uses .* such as fp32_add"),
        ({"value": "value = inf"}, "fp32_add: got value=inf; expected a finite number"),
        ({"value": "value = 1\nhigh = -1"}, "fp32_add: got high=-1; expected a finite number above 0"),
        ({"node_nm": "node_nm = 45\nkind = 'analog'"}, "got kind='analog'; expected one of digital, event, mesh"),
        ({"node_nm": "node_nm = 45\naverage = 1"}, "got average=1; expected true or false"),
        ({"node_nm": "node_nm = -3"}, "got node_nm=-3; expected a finite number above 0"),
        ({"node_nm": "node_nm = 45\nprecision = 'int4'"}, "got precision='int4'; expected one of fp32"),
        ({"node_nm": "node_nm = 45\naccounting = 'all'"}, "got accounting='all'; expected one of published"),
        ({"value": "value = -1"}, "fp32_add: got value=-1; expected a finite number above 0"),
        ({"value": "value = nan"}, "fp32_add: got value=nan; expected a finite number"),
        ({"value": "value = true"}, "fp32_add: got value=True"),
        ({"value": "value = 1\nlow = 2"}, "fp32_add: got low=2, value=1, high=1; expected low <= value <= high"),
        ({"value": "value = 1\nvlaue = 2"}, "fp32_add: got the field 'vlaue'"),
        ({"mark": 'mark = "mem"'}, "fp32_add: got mark 'mem'"),
        ({"name": 'title = "x"'}, "got name=None; every hardware file states name"),
        ({"node_nm": ""}, "got node_nm=None"),
        ({"voltage": "voltage = ["}, r"mine\.toml: this is not TOML"),
    ],
)
def test_wrong_files_are_refused_by_constant(chip, changes, message):
    with pytest.raises(SpikingError, match=message):
        chip(**changes)


def test_a_constant_given_twice_is_refused(tmp_path):
    block = GOOD[GOOD.index("[[constant]]") : GOOD.index("[sources]")]
    (tmp_path / "mine.toml").write_text(GOOD.replace(block, block * 2))
    with pytest.raises(SpikingError, match="fp32_add: the constant is given twice"):
        load(tmp_path / "mine.toml")


def test_a_constant_without_a_name_is_refused(tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD.replace('name = "fp32_add"', ""))
    with pytest.raises(SpikingError, match="got a constant without a name"):
        load(tmp_path / "mine.toml")


def test_unknown_chips_suggest_near_names():
    with pytest.raises(SpikingError, match=r"got 'digital-45m'; expected .* digital-45nm"):
        load("digital-45m")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(SpikingError, match=r"none\.toml: the hardware file cannot be read"):
        load(tmp_path / "none.toml")


def test_missing_constants_name_the_file(chip):
    with pytest.raises(SpikingError, match=r"mine\.toml: constant 'int8_add' is missing; the file has: fp32_add"):
        chip()["int8_add"]


SPEC = {  # values of the published tables, in the unit of the file
    "loihi": {"synop": 23.6, "neuron_idle": 52, "neuron_active": 81, "packet_out": 1.7, "hop_ew": 3.0, "hop_ns": 4.0},
    "loihi-sanafe": {"synop": 35.5, "neuron_idle": 51.2, "neuron_active": 72.8, "spike": 69.3, "packet_out": 111.0},
    "truenorth": {"synop": 2.297, "static_power": 64.43},
    "odin": {"synop": 8.43, "static_power": 27.3, "idle_cycle": 1.78},
    "seneca": {"synop": 2.8},
    "sne": {"synop": 0.221},
    "reckon": {"synop": 5.3},
    "tianjic": {"synop": 1.54},
    "neuronflow": {"synop": 20},
    "ubrain": {"synop": 26},
    "spinnaker": {"synop": 13300, "neuron_update": 26000},
    "spinnaker2": {"synop": 10, "neuron_update": 2190},
    "cpu": {"synop": 8600, "neuron_update": 8600},
    "gpu": {"synop": 300},
    "arm": {"synop": 900},
    "rram-crossbar": {"adc_8b": 1.67, "dac": 0.391, "cell_read": 1.83, "shift_add": 0.021, "read_time": 100},
    "pcm-crossbar": {"macro_mac": 190.476},
    "digital-sram": {"int32_cmp": 0.0295, "register_bit": 0.009},
    "digital-flat": {"memory_bit": 3.12},
}


@pytest.mark.parametrize("name", SPEC)
def test_chips_hold_the_published_values(name):
    chip = load(name)
    for constant, value in SPEC[name].items():
        c = chip[constant]
        assert c.value / c.factor == pytest.approx(value, rel=3e-4), constant


def test_every_chip_is_checked_against_published_values():
    assert set(SPEC) | {"digital-45nm", "loihi-sop"} == set(available())


def test_averages_and_models_say_so():
    flags = {name: load(name) for name in available()}
    assert {n for n, c in flags.items() if c.average} == {
        "seneca", "sne", "reckon", "tianjic", "neuronflow", "ubrain", "pcm-crossbar", "cpu", "gpu", "arm",
    }  # fmt: skip
    assert {n for n, c in flags.items() if c.modelled} == {"loihi", "loihi-sop", "rram-crossbar"}
    assert {n for n, c in flags.items() if not c.skips_zeros} == {"cpu", "gpu", "arm"}


def test_every_source_is_used_and_complete():
    for name in available():
        chip = load(name)
        used = {key for c in chip.constants.values() for key in (c.source, *c.bounds)}
        assert used == set(chip.sources)
        for text in chip.sources.values():
            assert re.search(r"author\s+=", text)
            assert re.search(r"year\s+=", text)
            assert text.count("{") == text.count("}")


def test_a_user_adds_a_chip_by_writing_a_file(chip):
    text = GOOD.replace("fp32_add", "synop").replace('name = "mine"', 'name = "mine"\nkind = "event"')
    path = chip().path
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    from spiking.hw_models import validation

    import spiking

    found = spiking.hw_models.estimate(validation.counted(ac=10), path)
    assert found.energy.nominal == pytest.approx(9e-12)
