"""Mutants of the CPU kernels that select, and of their registration."""

from .mutant import Mutant, drawn, files

ROWS, BUDGET, MATCH = (f"csrc/cpu/select/{name}.cpp" for name in ("select_rows", "budget", "match"))
DIVERSE = "csrc/cpu/select/diverse.cpp"
TOPK, SEGMENTS = "csrc/torch/cpu/select.cpp", "csrc/torch/cpu/select_segments.cpp"
MASKED = drawn("select_topk", "select_topk_varlen", "select_quota") + files("select_topk")
QUOTA = drawn("select_quota") + files("select_segments")
VARLEN = drawn("select_topk_varlen") + files("select_segments")
RAGGED = drawn("select_threshold", "select_top_p") + files("select_ragged")
SPLIT = drawn("allocate_budget") + files("select_ragged")

MUTANTS = (
    Mutant("a protected token is not excluded", ROWS,
           "masks.excluded.at(i) ? kExcluded : masks.protected_tokens.at(i) ? kProtected : kOrdinary",
           "masks.protected_tokens.at(i) ? kProtected : masks.excluded.at(i) ? kExcluded : kOrdinary", MASKED),
    Mutant("protected tokens come last", ROWS, "{kProtected, kOrdinary}", "{kOrdinary, kProtected}", MASKED),
    Mutant("swapped tie of equal scores", ROWS, "a.place < b.place", "a.place > b.place", MASKED),
    Mutant("dropped protect mask in the order", ROWS, "[&](const Entry& entry) { return first.at(entry.place); }",
           "[](const Entry&) { return false; }", MASKED),
    Mutant("what the quotas took is forgotten", ROWS, "k - left.taken()", "k", QUOTA),
    Mutant("a segment without its last token", ROWS, "left.take(bounds[s - 1], bounds[s], quota)",
           "left.take(bounds[s - 1], bounds[s] - 1, quota)", QUOTA),
    Mutant("a score equal to the threshold is kept", ROWS, "{selection_key(threshold, row.largest), 0}",
           "{selection_key(threshold, row.largest), 1}", RAGGED),
    Mutant("no least number behind a threshold", ROWS, "if (count >= min_keep) return count;", "return count;", RAGGED),
    Mutant("a share rounded down", ROWS, "(need + each - 1) / each", "need / each", RAGGED),
    Mutant("no least number behind a share", ROWS, "if (above + cut.equal >= min_keep) return", "return", RAGGED),
    Mutant("the digit's weight is kept", ROWS, "need -= buckets[bucket].weight;", "", RAGGED),
    Mutant("smallest remainder first", BUDGET, "remainders.emplace_back(-(product % whole), i);",
           "remainders.emplace_back(product % whole, i);", SPLIT),
    Mutant("a full segment is full once more", BUDGET, "if (shares[i] <= room[i]) return false;",
           "if (shares[i] < room[i]) return false;", SPLIT),
    Mutant("missing clamp of a capacity", BUDGET, "std::max(0, capacity[i * capacity_stride])",
           "capacity[i * capacity_stride]", SPLIT),
    Mutant("more than there is room for", BUDGET, "rest = std::min(rest, space);", "", SPLIT),
    Mutant("stale total after a full segment", BUDGET, "rest -= filled;", "", SPLIT),
    Mutant("wrong target of a source", MATCH, "first + nearest[picked[j]] * p.stride", "first + nearest[picked[j]]",
           drawn("match_bipartite") + files("cluster")),
    Mutant("leading tokens are merged", MATCH, "for (int64_t i = p.guarded; i < p.n; ++i) {",
           "for (int64_t i = 0; i < p.n; ++i) {", drawn("match_bipartite") + files("cluster")),
    Mutant("the wrong side of a tie with no gain", DIVERSE, "if (!(gain[j] > 0)) break;", "if (gain[j] < 0) break;",
           drawn("select_diverse") + files("select_diverse")),
    Mutant("a seed twice", DIVERSE, "seed >= p.tokens || seen[seed]", "seed >= p.tokens",
           drawn("select_diverse") + files("select_diverse")),
    Mutant("a picked token stays a candidate", DIVERSE, "value[order[s]] = kPicked;", "",
           drawn("select_diverse") + files("select_diverse")),
    Mutant("a negative count", TOPK, "std::clamp<int64_t>(Ints(*p.ks)[b], 0, p.k)",
           "std::min<int64_t>(Ints(*p.ks)[b], p.k)", drawn("select_topk") + files("select_topk")),
    Mutant("padding is left as it was", TOPK, "for (int64_t j = k; j < p.k; ++j) indices.store(at + j, -1);", "",
           drawn("select_topk") + files("select_topk")),
    Mutant("a late start is not reported", SEGMENTS, " || p.bounds[0] != 0", "", VARLEN),
    Mutant("the mask of the first segment", SEGMENTS, "p.excluded.row(0, first)", "p.excluded.row(0)", VARLEN),
    Mutant("a count beyond its segment", SEGMENTS, "std::clamp<int64_t>(asked, 0, p.bounds[i + 1] - p.bounds[i])",
           "std::max<int64_t>(asked, 0)", VARLEN),
    Mutant("truncation is not reported", SEGMENTS, "return p.status | (at > p.total_out ? kTruncated : 0);",
           "return p.status;", VARLEN),
    Mutant("indices of the segment, not of the row", SEGMENTS, "indices.store(at + j, p.bounds[i] + from[j]);",
           "indices.store(at + j, from[j]);", VARLEN),
)
