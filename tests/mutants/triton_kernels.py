"""Mutants of the Triton kernels, for the interpreter."""

from .mutant import Mutant

TOPK, GATHER, MERGE = (f"vtkernels/{op}/triton.py" for op in ("select/select_topk", "compact/gather_tokens",
                                                              "compact/merge_tokens"))
SELECT = ("tests/interpreted/test_fuzz.py", "tests/interpreted/test_select.py")
MOVE = ("tests/interpreted/test_gather.py", "tests/test_triton_interpreter.py", "-k", "gather")
SUM = ("tests/interpreted/test_merge.py",)

MUTANTS = (
    Mutant("a tie behind the end", TOPK, "tied = (key == cut) & (place < n)", "tied = key == cut", SELECT,
           "there are as many ties before the end as are wanted, and they are counted from the front"),
    Mutant("a tie too few", TOPK, "(tied & (tied_seen <= ties))", "(tied & (tied_seen < ties))", SELECT),
    Mutant("protected tokens as many as wanted", TOPK, "level = tl.where(wanted <= protected, 2, 1)",
           "level = tl.where(wanted < protected, 2, 1)", SELECT,
           "with as many protected tokens as are wanted, none of level 1 is wanted: the cut above all is the same set"),
    Mutant("two zeros", TOPK, "bits = (score + 0.0).to(tl.int32, bitcast=True)",
           "bits = score.to(tl.int32, bitcast=True)", SELECT),
    Mutant("NaN by its bits", TOPK, "return tl.where(score != score, LOWEST, key)", "return key", SELECT),
    Mutant("swapped tie", TOPK, "(other[None, :] < mine[:, None])", "(other[None, :] > mine[:, None])", SELECT),
    Mutant("dropped exclude mask", TOPK, "level = tl.where(excluded != 0, 0, level)",
           "level = tl.where(excluded != 0, 1, level)", SELECT),
    Mutant("missing clamp of a count", TOPK,
           "count = tl.minimum(tl.maximum(tl.load(ks + row * ks_stride).to(tl.int64), 0), k)",
           "count = tl.minimum(tl.load(ks + row * ks_stride).to(tl.int64), k)", SELECT),
    Mutant("stale padding", TOPK,
           "    if (ks is not None) | (excluded is not None):\n        fill(out, count, k, BLOCK)\n", "", SELECT),
    Mutant("a mask without its row", TOPK, "masks = (protected, row * protected_batch, protected_stride, excluded, row",
           "masks = (protected, offset, protected_stride, excluded, row", SELECT),
    Mutant("bound of an index + 1", GATHER, "found = (index >= 0) & (index < tokens)",
           "found = (index >= 0) & (index <= tokens)", MOVE),
    Mutant("a negative index", GATHER, "found = (index >= 0) & (index < tokens)", "found = index < tokens", MOVE),
    Mutant("another byte for a bad row", GATHER, "mask=found[:, None] & inside, other=0)",
           "mask=found[:, None] & inside, other=1)", MOVE),
    Mutant("mask + 1", GATHER, "(lane < width * LANES)[None, :]", "(lane <= width * LANES)[None, :]", MOVE),
    Mutant("indices that are not there are reported", GATHER, "(in_range & (found == 0)).to(tl.int32)",
           "(found == 0).to(tl.int32)", MOVE),
    Mutant("a row that was overwritten is read", GATHER, "        found = found & (index >= row)\n",
           "        found = found & (index >= 0)\n", MOVE),
)
