"""Mutants of the CPU kernels that move, merge and quantise tokens, and of the fused ones."""

from .mutant import Mutant, drawn, files

GATHER, PAGED, MERGE, POOL = (f"csrc/cpu/compact/{name}.cpp" for name in ("gather", "paged", "merge", "pool"))
MERGE_GROUP, ROTATE, QUANTIZE = (f"csrc/cpu/compact/{name}_kernel.inl" for name in ("merge", "rotate", "quantize"))
PRUNE = "csrc/torch/cpu/prune.cpp"
MOVES = drawn("gather_tokens", "gather_kv") + files("gather")
IN_PLACE = drawn("gather_kv_inplace") + files("gather")
PAGES = drawn("compact_kv_paged") + files("paged")
MERGES = drawn("merge_tokens") + files("merge")
POOLS = drawn("pool_span") + files("pool")
TURNS = drawn("rotate_keys") + files("rotate_keys")
CODES = drawn("quantize_kv") + files("quantize")
DENSE = drawn("prune_topk") + files("prune_topk")
PACKED = drawn("prune_topk_varlen") + files("prune_topk_varlen")

PAST_32_BITS = ("tests/test_long.py", "-m", "long", "-k", "past_32")

MUTANTS = (
    Mutant("bound of an index + 1", GATHER, "if (token < 0 || token >= tokens) {", "if (token < 0 || token > tokens) {",
           MOVES + files("guarded")),
    Mutant("a bad row is left as it was", GATHER, "memset(dst + j * c.dst_token, 0, row);", "", MOVES),
    Mutant("a bad index is not reported", GATHER,
           "memset(dst + j * c.dst_token, 0, row);\n          bad.store(true, std::memory_order_relaxed);",
           "memset(dst + j * c.dst_token, 0, row);", MOVES),
    Mutant("a part begins at the first row", GATHER, "int64_t j = begin % kept;", "int64_t j = 0;", MOVES),
    Mutant("a row that was overwritten is read", GATHER, "if (token < j || token >= tokens) {",
           "if (token < 0 || token >= tokens) {", IN_PLACE),
    Mutant("an offset of 32 bits", GATHER, "src + token * c.src_token, row);",
           "src + static_cast<int32_t>(token * c.src_token), row);", PAST_32_BITS),
    Mutant("one page too many", PAGED, "{ return (tokens + block_size - 1) / block_size; }",
           "{ return tokens / block_size + 1; }", PAGES),
    Mutant("a token twice", PAGED, "if (position <= before ||", "if (position < before ||", PAGES),
    Mutant("a token behind the last", PAGED, "position >= k.suffix) flags", "position > k.suffix) flags", PAGES),
    Mutant("bound of a page + 1", PAGED,
           "if (page < 0 || page >= p.blocks) {\n      flags |= kBadPage;\n    } else if (!p.allow_shared",
           "if (page < 0 || page > p.blocks) {\n      flags |= kBadPage;\n    } else if (!p.allow_shared",
           PAGES + files("guarded")),
    Mutant("a page of two rows is changed", PAGED, "claims.readers[page] > 1", "claims.readers[page] > 2", PAGES),
    Mutant("a new page for two rows", PAGED, "claims.writers[page] > 1", "claims.writers[page] > 2", PAGES),
    Mutant("a bad length is not reported", PAGED, "if (held != p.lengths[b]) flags |= kBadSeqlens;", "", PAGES),
    Mutant("the wrong page", PAGED, "slot(p.table, position), slot(target, j), p.block_size",
           "slot(p.table, position), slot(p.table, j), p.block_size", PAGES),
    Mutant("a page that is not free is given away", PAGED, "done && unused + i < live", "unused + i < live", PAGES),
    Mutant("stale length of a refused row", PAGED, "done ? count : in_place ? p.lengths[b] : 0", "done ? count : 0",
           PAGES),
    Mutant("runs over the end of a page", PAGED, "source % block_size != 0 &&", "", PAGES),
    Mutant("no group is a bad group", MERGE, "bad |= !valid && g != -1;", "bad |= !valid;", MERGES),
    Mutant("a weight of zero counts", MERGE, "valid && weight != 0 ? g : -1", "valid ? g : -1", MERGES),
    Mutant("the number of members for their weight", MERGE_GROUP, "sum[i] /= g.size;",
           "sum[i] /= static_cast<float>(g.count);", MERGES),
    Mutant("one member is summed", MERGE_GROUP, "if (p.mean && g.count == 1) {", "if (g.count < 0) {", MERGES),
    Mutant("the window behind the last row", POOL, "rows = std::min(p.window_rows, p.rows - y);",
           "rows = p.window_rows;", POOLS),
    Mutant("wrong span behind the windows", POOL, "token = row - windows + length;",
           "token = row - windows + length - 1;", POOLS),
    Mutant("the wrong sense of rotation", ROTATE, "row[2 * i + 1] = y * cosine[i] + x * sine[i];",
           "row[2 * i + 1] = y * cosine[i] - x * sine[i];", TURNS),
    Mutant("what does not turn is rounded", ROTATE, "if (angle[i] != 0.0) continue;", "if (angle[i] == 0.0) continue;",
           TURNS),
    Mutant("the last element that stays", ROTATE, "for (int64_t i = turning; i < p.width; ++i) keep(i);",
           "for (int64_t i = turning; i + 1 < p.width; ++i) keep(i);", TURNS),
    Mutant("bound of a token + 1", QUANTIZE, "return t >= 0 && t < p.tokens ? t : -1;",
           "return t >= 0 && t <= p.tokens ? t : -1;", CODES + files("guarded")),
    Mutant("the lower level", QUANTIZE, "static_cast<int32_t>(t + 0.5f)", "static_cast<int32_t>(t)", CODES),
    Mutant("an infinity is forgotten", QUANTIZE, "poison[i] += value * 0.0f;", "", CODES),
    Mutant("garbage behind the last level", QUANTIZE, "memset(levels, 0, padded * sizeof(uint32_t));", "", CODES,
           "fresh memory is mostly zero; only a sanitizer for uninitialised reads would see it"),
    Mutant("wrong span", PRUNE, "start = std::clamp<int64_t>(asked, 0, n - p.span);",
           "start = std::clamp<int64_t>(asked, 0, n);", DENSE + files("guarded")),
    Mutant("a bad span is not reported", PRUNE, "if (start != asked) p.status |= kBadSpan;", "", DENSE),
    Mutant("a span into the next sequence", PRUNE, "std::clamp<int64_t>(asked_length, 0, length - start)",
           "std::clamp<int64_t>(asked_length, 0, length)", PACKED),
    Mutant("truncated when just full", PRUNE, "if (out > total_out) p.status |= kTruncated;",
           "if (out >= total_out) p.status |= kTruncated;", PACKED),
    Mutant("scores outside of the spans", PRUNE,
           "std::fill_n(reinterpret_cast<float*>(scores.mutable_data()), p.tokens, NAN);", "", PACKED),
    Mutant("padding of the indices", PRUNE,
           "for (int64_t i = p.cu_out.back(); i < total_out; ++i) indices.store(i, -1);", "", PACKED),
)
