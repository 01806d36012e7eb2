// prune_topk and prune_topk_varlen as torch ops on the CPU.
#include "prune.h"

#include <cmath>

namespace vtkernels {
namespace {

const Tensors kNoCaches;

// `indices` and `scores` are [batch, ..] for a dense call and [..] for a packed one, which is a batch of one.
void run_prune(ScoreProblem problem, const Tensor& hidden, const std::vector<Row>& rows, bool packed, const Tensors& kv,
               bool keep_similar, bool heads_first, const PruneOutputs& out, int64_t total_out) {
  const View x(hidden), oi(out.indices), os(out.scores), oh(out.hidden);
  const int64_t count = static_cast<int64_t>(rows.size());
  const int64_t index_stride = packed ? 0 : oi.strides[0], score_stride = packed ? 0 : os.strides[0];
  auto* scores = reinterpret_cast<float*>(os.mutable_data());
  std::vector<Segment> segments(count);
  int64_t longest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Row& r = rows[i];
    const int64_t first = r.begin + r.span_start;
    segments[i] = {first, packed ? 0 : i * x.strides[0], r.span_length, packed ? first : i * score_stride};
    longest = std::max(longest, r.span_length);
  }
  problem.scores = scores;
  const Parallel parallel = torch_pool();
  cpu::prototype_scores(parallel, problem, segments.data(), count);

  const IndexOut indices = index_out(out.indices);
  parallel(count, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, longest)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Row& r = rows[i];
      const int64_t at = i * index_stride, limit = at + (packed ? total_out : r.out + r.length);
      const int64_t first = r.begin + r.span_start;
      int64_t j = at + r.out;
      for (int64_t t = 0; t < r.span_start && j < limit; ++t) indices.store(j++, r.begin + t);
      if (j + r.keep <= limit) {
        cpu::select_row(scores + segments[i].scores, 1, r.span_length, r.keep, keep_similar, first, indices, j);
      } else if (j < limit) {  // only the leading part of this selection fits
        std::vector<int64_t> all(r.keep);
        cpu::select_row(scores + segments[i].scores, 1, r.span_length, r.keep, keep_similar, first, {all.data(), true},
                        0);
        for (int64_t t = 0; j + t < limit; ++t) indices.store(j + t, all[t]);
      }
      j += r.keep;
      for (int64_t t = r.span_start + r.span_length; t < r.length && j < limit; ++t) indices.store(j++, r.begin + t);
    }
  });

  const int64_t size = x.element(), d = x.dims - 1, n = x.dims - 2;
  std::vector<RowCopy> copies;
  copies.reserve(kv.size() + 1);
  copies.push_back({x.data(), oh.mutable_data(), 1, x.sizes[d], size, x.sizes[d] > 1 ? x.strides[d] * size : size,
                    packed ? 0 : x.strides[0] * size, 0, x.strides[n] * size, packed ? 0 : oh.strides[0] * size, 0,
                    oh.strides[n] * size});
  for (size_t i = 0; i < kv.size(); ++i) copies.push_back(kv_rows(View(kv[i]), View(out.kv[i]), heads_first, packed));
  const Indices idx{indices.data, indices.wide, index_stride, 1};
  cpu::gather_rows(parallel, copies, idx, packed ? 1 : x.sizes[0], oi.sizes[oi.dims - 1], x.sizes[n]);
}

struct DensePrune {
  ScoreProblem problem;
  std::vector<Row> rows;
  int64_t batch, kept, span, dim;
  int32_t status;
};

DensePrune check_prune(const char* op, const Tensor& hidden, const Tensor& prototypes, int64_t k, const Tensors& kv,
                       int64_t span_start, int64_t span_len, const std::optional<Tensor>& span_starts,
                       const std::optional<Tensor>& rnorm, const std::string& layout) {
  const View x(hidden);
  check_rank(op, "hidden", x, 3, "a 3-D tensor [B, N, D]");
  DensePrune p{score_problem(op, "hidden", hidden, prototypes, rnorm), {}, x.sizes[0], 0, span_len, 0, 0};
  const int64_t n = x.sizes[1];
  const int32_t* starts = nullptr;
  int64_t starts_stride = 0;
  if (span_starts.has_value()) {
    check_vector(op, "span_starts", *span_starts, p.batch, aoti_torch_dtype_int32(), "B", cpu_type());
    VTK_CHECK(span_len >= 0 && span_len <= n, op, "span_len", span_len,
              "0 to " + std::to_string(n) + " (with span_starts the span length is explicit, at most N)");
    const View s(*span_starts);
    starts = reinterpret_cast<const int32_t*>(s.data());
    starts_stride = s.strides[0];
  } else {
    VTK_CHECK(span_start >= 0 && span_start <= n, op, "span_start", span_start,
              "0 to " + std::to_string(n) + " (the row has N tokens)");
    p.span = span_len == -1 ? n - span_start : span_len;
    VTK_CHECK(p.span >= 0 && p.span <= n - span_start, op, "span_len", span_len,
              "0 to " + std::to_string(n - span_start) + " (-1, or at most N - span_start)");
  }
  VTK_CHECK(k >= 0 && k <= p.span, op, "k", k, "0 to " + std::to_string(p.span) + " (the length of the span)");
  p.dim = token_dim(op, layout);
  check_kv(op, kv, p.dim, p.batch, n, false);
  p.kept = n - p.span + k;
  for (int64_t b = 0; b < p.batch; ++b) {
    int64_t start = span_start;
    if (starts != nullptr) {
      const int64_t asked = starts[b * starts_stride];
      start = std::clamp<int64_t>(asked, 0, n - p.span);
      if (start != asked) p.status |= kBadSpan;
    }
    p.rows.push_back({0, n, start, p.span, k, 0});
  }
  return p;
}

std::tuple<Tensor, Tensors, Tensor, Tensor> prune_topk(const Tensor& hidden, const Tensor& prototypes, int64_t k,
                                                       const std::optional<Tensors>& kv, bool keep_similar,
                                                       int64_t span_start, int64_t span_len,
                                                       const std::optional<Tensor>& span_starts,
                                                       const std::optional<Tensor>& rnorm, const std::string& layout) {
  const Tensors& caches = kv.has_value() ? *kv : kNoCaches;
  const DensePrune p =
      check_prune("prune_topk", hidden, prototypes, k, caches, span_start, span_len, span_starts, rnorm, layout);
  const View x(hidden);
  Tensor out_hidden = empty_cpu({p.batch, p.kept, x.sizes[2]}, x.dtype);
  Tensors out_kv = empty_kv(caches, p.dim, p.kept);
  Tensor indices = empty_cpu({p.batch, p.kept}, aoti_torch_dtype_int64());
  Tensor scores = empty_cpu({p.batch, p.span}, aoti_torch_dtype_float32());
  run_prune(p.problem, hidden, p.rows, false, caches, keep_similar, p.dim == 2, {out_hidden, out_kv, indices, scores},
            p.kept);
  return {std::move(out_hidden), std::move(out_kv), std::move(indices), std::move(scores)};
}

}  // namespace

void check_workspace(const char* op, const std::optional<Tensor>& workspace, int64_t batch) {
  if (!workspace.has_value()) return;
  check_device(op, "workspace", *workspace, cpu_type());
  const View w(*workspace);
  const int64_t words = 64 + 8 * batch;
  VTK_CHECK(w.dtype == aoti_torch_dtype_int32() && w.dims == 1 && w.sizes[0] >= words, op, "workspace",
            std::string(dtype_name(w.dtype)) + " of shape " + text(w.shape()),
            "a zeroed int32 vector of at least " + std::to_string(words) + " words");
}

namespace {

void prune_topk_out(const Tensor& hidden, const Tensor& prototypes, int64_t k, const std::optional<Tensors>& kv,
                    bool keep_similar, int64_t span_start, int64_t span_len, const std::optional<Tensor>& span_starts,
                    const std::optional<Tensor>& rnorm, const std::string& layout, const Tensor& out_hidden,
                    const Tensors& out_kv, const Tensor& out_indices, const Tensor& out_scores,
                    const std::optional<Tensor>& workspace, const std::optional<Tensor>& status) {
  const char* op = "prune_topk.out";
  const Tensors& caches = kv.has_value() ? *kv : kNoCaches;
  const DensePrune p = check_prune(op, hidden, prototypes, k, caches, span_start, span_len, span_starts, rnorm, layout);
  const View x(hidden);
  check_output(op, "out_hidden", out_hidden, {p.batch, p.kept, x.sizes[2]}, x.dtype, false, cpu_type());
  check_outputs(op, "out_kv", out_kv, caches, std::vector<int64_t>(caches.size(), p.dim), p.kept);
  check_output(op, "out_indices", out_indices, {p.batch, p.kept}, aoti_torch_dtype_int64(), true, cpu_type());
  check_output(op, "out_scores", out_scores, {p.batch, p.span}, aoti_torch_dtype_float32(), false, cpu_type());
  check_workspace(op, workspace, p.batch);
  check_status(op, status);
  run_prune(p.problem, hidden, p.rows, false, caches, keep_similar, p.dim == 2,
            {out_hidden, out_kv, out_indices, out_scores}, p.kept);
  set_status(status, p.status);
}

struct Ints {
  explicit Ints(const Tensor& t) : data(reinterpret_cast<const int32_t*>(View(t).data())), stride(View(t).strides[0]) {}
  int64_t operator[](int64_t i) const { return data[i * stride]; }
  const int32_t* data;
  int64_t stride;
};

}  // namespace

PackedPrune check_varlen(const char* op, const Tensor& hidden, const Tensor& prototypes, const Tensor& cu_seqlens,
                         const Tensor& k, int64_t total_out, const Tensors& kv,
                         const std::optional<Tensor>& span_starts, const std::optional<Tensor>& span_lens,
                         const std::optional<Tensor>& rnorm, const std::string& layout) {
  const View x(hidden), counts(k);
  check_rank(op, "hidden", x, 2, "a 2-D tensor [T, D]");
  PackedPrune p{score_problem(op, "hidden", hidden, prototypes, rnorm), {}, {0}, x.sizes[0], 0, 0};
  const int32_t int32 = aoti_torch_dtype_int32();
  check_rank(op, "k", counts, 1, "a 1-D tensor [B]");
  const int64_t batch = counts.sizes[0];
  check_vector(op, "k", k, batch, int32, "B", cpu_type());
  check_vector(op, "cu_seqlens", cu_seqlens, batch + 1, int32, "B + 1", cpu_type());
  VTK_CHECK(span_starts.has_value() == span_lens.has_value(), op, "span_starts, span_lens", "only one of them",
            "both, or neither (whole sequences)");
  if (span_starts.has_value()) {
    check_vector(op, "span_starts", *span_starts, batch, int32, "B", cpu_type());
    check_vector(op, "span_lens", *span_lens, batch, int32, "B", cpu_type());
  }
  VTK_CHECK(total_out >= 0 && total_out <= p.tokens, op, "total_out", total_out,
            "0 to " + std::to_string(p.tokens) + " (at most the T packed tokens)");
  p.dim = token_dim(op, layout) - 1;
  check_kv(op, kv, p.dim, 1, p.tokens, true);

  const Ints bounds(cu_seqlens), wanted(k);
  int64_t begin = std::clamp<int64_t>(bounds[0], 0, p.tokens), out = 0;
  if (bounds[0] != 0) p.status |= kBadSeqlens;
  for (int64_t i = 0; i < batch; ++i) {
    const int64_t end = std::max(begin, std::clamp<int64_t>(bounds[i + 1], 0, p.tokens));
    if (end != bounds[i + 1]) p.status |= kBadSeqlens;
    const int64_t length = end - begin;
    const int64_t asked_start = span_starts.has_value() ? Ints(*span_starts)[i] : 0;
    const int64_t asked_length = span_lens.has_value() ? Ints(*span_lens)[i] : length;
    const int64_t start = std::clamp<int64_t>(asked_start, 0, length);
    const int64_t span = std::clamp<int64_t>(asked_length, 0, length - start);
    const int64_t keep = std::clamp<int64_t>(wanted[i], 0, span);
    if (start != asked_start || span != asked_length || keep != wanted[i]) p.status |= kBadSpan;
    p.rows.push_back({begin, length, start, span, keep, out});
    out += length - span + keep;
    p.cu_out.push_back(static_cast<int32_t>(std::min(out, total_out)));
    begin = end;
  }
  if (out > total_out) p.status |= kTruncated;
  return p;
}

void run_varlen(const PackedPrune& p, const Tensor& hidden, int64_t total_out, const Tensors& kv, bool keep_similar,
                bool heads_first, const PruneOutputs& out, const Tensor& cu_out) {
  const View scores(out.scores), cu(cu_out);
  std::fill_n(reinterpret_cast<float*>(scores.mutable_data()), p.tokens, NAN);
  std::copy(p.cu_out.begin(), p.cu_out.end(), reinterpret_cast<int32_t*>(cu.mutable_data()));
  const IndexOut indices = index_out(out.indices);
  for (int64_t i = p.cu_out.back(); i < total_out; ++i) indices.store(i, -1);
  run_prune(p.problem, hidden, p.rows, true, kv, keep_similar, heads_first, out, total_out);
}

namespace {

std::tuple<Tensor, Tensors, Tensor, Tensor, Tensor> prune_topk_varlen(
    const Tensor& hidden, const Tensor& prototypes, const Tensor& cu_seqlens, const Tensor& k, int64_t total_out,
    const std::optional<Tensors>& kv, bool keep_similar, const std::optional<Tensor>& span_starts,
    const std::optional<Tensor>& span_lens, const std::optional<Tensor>& rnorm, const std::string& layout) {
  const Tensors& caches = kv.has_value() ? *kv : kNoCaches;
  const PackedPrune p = check_varlen("prune_topk_varlen", hidden, prototypes, cu_seqlens, k, total_out, caches,
                                     span_starts, span_lens, rnorm, layout);
  const View x(hidden);
  Tensor out_hidden = empty_cpu({total_out, x.sizes[1]}, x.dtype);
  Tensors out_kv = empty_kv(caches, p.dim, total_out);
  Tensor indices = empty_cpu({total_out}, aoti_torch_dtype_int64());
  Tensor scores = empty_cpu({p.tokens}, aoti_torch_dtype_float32());
  Tensor cu_out = empty_cpu({static_cast<int64_t>(p.cu_out.size())}, aoti_torch_dtype_int32());
  run_varlen(p, hidden, total_out, caches, keep_similar, p.dim == 1, {out_hidden, out_kv, indices, scores}, cu_out);
  return {std::move(out_hidden), std::move(out_kv), std::move(indices), std::move(scores), std::move(cu_out)};
}

void prune_topk_varlen_out(const Tensor& hidden, const Tensor& prototypes, const Tensor& cu_seqlens, const Tensor& k,
                           int64_t total_out, const std::optional<Tensors>& kv, bool keep_similar,
                           const std::optional<Tensor>& span_starts, const std::optional<Tensor>& span_lens,
                           const std::optional<Tensor>& rnorm, const std::string& layout, const Tensor& out_hidden,
                           const Tensors& out_kv, const Tensor& out_indices, const Tensor& out_scores,
                           const Tensor& out_cu_seqlens, const std::optional<Tensor>& workspace,
                           const std::optional<Tensor>& status) {
  const char* op = "prune_topk_varlen.out";
  const Tensors& caches = kv.has_value() ? *kv : kNoCaches;
  const PackedPrune p =
      check_varlen(op, hidden, prototypes, cu_seqlens, k, total_out, caches, span_starts, span_lens, rnorm, layout);
  const View x(hidden);
  check_output(op, "out_hidden", out_hidden, {total_out, x.sizes[1]}, x.dtype, false, cpu_type());
  check_outputs(op, "out_kv", out_kv, caches, std::vector<int64_t>(caches.size(), p.dim), total_out);
  check_output(op, "out_indices", out_indices, {total_out}, aoti_torch_dtype_int64(), true, cpu_type());
  check_output(op, "out_scores", out_scores, {p.tokens}, aoti_torch_dtype_float32(), false, cpu_type());
  check_output(op, "out_cu_seqlens", out_cu_seqlens, {static_cast<int64_t>(p.cu_out.size())}, aoti_torch_dtype_int32(),
               false, cpu_type());
  check_workspace(op, workspace, View(k).sizes[0]);
  check_status(op, status);
  run_varlen(p, hidden, total_out, caches, keep_similar, p.dim == 1, {out_hidden, out_kv, out_indices, out_scores},
             out_cu_seqlens);
  set_status(status, p.status);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(VTK_NAMESPACE, CPU, m) {
  using namespace vtkernels;
  m.impl("prune_topk", VTK_BOX(prune_topk));
  m.impl("prune_topk.out", VTK_BOX(prune_topk_out));
  m.impl("prune_topk_varlen", VTK_BOX(prune_topk_varlen));
  m.impl("prune_topk_varlen.out", VTK_BOX(prune_topk_varlen_out));
}
