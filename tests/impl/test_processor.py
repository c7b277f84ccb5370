"""Processors of one name and different generations are told apart."""

import platform

import pytest

from zipfmax import processor


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (
            "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n",
            "AMD EPYC (family 25, model 1)",
        ),
        ("cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n", "AMD EPYC (family 26, model 2)"),
        ("processor\t: 0\nBogoMIPS\t: 50\n\nModel\t\t: Raspberry Pi 5\n", "Raspberry Pi 5"),
        ("model name\t: A: B\n", "A: B"),
        (None, "a box"),
    ],
)
def test_the_name_has_family_and_model_where_the_system_tells_them(cpuinfo, name, tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: "a box")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert processor.processor_name.__wrapped__() == name
