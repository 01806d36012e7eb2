"""Mutants of the CPU kernels that score."""

from .mutant import Mutant, files

SHORTLIST, SCORES = "csrc/cpu/score/shortlist.inl", "csrc/cpu/score/score_kernel.inl"
TESTS = files("shortlist")

MUTANTS = (
    Mutant("hardly any slack", SHORTLIST, "row.slack = 2.002f * (", "row.slack = 0.002f * (", TESTS),
    Mutant("no loss by rounding", SHORTLIST, "error[h] += lost * lost;", "", TESTS),
    Mutant("a full list is cut", SHORTLIST, "if (row.size == most_) row.size = kTooMany;",
           "if (row.size == most_) return;", TESTS),
    Mutant("low entries stay", SHORTLIST, "if (row.size == most_) drop(r);", "", TESTS),
    Mutant("bounds of any prototype", SHORTLIST, "usable_ && is_normal(square, 0x1p-120f) && std::isfinite(scale)",
           "usable_", TESTS),
    Mutant("the highest of equal prototypes", SHORTLIST, "if (key > best.key) best",
           "if (key >= best.key) best", TESTS),
    Mutant("rows that are left stay unwritten", SCORES, "left_->push_back(row_segment(r));", "", TESTS),
    Mutant("the norms of one panel for all", SCORES, "errors_ + r * V::kWidth, dots, rnorm + at, at,",
           "errors_ + r * V::kWidth, dots, rnorm, at,", TESTS),
)
