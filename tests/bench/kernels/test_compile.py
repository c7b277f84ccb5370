"""Every variant of the tile table compiles without a GPU, and the check that says so can fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("triton")

from zipfmax.backends.triton import tiles
from zipfmax.command import application
from zipfmax.errors import UsageError
from zipfmax_bench.kernels import compile as compiler
from zipfmax_bench.kernels import disassembly
from zipfmax_bench.kernels.variants import RecordedLaunch, variants

# Compiling takes seconds a kernel: `make kernels` runs what is left out here.
further = pytest.mark.skipif(
    os.environ.get("ZIPFMAX_KERNEL_TESTS") != "all", reason="`make kernels` compiles for every architecture"
)


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def one(target: str, kernel: str, *words: str) -> RecordedLaunch:
    """The first variant of a kernel that has all these words in its name."""
    found = [v for v in variants(target) if v.name == kernel and {*words} <= {*v.variant.split()}]
    return found[0]


@pytest.mark.parametrize(
    ("target", "instruction"),
    [
        ("sm_90", "wgmma"),
        *(
            pytest.param(*pair, marks=further)
            for pair in (("sm_80", "mma.sync"), ("sm_100", "tcgen05"), ("gfx942", "mfma"))
        ),
    ],
)
def test_every_target_multiplies_on_its_own_tensor_cores(target: str, instruction: str) -> None:
    found = compiler.build(one(target, "tail_forward_kernel", "bf16", "MODE=1", "K=32"), target)
    assert found.tensor_cores == instruction
    assert found.faults() == []
    assert found.resources.registers > 16
    assert found.shared_bytes > 0
    assert (found.loop is not None) == (target == "sm_90")


def run(monkeypatch: pytest.MonkeyPatch, target: str, launch: RecordedLaunch) -> tuple[int, str]:
    """Exit status and output of `zipfmax compile` where the table holds this variant alone."""
    monkeypatch.setattr(compiler, "variants", lambda target, quick: [launch])
    done = CliRunner().invoke(application("compile"), ["--target", target])
    return done.exit_code, done.output


def planted(target: str, kernel: str, tile: dict[str, int], *words: str) -> RecordedLaunch:
    """A variant with a tile that the table does not have."""
    with tiles.overridden("forward" if kernel == "tail_forward_kernel" else "backward", tile):
        return one(target, kernel, *words)


def test_a_sound_variant_is_shown_with_status_0(monkeypatch: pytest.MonkeyPatch) -> None:
    status, shown = run(monkeypatch, "sm_80", one("sm_80", "tail_combine_kernel", "bf16", "K=16"))
    assert status == 0
    assert shown.startswith("sm_80 tail_combine_kernel [bf16 ")
    assert "1 variants, 0 at fault" in shown


def test_a_planted_tile_that_spills_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    tile = {"BM": 128, "BN": 64, "BK": 256, "PER_SM": 1, "num_warps": 4, "num_stages": 2}
    launch = planted("sm_80", "tail_forward_kernel", tile, "bf16", "MODE=1", "K=256")
    status, shown = run(monkeypatch, "sm_80", launch)
    assert status == 1
    assert "FAULT sm_80 tail_forward_kernel" in shown
    assert "spills" in shown.splitlines()[-1]


@further
def test_a_planted_tile_that_spills_on_amd_is_a_fault() -> None:
    tile = {"BV": 128, "BM": 128, "BK": 64, "num_warps": 8, "num_stages": 2}
    launch = planted("gfx942", "tail_weight_gradient_kernel", tile, "bf16", "K=64")
    (fault,) = compiler.build(launch, "gfx942").faults()
    assert fault.startswith("spills ")


def sass(*instructions: str) -> str:
    """A loop of 400 instructions after one of these, and before the rest."""
    first, *rest = (f"        /*0000*/                   {name} ;" for name in instructions)
    body = ["        /*0010*/                   FADD R1, R1, R2 ;"] * 399
    return "\n".join([first, ".L_x_1:", *body, "        /*0020*/               @P0 BRA `(.L_x_1) ;", *rest])


def test_a_spill_outside_of_loops_is_shown_but_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = sass("STL [R1], R6", "LDL R6, [R1]")
    inside = outside.replace("FADD R1, R1, R2", "LDL R6, [R1]", 3)
    shares = []
    for code in (outside, inside):
        monkeypatch.setattr(
            disassembly, "_read", lambda tool, *_, c=code: "REG:255 STACK:8" if "cuobj" in tool else c
        )
        found, _ = disassembly.of_cubin(b"", False)
        shares.append((found.spill_bytes, found.loop_spills))
    assert shares == [(8, 0.0), (20, pytest.approx(3 / 400))]


@further
def test_a_planted_tile_beyond_shared_memory_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    tile = {"BM": 64, "BN": 64, "BK": 256, "PER_SM": 1, "num_warps": 4, "num_stages": 4}
    launch = planted("gfx942", "tail_forward_kernel", tile, "bf16", "MODE=0", "K=256")
    status, shown = run(monkeypatch, "gfx942", launch)
    assert status == 1
    assert "bytes of shared memory, has 65536" in shown


@further
def test_a_product_without_tensor_cores_is_a_fault() -> None:
    launch = one("sm_80", "project_kernel", "fp32", "WIDTH=16")
    scalar = tuple(
        (name, ("constant", "ieee") if name == "PRECISION" else described)
        for name, described in launch.arguments
    )
    found = compiler.build(replace(launch, arguments=scalar), "sm_80")
    assert found.faults() == ["has a product without tensor-core instructions"]


def listed(target: str) -> Iterator[tuple[str, str, int, dict[str, int]]]:
    """(dtype class, kernel, width, tile) of every entry of the table."""
    for dtype, kernels in tiles.table()[target].items():
        for kernel, entries in kernels.items():
            for width, tile in entries.items():
                yield dtype, kernel, int(width), tile


@pytest.mark.parametrize(
    "target", ["sm_90", *(pytest.param(t, marks=further) for t in compiler.TARGETS if t != "sm_90")]
)
def test_every_tile_of_the_table_is_compiled(target: str) -> None:
    compiled = set()
    for launch in variants(target):
        constants = {n: d[1] for n, d in launch.arguments if d[0] == "constant"}
        # Of a constant with one item a tail, the item where a launch has one tail.
        told: dict[str, Any] = {
            n: v[0] if isinstance(v, tuple) and len(v) == 1 else v for n, v in constants.items()
        }
        tile = tuple(
            sorted(
                {
                    **{n: told[n] for n in ("BM", "BN", "BV", "BK") if n in told},
                    **dict(launch.options),
                }.items()
            )
        )
        compiled.add((launch.name, launch.variant.split()[0], told.get("WIDTH"), tile))
    entries = list(listed(target))
    assert len(entries) > 20
    for dtype, kernel, width, entry in entries:
        name = {"forward": "tail_forward_kernel", "backward": "tail_weight_gradient_kernel"}[kernel]
        tile = tuple(sorted((n, v) for n, v in entry.items() if n != "PER_SM"))
        for short in ("bf16", "fp16") if dtype == "half" else ("fp32",):
            assert (name, short, width, tile) in compiled


def test_the_quick_variants_are_some_of_all() -> None:
    quick, every = variants("sm_90", quick=True), variants("sm_90")
    assert len(every) == len(set(every))
    assert {*quick} < {*every}


@further
def test_highest_is_three_tf32_products_for_one() -> None:
    counts = {}
    for precision in ("tf32", "tf32x3"):
        launch = one("sm_80", "project_kernel", "fp32", "WIDTH=32", f"PRECISION={precision}")
        counts[precision] = compiler.compiled(launch, "sm_80").asm["ptx"].count("mma.sync.aligned.m16n8k8")
    assert counts["tf32x3"] == 3 * counts["tf32"] > 0


def test_a_loop_is_counted_for_each_exponential() -> None:
    loop = [
        ".L_x_1:",
        "        /*0100*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4] ;",
        "        /*0110*/                   FFMA R3, R24, R5, -R6 ;",
        "        /*0120*/                   MUFU.EX2 R3, R3 ;",
        "        /*0130*/                   FADD R7, R7, R3 ;",
        "        /*0140*/                   MUFU.EX2 R4, R4 ;",
        "        /*0150*/               @P0 BRA `(.L_x_1) ;",
    ]
    before = ["        /*00f0*/                   FADD R1, R1, R2 ;"]
    found = disassembly.inner_loop("\n".join(before + loop))
    assert found is not None
    assert found["exponential"] == 1
    assert found["floating point"] == 1
    assert found["tensor core"] == 0.5
    assert found["all"] == 3
    assert disassembly.inner_loop("\n".join(before)) is None


def test_a_target_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="sm_80, sm_90, sm_100, gfx942"):
        list(compiler.compile_all(["sm_70"]))


def test_the_interpreter_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UsageError, match="TRITON_INTERPRET"):
        list(compiler.compile_all(["sm_80"]))
