"""Static figures of the compiled kernels: how they are read, and that none got worse than the committed table.

A few kernels are compiled here, all of them in the long suite (`python -m benchmarks.static --check`).
"""

import os
import re
import shutil
import subprocess

import pytest

from benchmarks.static import __main__ as command
from benchmarks.static import cuda_kernels, occupancy, sass, table, triton_kernels

ARCH = "sm_90"
FEW = {"prototype_scores/score_kernel/default.2/bfloat16", "prune_topk/one_launch_kernel/default.0/bfloat16",
       "attention_scores/scores_kernel/default.0/bfloat16", "gather_kv/gather_kernel/default.0/float32",
       "select_topk/select_kernel/default.1/float32", "temporal_scores/temporal_kernel/default.0/bfloat16",
       "merge_tokens/merge_kernel/default.0/bfloat16"}
FEW_SOURCES = ("gather.cu", "rotate.cu")


def needs_nvcc():
    if shutil.which("nvcc") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have nvcc")
        pytest.skip("nvcc is missing")


def versions(kind):
    return command.versions() if kind == "cuda" else {
        "triton": triton_kernels.version(), "ptxas": triton_kernels.ptxas_version()}


@pytest.fixture
def no_interpreter(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def test_few_triton_kernels_are_no_worse_than_the_table(no_interpreter):
    wanted = [k for k in triton_kernels.kernels(ARCH) if k.name in FEW]
    assert {k.name for k in wanted} == FEW
    figures = triton_kernels.examined([triton_kernels.build(k, ARCH) for k in wanted], ARCH)
    now = {k.name: table.with_occupancy(f, ARCH) for k, f in zip(wanted, figures, strict=True)}
    assert table.compare("triton", now, table.load(ARCH), versions("triton")) == []


def test_few_cuda_kernels_are_no_worse_than_the_table():
    needs_nvcc()
    now = cuda_kernels.all_figures(ARCH, FEW_SOURCES, launched=False)
    assert len(now) >= 5
    assert table.compare("cuda", now, table.load(ARCH), versions("cuda")) == []


@pytest.mark.long
def test_no_kernel_is_worse_than_the_table(no_interpreter, capsys):
    needs_nvcc()
    assert command.main(["--check"]) == 0, capsys.readouterr().out


def test_the_table_holds_every_kernel_and_the_page_shows_it():
    committed = table.load(ARCH)
    assert set(committed["triton"]) == {k.name for k in triton_kernels.kernels(ARCH)}
    assert {name.split("/")[0] for name in committed["cuda"]} == {s.rsplit("/", 1)[1] for s in cuda_kernels.sources()}
    assert table.markdown(committed) in table.PAGE.read_text()
    assert table.path(ARCH).read_text() == table.dumps(committed)


def test_the_table_keeps_the_limits():
    committed = table.load(ARCH)
    assert [line for kind in table.KINDS for name, f in committed[kind].items()
            for line in table.limits(name, f, ARCH)] == []


@pytest.mark.parametrize(("registers", "shared", "warps", "blocks"), [
    (32, 0, 8, 8),         # 64 warps
    (33, 0, 8, 6),         # 40 registers a thread: 51 warps, 48 in groups of four
    (128, 0, 8, 2),        # 16 warps
    (255, 0, 4, 2),        # 8 warps
    (32, 100 * 1024, 4, 2),
    (32, 227 * 1024, 4, 1),
    (32, 0, 1, 32),        # no more than 32 blocks
    (32, 228 * 1024, 4, 0),
    (168, 49152, 8, 1),
])
def test_occupancy_by_hand(registers, shared, warps, blocks):
    assert occupancy.blocks(ARCH, registers, shared, warps) == blocks


LINES = """
        /*0000*/                   LDG.E.128 R4, [R2.64] ;
        /*0010*/                   LDG.E.U16 R4, [R2.64] ;
        /*0020*/                   LDGSTS.E.BYPASS.128 [R5], [R2.64] ;
        /*0030*/                   FFMA R1, R2, R3, R1 ;
        /*0040*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0050*/              @!P0 BRA 0x20 ;
        /*0060*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0070*/              @!PT STL [R1], R2 ;
        /*0080*/               @P1 STG.E.64 [R2.64], R4 ;
        /*0090*/                   UBLKCP.S.G [UR4], [UR6], UR8 ;
        /*00a0*/                   BRA 0xa0;
"""


def instructions(text):
    return [sass.Instruction(int(a, 16), (p or "").strip(), o, rest)
            for a, p, o, rest in (sass.INSTRUCTION.search(line).groups() for line in text.strip().splitlines())]


def test_figures_of_code_by_hand():
    assert sass.figures(instructions(LINES)) == {
        "loads": {"16": 2, "2": 1}, "stores": {"8": 1}, "bulk": 1,
        "matrix": {"HGMMA.64x128x16.F32.BF16": 1, "HMMA.16816.F32.BF16": 1}, "local": 0,
        "loop": {"bytes": 16 * 32, "flops": 2 * 16 * 8 * 16}}  # not half of the products, but the one loop there is
    plain = instructions(LINES.replace("HGMMA.64x128x16.F32.BF16", "NOP").replace("HMMA.16816.F32.BF16", "NOP"))
    assert sass.figures(plain)["loop"] == {"bytes": 16 * 32, "flops": 2 * 32}


def test_flops_of_matrix_instructions():
    assert sass.matrix_flops("HMMA.1688.F32.TF32") == 2 * 16 * 8 * 8
    assert sass.matrix_flops("HGMMA.64x64x16.F32.BF16") * 4 == 2 * 64 * 64 * 16
    with pytest.raises(ValueError, match="unknown shape F32"):
        sass.matrix_flops("HMMA.F32")


GOOD = {"warps": 8, "registers": 100, "stack": 0, "shared": 2048, "product": True, "loads": {"16": 4, "4": 1},
        "stores": {"16": 1}, "bulk": 0, "matrix": {"HGMMA.64x64x16.F32": 4}, "local": 0, "loop": {}, "blocks": 2,
        "occupancy": 0.25}


@pytest.mark.parametrize(("change", "other_compiler", "message"), [
    ({}, False, None),
    ({"registers": 99, "shared": 0}, False, None),
    ({"registers": 101}, False, "registers 101, was 100"),
    ({"registers": 101}, True, None),
    ({"shared": 2049}, False, "shared 2049, was 2048"),
    ({"stack": 8}, True, "8 bytes of stack"),
    ({"local": 1}, True, "1 accesses to local memory"),
    ({"registers": 256}, True, "do not fit"),
    ({"blocks": 0}, True, "do not fit"),
    ({"matrix": {"HMMA.16816.F32": 4}}, True, r"HGMMA is gone, now \['HMMA'\]"),
    ({"matrix": {}}, True, "its products are not on the matrix units"),
    ({"loads": {"16": 4, "4": 9}}, False, "of the bytes of its loads are in 16-byte accesses, were 94%"),
    ({"stores": {"8": 2}}, True, "0% of the bytes of its stores"),
])
def test_what_counts_as_worse(change, other_compiler, message):
    compilers = {"triton": "1", "ptxas": "1"}
    committed = {"arch": ARCH, "versions": compilers, "triton": {"kernel": GOOD}}
    found = table.compare("triton", {"kernel": {**GOOD, **change}}, committed,
                          {**compilers, "ptxas": "2"} if other_compiler else compilers)
    assert found == [] if message is None else any(re.search(message, line) for line in found), found


def test_a_kernel_that_is_not_in_the_table_is_refused():
    committed = {"arch": ARCH, "versions": {"nvcc": "1"}, "cuda": {}}
    (line,) = table.compare("cuda", {"new": {**GOOD}}, committed, {"nvcc": "1"})
    assert "not in the table" in line


def test_local_memory_of_a_real_kernel_is_seen(tmp_path):
    needs_nvcc()
    source = tmp_path / "local.cu"
    source.write_text("__global__ void kernel(const int* p, int* q) {\n  int r[64] = {};\n"
                      "  for (int i = 0; i < 64; ++i) r[p[i] & 63] += i;\n  q[0] = r[p[64] & 63];\n}\n")
    target = tmp_path / "local.o"
    subprocess.run(["nvcc", "-arch=sm_90", "-c", str(source), "-o", str(target)], check=True)
    (figures,) = cuda_kernels._examine(target, ARCH).values()
    assert figures["local"]
    assert "local memory" in table.limits("kernel", figures, ARCH)[0]
