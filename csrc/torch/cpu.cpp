// The CPU kernels as torch ops: checks, allocation, and the layout of tensors in the kernels' terms.
#include <algorithm>
#include <cmath>

#include "tensor.h"
#include "vtkernels/cpu.h"

namespace vtkernels {
namespace {

using cpu::Indices;
using cpu::IndexOut;
using cpu::Matrix;
using cpu::Parallel;
using cpu::RowCopy;
using cpu::ScoreProblem;
using cpu::Segment;
using Tensors = std::vector<Tensor>;

constexpr int32_t kBadIndex = 1, kBadSpan = 2, kBadSeqlens = 4, kTruncated = 8;

int32_t cpu_type() {
  static const int32_t type = aoti_torch_device_type_cpu();
  return type;
}

Tensor empty_cpu(const std::vector<int64_t>& shape, int32_t dtype) { return empty(shape, dtype, cpu_type(), 0); }

Parallel torch_pool() {
  return {[](int64_t count, int64_t grain, cpu::ParallelBody body, void* context) {
            torch::stable::parallel_for(0, count, grain,
                                        [=](int64_t begin, int64_t end) { body(context, begin, end); });
          },
          static_cast<int64_t>(torch::stable::get_num_threads())};
}

cpu::DType float_dtype(const char* op, const char* arg, int32_t dtype) {
  if (dtype == aoti_torch_dtype_float32()) return cpu::DType::kFloat32;
  if (dtype == aoti_torch_dtype_float16()) return cpu::DType::kFloat16;
  VTK_CHECK(dtype == aoti_torch_dtype_bfloat16(), op, arg, dtype_name(dtype), "float32, float16, bfloat16");
  return cpu::DType::kBFloat16;
}

IndexOut index_out(const Tensor& t) {
  const View v(t);
  return {v.mutable_data(), v.dtype == aoti_torch_dtype_int64()};
}

int64_t token_dim(const char* op, const std::string& layout) {
  VTK_CHECK(layout == "HND" || layout == "NHD", op, "kv_layout", "'" + layout + "'", "'HND' or 'NHD'");
  return layout == "HND" ? 2 : 1;
}

void set_status(const std::optional<Tensor>& status, int32_t bits) {
  if (status.has_value() && bits != 0) *reinterpret_cast<int32_t*>(View(*status).mutable_data()) |= bits;
}

void check_status(const char* op, const std::optional<Tensor>& status) {
  if (status.has_value()) check_vector(op, "status", *status, 1, aoti_torch_dtype_int32(), "1", cpu_type());
}

// ---- prototype_scores

ScoreProblem score_problem(const char* op, const char* token_arg, const Tensor& tokens, const Tensor& prototypes,
                           const std::optional<Tensor>& rnorm) {
  check_device(op, token_arg, tokens, cpu_type());
  check_device(op, "prototypes", prototypes, cpu_type());
  const View x(tokens), p(prototypes);
  ScoreProblem problem{};
  problem.dtype = float_dtype(op, token_arg, x.dtype);
  check_rank(op, "prototypes", p, 2, "a 2-D tensor [P, D]");
  VTK_CHECK(p.sizes[0] >= 1, op, "prototypes", "empty, of shape " + text(p.shape()), "at least one prototype");
  VTK_CHECK(p.dtype == x.dtype, op, "prototypes", dtype_name(p.dtype), dtype_name(x.dtype));
  problem.width = x.sizes[x.dims - 1];
  check_size(op, "prototypes", p.sizes[1], problem.width, "D");
  problem.prototype_count = p.sizes[0];
  problem.tokens = {x.data(), x.strides[x.dims - 2], x.strides[x.dims - 1]};
  problem.prototypes = {p.data(), p.strides[0], p.strides[1]};
  problem.cosine = true;
  if (rnorm.has_value()) {
    check_vector(op, "prototype_rnorm", *rnorm, p.sizes[0], aoti_torch_dtype_float32(), "P", cpu_type());
    VTK_CHECK(View(*rnorm).strides[0] == 1 || p.sizes[0] == 1, op, "prototype_rnorm", "strided", "contiguous");
    problem.rnorm = reinterpret_cast<const float*>(View(*rnorm).data());
  }
  return problem;
}

ScoreProblem check_scores(const char* op, const Tensor& tokens, const Tensor& prototypes, const std::string& metric,
                          const std::optional<Tensor>& rnorm) {
  const View x(tokens);
  VTK_CHECK(x.dims == 2 || x.dims == 3, op, "tokens", "of shape " + text(x.shape()), "[B, N, D] or [T, D]");
  VTK_CHECK(metric == "cosine" || metric == "dot", op, "metric", "'" + metric + "'", "'cosine' or 'dot'");
  VTK_CHECK(metric == "cosine" || !rnorm.has_value(), op, "prototype_rnorm", "given", "None with metric='dot'");
  ScoreProblem problem = score_problem(op, "tokens", tokens, prototypes, rnorm);
  problem.cosine = metric == "cosine";
  return problem;
}

void run_scores(ScoreProblem problem, const Tensor& tokens, const Tensor& scores, const Tensor& argmax) {
  const View x(tokens), s(scores);
  const bool packed = x.dims == 2;
  const int64_t batch = packed ? 1 : x.sizes[0], n = x.sizes[x.dims - 2];
  std::vector<Segment> segments;
  for (int64_t b = 0; b < batch; ++b) {
    segments.push_back({0, packed ? 0 : b * x.strides[0], n, packed ? 0 : b * s.strides[0]});
  }
  problem.scores = reinterpret_cast<float*>(s.mutable_data());
  problem.argmax = index_out(argmax);
  cpu::prototype_scores(torch_pool(), problem, segments.data(), batch);
}

std::tuple<Tensor, Tensor> prototype_scores(const Tensor tokens, const Tensor prototypes, std::string metric,
                                            std::optional<Tensor> rnorm) {
  const ScoreProblem problem = check_scores("prototype_scores", tokens, prototypes, metric, rnorm);
  std::vector<int64_t> shape = View(tokens).shape();
  shape.pop_back();
  Tensor scores = empty_cpu(shape, aoti_torch_dtype_float32()), argmax = empty_cpu(shape, aoti_torch_dtype_int64());
  run_scores(problem, tokens, scores, argmax);
  return {scores, argmax};
}

void prototype_scores_out(const Tensor tokens, const Tensor prototypes, std::string metric,
                          std::optional<Tensor> rnorm, Tensor scores, Tensor argmax) {
  const char* op = "prototype_scores.out";
  const ScoreProblem problem = check_scores(op, tokens, prototypes, metric, rnorm);
  std::vector<int64_t> shape = View(tokens).shape();
  shape.pop_back();
  check_output(op, "scores", scores, shape, aoti_torch_dtype_float32(), false, cpu_type());
  check_output(op, "argmax", argmax, shape, aoti_torch_dtype_int64(), true, cpu_type());
  VTK_CHECK(shape.size() < 2 || shape[0] < 2 || View(scores).strides[0] == View(argmax).strides[0], op, "argmax",
            "of a row stride other than that of `scores`", "equal row strides");
  run_scores(problem, tokens, scores, argmax);
}

// ---- select_topk

void check_topk(const char* op, const Tensor& scores, int64_t k) {
  check_device(op, "scores", scores, cpu_type());
  const View s(scores);
  VTK_CHECK(s.dtype == aoti_torch_dtype_float32(), op, "scores", dtype_name(s.dtype), "float32");
  check_rank(op, "scores", s, 2, "a 2-D tensor [B, N]");
  VTK_CHECK(k >= 0 && k <= s.sizes[1], op, "k", k, "0 to " + std::to_string(s.sizes[1]) + " (the row has N scores)");
}

void run_topk(const Tensor& scores, int64_t k, bool largest, const Tensor& out) {
  const View s(scores), o(out);
  const IndexOut indices = index_out(out);
  const auto* data = reinterpret_cast<const float*>(s.data());
  const int64_t n = s.sizes[1];
  torch_pool()(s.sizes[0], std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, n)), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      cpu::select_row(data + b * s.strides[0], s.strides[1], n, k, largest, 0, indices, b * o.strides[0]);
    }
  });
}

Tensor select_topk(const Tensor scores, int64_t k, bool largest) {
  check_topk("select_topk", scores, k);
  Tensor out = empty_cpu({View(scores).sizes[0], k}, aoti_torch_dtype_int64());
  run_topk(scores, k, largest, out);
  return out;
}

void select_topk_out(const Tensor scores, int64_t k, bool largest, Tensor out) {
  const char* op = "select_topk.out";
  check_topk(op, scores, k);
  check_output(op, "out", out, {View(scores).sizes[0], k}, aoti_torch_dtype_int64(), true, cpu_type());
  run_topk(scores, k, largest, out);
}

// ---- gathers

// Dimensions [first, last) of a tensor as one loop, when their strides allow it.
struct Loop {
  int64_t count, stride;
};

std::optional<Loop> merge_dims(const View& v, int64_t first, int64_t last) {
  Loop loop{1, 0};
  for (int64_t i = last - 1; i >= first; --i) {
    if (v.sizes[i] == 1) continue;
    if (loop.count == 1) {
      loop = {v.sizes[i], v.strides[i]};
    } else if (v.strides[i] == loop.count * loop.stride) {
      loop.count *= v.sizes[i];
    } else if (v.sizes[i] == 0) {
      loop.count = 0;
    } else {
      return std::nullopt;
    }
  }
  return loop;
}

// Rows of a [.., B, tokens, ..] tensor: dimensions before the batch are the outer loop, those after the tokens the row.
std::optional<RowCopy> token_rows(const View& src, const View& dst, int64_t dim) {
  const auto outer = merge_dims(src, 0, dim - 1), row = merge_dims(src, dim + 1, src.dims);
  const auto outer_dst = merge_dims(dst, 0, dim - 1), row_dst = merge_dims(dst, dim + 1, dst.dims);
  if (!outer || !row || !outer_dst || !row_dst || (row_dst->count > 1 && row_dst->stride != 1)) return std::nullopt;
  const int64_t size = src.element();
  return RowCopy{src.data(), dst.mutable_data(), outer->count, row->count, size,
                 row->count > 1 ? row->stride * size : size,
                 src.strides[dim - 1] * size, outer->stride * size, src.strides[dim] * size,
                 dst.strides[dim - 1] * size, outer_dst->stride * size, dst.strides[dim] * size};
}

// Rows of a dense cache [B, H, N, d] or [B, N, H, d], or of a packed one without B.
RowCopy kv_rows(const View& src, const View& dst, bool heads_first, bool packed) {
  const int64_t first = packed ? 0 : 1, head = heads_first ? first : first + 1, token = heads_first ? first + 1 : first;
  const int64_t size = src.element(), last = src.dims - 1;
  RowCopy c{src.data(), dst.mutable_data(), src.sizes[head], src.sizes[last], size, src.strides[last] * size,
            packed ? 0 : src.strides[0] * size, src.strides[head] * size, src.strides[token] * size,
            packed ? 0 : dst.strides[0] * size, dst.strides[head] * size, dst.strides[token] * size};
  const int64_t row = c.width * size;
  if (c.width == 1) c.src_step = size;
  if (!heads_first && c.src_step == size && c.src_outer == row && c.dst_outer == row) {  // all heads lie together
    c.width *= c.outer;
    c.outer = 1;
  }
  return c;
}

Indices index_view(const char* op, const Tensor& indices, int64_t batch) {
  check_device(op, "indices", indices, cpu_type());
  const View v(indices);
  VTK_CHECK(is_index(v.dtype), op, "indices", dtype_name(v.dtype), "int32, int64");
  check_rank(op, "indices", v, 2, "a 2-D tensor [B, k]");
  check_size(op, "indices", v.sizes[0], batch, "B");
  return {v.data(), v.dtype == aoti_torch_dtype_int64(), v.strides[0], v.strides[1]};
}

std::vector<int64_t> with_tokens(const View& v, int64_t dim, int64_t count) {
  std::vector<int64_t> shape = v.shape();
  shape[dim] = count;
  return shape;
}

std::vector<int64_t> check_tokens(const char* op, const Tensors& tensors, const std::optional<std::vector<int64_t>>& dims) {
  VTK_CHECK(!tensors.empty(), op, "tensors", "empty", "at least one tensor");
  const std::vector<int64_t> token_dims = dims.value_or(std::vector<int64_t>(tensors.size(), 1));
  check_size(op, "token_dims", static_cast<int64_t>(token_dims.size()), static_cast<int64_t>(tensors.size()), "entries");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::string arg = "tensors[" + std::to_string(i) + "]";
    check_device(op, arg, tensors[i], cpu_type());
    const View v(tensors[i]), first(tensors[0]);
    const int64_t dim = token_dims[i];
    VTK_CHECK(dim >= 1 && dim < v.dims, op, "token_dims[" + std::to_string(i) + "]", dim,
              "1 to " + std::to_string(v.dims - 1) + " (batch is the dimension before it)");
    check_size(op, arg, v.sizes[dim - 1], first.sizes[token_dims[0] - 1], "B");
    check_size(op, arg, v.sizes[dim], first.sizes[token_dims[0]], "tokens");
  }
  return token_dims;
}

int32_t run_gather_tokens(const char* op, const Tensors& tensors, const Tensor& indices,
                          const std::vector<int64_t>& dims, const Tensors& out) {
  const View first(tensors[0]);
  const int64_t batch = first.sizes[dims[0] - 1], tokens = first.sizes[dims[0]];
  const Indices idx = index_view(op, indices, batch);
  std::vector<RowCopy> copies;
  Tensors dense;  // keeps copies alive: inputs whose inner dimensions are not one loop
  for (size_t i = 0; i < tensors.size(); ++i) {
    std::optional<RowCopy> rows = token_rows(View(tensors[i]), View(out[i]), dims[i]);
    if (!rows) {
      VTK_CHECK(token_rows(View(out[i]), View(out[i]), dims[i]), op, "out[" + std::to_string(i) + "]",
                "of strides that are not dense around batch and tokens", "dense inner dimensions");
      dense.push_back(torch::stable::contiguous(tensors[i]));
      rows = token_rows(View(dense.back()), View(out[i]), dims[i]);
    }
    copies.push_back(*rows);
  }
  return cpu::gather_rows(torch_pool(), copies, idx, batch, View(indices).sizes[1], tokens) ? kBadIndex : 0;
}

Tensors gather_tokens(Tensors tensors, const Tensor indices, std::optional<std::vector<int64_t>> token_dims) {
  const char* op = "gather_tokens";
  const std::vector<int64_t> dims = check_tokens(op, tensors, token_dims);
  index_view(op, indices, View(tensors[0]).sizes[dims[0] - 1]);
  Tensors out;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const View v(tensors[i]);
    out.push_back(empty_cpu(with_tokens(v, dims[i], View(indices).sizes[1]), v.dtype));
  }
  run_gather_tokens(op, tensors, indices, dims, out);
  return out;
}

void check_outputs(const char* op, const char* arg, const Tensors& out, const Tensors& like,
                   const std::vector<int64_t>& dims, int64_t kept) {
  check_size(op, arg, static_cast<int64_t>(out.size()), static_cast<int64_t>(like.size()), "tensors");
  for (size_t i = 0; i < out.size(); ++i) {
    const View v(like[i]);
    check_output(op, std::string(arg) + "[" + std::to_string(i) + "]", out[i], with_tokens(v, dims[i], kept), v.dtype,
                 false, cpu_type());
  }
}

void gather_tokens_out(Tensors tensors, const Tensor indices, std::optional<std::vector<int64_t>> token_dims,
                       Tensors out, std::optional<Tensor> status) {
  const char* op = "gather_tokens.out";
  const std::vector<int64_t> dims = check_tokens(op, tensors, token_dims);
  index_view(op, indices, View(tensors[0]).sizes[dims[0] - 1]);
  check_outputs(op, "out", out, tensors, dims, View(indices).sizes[1]);
  check_status(op, status);
  set_status(status, run_gather_tokens(op, tensors, indices, dims, out));
}

void check_kv(const char* op, const Tensors& kv, int64_t dim, int64_t batch, int64_t tokens, bool packed) {
  for (size_t i = 0; i < kv.size(); ++i) {
    const std::string arg = "kv[" + std::to_string(i) + "]";
    check_device(op, arg, kv[i], cpu_type());
    const View v(kv[i]);
    if (packed) {
      check_rank(op, arg, v, 3, "[H, T, d] or [T, H, d], as kv_layout says");
    } else {
      check_rank(op, arg, v, 4, "[B, H, N, d] or [B, N, H, d], as kv_layout says");
      check_size(op, arg, v.sizes[0], batch, "B");
    }
    check_size(op, arg, v.sizes[dim], tokens, "tokens");
  }
}

Tensors empty_kv(const Tensors& kv, int64_t dim, int64_t kept) {
  Tensors out;
  for (const Tensor& t : kv) out.push_back(empty_cpu(with_tokens(View(t), dim, kept), View(t).dtype));
  return out;
}

struct KvShape {
  int64_t dim, batch, tokens;
};

KvShape check_gather_kv(const char* op, const Tensors& kv, const Tensor& indices, const std::string& layout) {
  VTK_CHECK(!kv.empty(), op, "kv", "empty", "at least one tensor");
  const int64_t dim = token_dim(op, layout);
  const View first(kv[0]);
  check_rank(op, "kv[0]", first, 4, "[B, H, N, d] or [B, N, H, d], as kv_layout says");
  const KvShape shape{dim, first.sizes[0], first.sizes[dim]};
  check_kv(op, kv, dim, shape.batch, shape.tokens, false);
  index_view(op, indices, shape.batch);
  return shape;
}

int32_t run_gather_kv(const char* op, const Tensors& kv, const Tensor& indices, const KvShape& shape,
                      const Tensors& out) {
  std::vector<RowCopy> copies;
  for (size_t i = 0; i < kv.size(); ++i) copies.push_back(kv_rows(View(kv[i]), View(out[i]), shape.dim == 2, false));
  const Indices idx = index_view(op, indices, shape.batch);
  return cpu::gather_rows(torch_pool(), copies, idx, shape.batch, View(indices).sizes[1], shape.tokens) ? kBadIndex : 0;
}

Tensors gather_kv(Tensors kv, const Tensor indices, std::string layout) {
  const char* op = "gather_kv";
  const KvShape shape = check_gather_kv(op, kv, indices, layout);
  Tensors out = empty_kv(kv, shape.dim, View(indices).sizes[1]);
  run_gather_kv(op, kv, indices, shape, out);
  return out;
}

void gather_kv_out(Tensors kv, const Tensor indices, std::string layout, Tensors out, std::optional<Tensor> status) {
  const char* op = "gather_kv.out";
  const KvShape shape = check_gather_kv(op, kv, indices, layout);
  check_outputs(op, "out", out, kv, std::vector<int64_t>(kv.size(), shape.dim), View(indices).sizes[1]);
  check_status(op, status);
  set_status(status, run_gather_kv(op, kv, indices, shape, out));
}

// ---- prune_topk and prune_topk_varlen

// One row of the batch, or one packed sequence, in tokens. `begin` counts from the start of its batch row.
struct Row {
  int64_t begin, length, span_start, span_length, keep, out;
};

struct PruneOutputs {
  const Tensor& hidden;
  const Tensors& kv;
  const Tensor& indices;
  const Tensor& scores;
};

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
        cpu::select_row(scores + segments[i].scores, 1, r.span_length, r.keep, keep_similar, first, {all.data(), true}, 0);
        for (int64_t t = 0; j + t < limit; ++t) indices.store(j + t, all[t]);
      }
      j += r.keep;
      for (int64_t t = r.span_start + r.span_length; t < r.length && j < limit; ++t) indices.store(j++, r.begin + t);
    }
  });

  const int64_t size = x.element(), d = x.dims - 1, n = x.dims - 2;
  std::vector<RowCopy> copies;
  copies.push_back({x.data(), oh.mutable_data(), 1, x.sizes[d], size, x.sizes[d] > 1 ? x.strides[d] * size : size,
                    packed ? 0 : x.strides[0] * size, 0, x.strides[n] * size,
                    packed ? 0 : oh.strides[0] * size, 0, oh.strides[n] * size});
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

std::tuple<Tensor, Tensors, Tensor, Tensor> prune_topk(
    const Tensor hidden, const Tensor prototypes, int64_t k, std::optional<Tensors> kv, bool keep_similar,
    int64_t span_start, int64_t span_len, std::optional<Tensor> span_starts, std::optional<Tensor> rnorm,
    std::string layout) {
  const Tensors caches = std::move(kv).value_or(Tensors{});
  const DensePrune p =
      check_prune("prune_topk", hidden, prototypes, k, caches, span_start, span_len, span_starts, rnorm, layout);
  const View x(hidden);
  Tensor out_hidden = empty_cpu({p.batch, p.kept, x.sizes[2]}, x.dtype);
  Tensors out_kv = empty_kv(caches, p.dim, p.kept);
  Tensor indices = empty_cpu({p.batch, p.kept}, aoti_torch_dtype_int64());
  Tensor scores = empty_cpu({p.batch, p.span}, aoti_torch_dtype_float32());
  run_prune(p.problem, hidden, p.rows, false, caches, keep_similar, p.dim == 2, {out_hidden, out_kv, indices, scores},
            p.kept);
  return {out_hidden, out_kv, indices, scores};
}

void check_workspace(const char* op, const std::optional<Tensor>& workspace, int64_t batch) {
  if (!workspace.has_value()) return;
  check_device(op, "workspace", *workspace, cpu_type());
  const View w(*workspace);
  const int64_t words = 64 + 8 * batch;
  VTK_CHECK(w.dtype == aoti_torch_dtype_int32() && w.dims == 1 && w.sizes[0] >= words, op, "workspace",
            std::string(dtype_name(w.dtype)) + " of shape " + text(w.shape()),
            "a zeroed int32 vector of at least " + std::to_string(words) + " words");
}

void prune_topk_out(const Tensor hidden, const Tensor prototypes, int64_t k, std::optional<Tensors> kv,
                    bool keep_similar, int64_t span_start, int64_t span_len, std::optional<Tensor> span_starts,
                    std::optional<Tensor> rnorm, std::string layout, Tensor out_hidden, Tensors out_kv,
                    Tensor out_indices, Tensor out_scores, std::optional<Tensor> workspace,
                    std::optional<Tensor> status) {
  const char* op = "prune_topk.out";
  const Tensors caches = std::move(kv).value_or(Tensors{});
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

struct PackedPrune {
  ScoreProblem problem;
  std::vector<Row> rows;
  std::vector<int32_t> cu_out;
  int64_t tokens, dim;
  int32_t status;
};

struct Ints {
  explicit Ints(const Tensor& t) : data(reinterpret_cast<const int32_t*>(View(t).data())), stride(View(t).strides[0]) {}
  int64_t operator[](int64_t i) const { return data[i * stride]; }
  const int32_t* data;
  int64_t stride;
};

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

std::tuple<Tensor, Tensors, Tensor, Tensor, Tensor> prune_topk_varlen(
    const Tensor hidden, const Tensor prototypes, const Tensor cu_seqlens, const Tensor k, int64_t total_out,
    std::optional<Tensors> kv, bool keep_similar, std::optional<Tensor> span_starts, std::optional<Tensor> span_lens,
    std::optional<Tensor> rnorm, std::string layout) {
  const Tensors caches = std::move(kv).value_or(Tensors{});
  const PackedPrune p = check_varlen("prune_topk_varlen", hidden, prototypes, cu_seqlens, k, total_out, caches,
                                     span_starts, span_lens, rnorm, layout);
  const View x(hidden);
  Tensor out_hidden = empty_cpu({total_out, x.sizes[1]}, x.dtype);
  Tensors out_kv = empty_kv(caches, p.dim, total_out);
  Tensor indices = empty_cpu({total_out}, aoti_torch_dtype_int64());
  Tensor scores = empty_cpu({p.tokens}, aoti_torch_dtype_float32());
  Tensor cu_out = empty_cpu({static_cast<int64_t>(p.cu_out.size())}, aoti_torch_dtype_int32());
  run_varlen(p, hidden, total_out, caches, keep_similar, p.dim == 1, {out_hidden, out_kv, indices, scores}, cu_out);
  return {out_hidden, out_kv, indices, scores, cu_out};
}

void prune_topk_varlen_out(const Tensor hidden, const Tensor prototypes, const Tensor cu_seqlens, const Tensor k,
                           int64_t total_out, std::optional<Tensors> kv, bool keep_similar,
                           std::optional<Tensor> span_starts, std::optional<Tensor> span_lens,
                           std::optional<Tensor> rnorm, std::string layout, Tensor out_hidden, Tensors out_kv,
                           Tensor out_indices, Tensor out_scores, Tensor out_cu_seqlens,
                           std::optional<Tensor> workspace, std::optional<Tensor> status) {
  const char* op = "prune_topk_varlen.out";
  const Tensors caches = std::move(kv).value_or(Tensors{});
  const PackedPrune p = check_varlen(op, hidden, prototypes, cu_seqlens, k, total_out, caches, span_starts, span_lens,
                                     rnorm, layout);
  const View x(hidden);
  check_output(op, "out_hidden", out_hidden, {total_out, x.sizes[1]}, x.dtype, false, cpu_type());
  check_outputs(op, "out_kv", out_kv, caches, std::vector<int64_t>(caches.size(), p.dim), total_out);
  check_output(op, "out_indices", out_indices, {total_out}, aoti_torch_dtype_int64(), true, cpu_type());
  check_output(op, "out_scores", out_scores, {p.tokens}, aoti_torch_dtype_float32(), false, cpu_type());
  check_output(op, "out_cu_seqlens", out_cu_seqlens, {static_cast<int64_t>(p.cu_out.size())},
               aoti_torch_dtype_int32(), false, cpu_type());
  check_workspace(op, workspace, View(k).sizes[0]);
  check_status(op, status);
  run_varlen(p, hidden, total_out, caches, keep_similar, p.dim == 1,
             {out_hidden, out_kv, out_indices, out_scores}, out_cu_seqlens);
  set_status(status, p.status);
}

}  // namespace
}  // namespace vtkernels

STABLE_TORCH_LIBRARY_IMPL(vtkernels, CPU, m) {
  using namespace vtkernels;
  m.impl("prototype_scores", TORCH_BOX(&prototype_scores));
  m.impl("prototype_scores.out", TORCH_BOX(&prototype_scores_out));
  m.impl("select_topk", TORCH_BOX(&select_topk));
  m.impl("select_topk.out", TORCH_BOX(&select_topk_out));
  m.impl("gather_tokens", TORCH_BOX(&gather_tokens));
  m.impl("gather_tokens.out", TORCH_BOX(&gather_tokens_out));
  m.impl("gather_kv", TORCH_BOX(&gather_kv));
  m.impl("gather_kv.out", TORCH_BOX(&gather_kv_out));
  m.impl("prune_topk", TORCH_BOX(&prune_topk));
  m.impl("prune_topk.out", TORCH_BOX(&prune_topk_out));
  m.impl("prune_topk_varlen", TORCH_BOX(&prune_topk_varlen));
  m.impl("prune_topk_varlen.out", TORCH_BOX(&prune_topk_varlen_out));
}
