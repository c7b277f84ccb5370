"""Tables of what users asked for and of what the layer works with: each row names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLES = {"asked": "## Asked, and where it is answered", "with": "# Works with"}


def rows(first_column):
    page = (ROOT / "reports/docs/works-with.md").read_text(encoding="utf-8")
    section = page.split(TABLES[first_column], 1)[1]
    return section.split(f"\n| {first_column} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]


def test_every_row_of_what_was_asked_links_to_a_thread():
    assert len(rows("asked")) >= 9
    for row in rows("asked"):
        assert re.search(r"\(https://github.com/[\w-]+/[\w-]+/issues/\d+\)", row), row


@pytest.mark.parametrize("table", TABLES)
def test_every_row_names_tests_that_are_there(table):
    assert len(rows(table)) >= 9
    for row in rows(table):
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, name in named:
            path = next(path for path in (ROOT / "tests/impl" / file, ROOT / "tests" / file) if path.exists())
            assert f"def {name}(" in path.read_text(encoding="utf-8"), (file, name)


ROWS = [
    *(
        "PEFT",
        "hooks",
        "weight_norm",
        "spectral_norm",
        "pruning",
        "quantize_dynamic",
        "FSDP2, the layer as root",
    ),
    *(
        "fully_shard(layer.head)",
        "parallelize_module",
        "DistributedDataParallel",
        "torch.func",
        "torch.export",
    ),
    *("torch.jit.trace", "torch.fx", "torch.compile", "checkpointing", "cpu_offload"),
]


@pytest.mark.parametrize("name", ROWS)
def test_the_table_of_what_it_works_with_has_a_row_for(name):
    assert any(name in row for row in rows("with"))
    for row in rows("with"):
        assert re.match(r"\| [^|]+ \| (same|better|refused)", row), row
