// Registers the CUDA kernels under `vtkernels_cuda` over the stable ABI: `.out` variants only, schemas are defined in
// Python. The contract has been checked there; what memory safety needs is checked again, for direct calls.
#include <vtkernels/cuda/launch.h>

#include <algorithm>

#include "box.h"
#include "tensor.h"

namespace vtkernels {
namespace {

using OptionalTensor = std::optional<Tensor>;
using OptionalTensors = std::optional<std::vector<Tensor>>;

#ifdef VTKERNELS_CUDA_SHIM  // the tests run the kernels on CPU tensors
#define VTK_DISPATCH_KEY CPU
int32_t device_type() { return aoti_torch_device_type_cpu(); }
struct Device {
  explicit Device(const Tensor& t) : index(t.get_device_index()) {}
  int32_t index;
  cuda::Stream stream = nullptr;
};
#else
#define VTK_DISPATCH_KEY CUDA
int32_t device_type() { return aoti_torch_device_type_cuda(); }
struct Device {
  explicit Device(const Tensor& t) : index(t.get_device_index()), guard(index) {
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &current));
    stream = static_cast<cuda::Stream>(current);
  }
  int32_t index;
  torch::stable::accelerator::DeviceGuard guard;
  cuda::Stream stream;
};
#endif

// Checks that share the op's name and its first tensor's device.
struct Checker {
  const char* op;
  int32_t device;

  void place(const std::string& arg, const Tensor& t) const {
    check_device(op, arg, t, device_type());
    VTK_CHECK(t.get_device_index() == device, op, arg, "on device " + std::to_string(t.get_device_index()),
              "the device of the other inputs (" + std::to_string(device) + ")");
  }

  void vector(const char* arg, const Tensor& t, int64_t length, int32_t dtype, const char* dims) const {
    place(arg, t);
    check_vector(op, arg, t, length, dtype, dims, device_type());
  }

  void output(const std::string& arg, const Tensor& t, const std::vector<int64_t>& shape, int32_t dtype,
              bool any_index = false) const {
    place(arg, t);
    check_output(op, arg, t, shape, dtype, any_index, device_type());
  }

  void range(const char* arg, int64_t got, int64_t low, int64_t high) const {
    VTK_CHECK(got >= low && got <= high, op, arg, got, std::to_string(low) + " to " + std::to_string(high));
  }

  int* status(const OptionalTensor& t) const {
    if (!t) return nullptr;
    vector("status", *t, 1, aoti_torch_dtype_int32(), "1");
    return reinterpret_cast<int*>(View(*t).mutable_data());
  }
};

cuda::Dtype floating(const Checker& check, const char* arg, const View& v) {
  const bool single = v.dtype == aoti_torch_dtype_float32(), half = v.dtype == aoti_torch_dtype_float16();
  VTK_CHECK(single || half || v.dtype == aoti_torch_dtype_bfloat16(), check.op, arg, dtype_name(v.dtype),
            "float32, float16, bfloat16");
  return single ? cuda::Dtype::kFloat32 : half ? cuda::Dtype::kFloat16 : cuda::Dtype::kBFloat16;
}

cuda::ScoreProblem score_problem(const Checker& check, const char* token_arg, const Tensor& tokens,
                                 const Tensor& prototypes, const OptionalTensor& rnorm) {
  const View t(tokens), p(prototypes);
  const bool batched = t.dims == 3;
  cuda::ScoreProblem problem{};
  problem.dtype = floating(check, token_arg, t);
  problem.width = t.sizes[t.dims - 1];
  problem.tokens = {t.data(), batched ? t.strides[0] : 0, t.strides[t.dims - 2], t.strides[t.dims - 1]};
  check.place("prototypes", prototypes);
  VTK_CHECK(p.dtype == t.dtype, check.op, "prototypes", dtype_name(p.dtype), dtype_name(t.dtype));
  check_rank(check.op, "prototypes", p, 2, "[P, D]");
  VTK_CHECK(p.sizes[0] >= 1 && p.sizes[0] <= INT32_MAX, check.op, "prototypes", "of shape " + text(p.shape()),
            "1 to 2^31 - 1 prototypes");
  check_size(check.op, "prototypes", p.sizes[1], problem.width, "D");
  problem.prototypes = {p.data(), p.sizes[0], p.strides[0], p.strides[1], nullptr, 0};
  if (rnorm) {
    check.vector("prototype_rnorm", *rnorm, p.sizes[0], aoti_torch_dtype_float32(), "P");
    const View r(*rnorm);
    problem.prototypes.rnorm = reinterpret_cast<const float*>(r.data());
    problem.prototypes.rnorm_stride = r.strides[0];
  }
  return problem;
}

cuda::ScoreView score_view(const View& v) {
  return {reinterpret_cast<float*>(const_cast<char*>(v.data())), v.dims == 2 ? v.strides[0] : 0, v.strides[v.dims - 1]};
}

cuda::IndexView index_view(const View& v) {
  return {const_cast<char*>(v.data()), v.dtype == aoti_torch_dtype_int64(), v.dims == 2 ? v.strides[0] : 0,
          v.strides[v.dims - 1]};
}

void prototype_scores_out(const Tensor& tokens, const Tensor& prototypes, const std::string& metric,
                          const OptionalTensor& prototype_rnorm, const Tensor& scores, const Tensor& argmax) {
  const Device device(tokens);
  const Checker check{"prototype_scores.out", device.index};
  const View t(tokens);
  check.place("tokens", tokens);
  VTK_CHECK(t.dims == 2 || t.dims == 3, check.op, "tokens", "of shape " + text(t.shape()), "[B, N, D] or [T, D]");
  VTK_CHECK(metric == "cosine" || metric == "dot", check.op, "metric", metric, "cosine or dot");
  VTK_CHECK(metric == "cosine" || !prototype_rnorm, check.op, "prototype_rnorm", "given", "None with metric='dot'");
  const cuda::ScoreProblem problem = score_problem(check, "tokens", tokens, prototypes, prototype_rnorm);
  const std::vector<int64_t> shape(t.sizes, t.sizes + t.dims - 1);
  check.output("scores", scores, shape, aoti_torch_dtype_float32());
  check.output("argmax", argmax, shape, aoti_torch_dtype_int64(), true);
  cuda::prototype_scores(problem, metric == "cosine", t.dims == 3 ? t.sizes[0] : 1, t.sizes[t.dims - 2],
                         score_view(View(scores)), index_view(View(argmax)), device.stream);
}

cuda::IntView int_view(const View& v) { return {reinterpret_cast<const int*>(v.data()), v.strides[0]}; }

void select_topk_out(const Tensor& scores, int64_t k, bool largest, const OptionalTensor& ks,
                     const OptionalTensor& protected_tokens, const OptionalTensor& excluded, const std::string& order,
                     const Tensor& out) {
  const Device device(scores);
  const Checker check{"select_topk.out", device.index};
  const View s(scores);
  check.place("scores", scores);
  VTK_CHECK(s.dtype == aoti_torch_dtype_float32(), check.op, "scores", dtype_name(s.dtype), "float32");
  check_rank(check.op, "scores", s, 2, "[B, N]");
  check.range("k", k, 0, s.sizes[1]);
  if (ks) check.vector("ks", *ks, s.sizes[0], aoti_torch_dtype_int32(), "B");
  VTK_CHECK(!protected_tokens, check.op, "protected", "given", "None with the cuda backend (triton has it)");
  VTK_CHECK(!excluded, check.op, "excluded", "given", "None with the cuda backend (triton has it)");
  VTK_CHECK(order == "index", check.op, "order", order, "index with the cuda backend (triton has score)");
  check.output("out", out, {s.sizes[0], k}, aoti_torch_dtype_int64(), true);
  cuda::select_topk(score_view(s), s.sizes[0], s.sizes[1], k, largest, ks ? int_view(View(*ks)) : cuda::IntView{},
                    index_view(View(out)), device.stream);
}

// Adds a tensor to the gather, after checking the buffer it goes to.
void add_rows(const Checker& check, const Tensor& src, const std::string& out_arg, const Tensor& dst, int batch_dim,
              int token_dim, int64_t kept, std::vector<cuda::GatherTensor>& rows) {
  const View s(src), d(dst);
  std::vector<int64_t> shape = s.shape();
  cuda::GatherTensor row{s.data(), nullptr,   s.element(), shape, {s.strides, s.strides + s.dims},
                         {},       batch_dim, token_dim};
  shape[token_dim] = kept;
  check.output(out_arg, dst, shape, s.dtype);
  row.dst = d.mutable_data();
  row.dst_strides.assign(d.strides, d.strides + d.dims);
  rows.push_back(row);
}

struct GatherShape {
  int64_t batch, tokens;
};

View check_indices(const Checker& check, const Tensor& indices, const GatherShape& shape) {
  const View i(indices);
  check.place("indices", indices);
  VTK_CHECK(is_index(i.dtype), check.op, "indices", dtype_name(i.dtype), "int32, int64");
  check_rank(check.op, "indices", i, 2, "[B, k]");
  check_size(check.op, "indices", i.sizes[0], shape.batch, "B");
  return i;
}

void gather_tokens_out(const std::vector<Tensor>& tensors, const Tensor& indices,
                       const std::optional<std::vector<int64_t>>& token_dims, const std::vector<Tensor>& out,
                       const OptionalTensor& status) {
  const Device device(indices);
  const Checker check{"gather_tokens.out", device.index};
  VTK_CHECK(!tensors.empty(), check.op, "tensors", "empty", "at least one tensor");
  check_size(check.op, "out", out.size(), tensors.size(), "tensors");
  if (token_dims) check_size(check.op, "token_dims", token_dims->size(), tensors.size(), "entries");
  GatherShape shape{};
  std::vector<cuda::GatherTensor> rows;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::string at = "[" + std::to_string(i) + "]";
    const View t(tensors[i]);
    const int64_t dim = token_dims ? (*token_dims)[i] : 1;
    check.place("tensors" + at, tensors[i]);
    VTK_CHECK(dim >= 1 && dim < t.dims, check.op, "token_dims" + at, dim, "1 to " + std::to_string(t.dims - 1));
    if (i == 0) {
      shape = {t.sizes[dim - 1], t.sizes[dim]};
      check_indices(check, indices, shape);
    }
    check_size(check.op, "tensors" + at, t.sizes[dim - 1], shape.batch, "B");
    check_size(check.op, "tensors" + at, t.sizes[dim], shape.tokens, "tokens");
    add_rows(check, tensors[i], "out" + at, out[i], static_cast<int>(dim) - 1, static_cast<int>(dim),
             View(indices).sizes[1], rows);
  }
  const View i(indices);
  cuda::gather(rows, index_view(i), shape.batch, shape.tokens, i.sizes[1], check.status(status), device.stream);
}

// Caches [B, H, N, d] or [B, N, H, d]; without the batch where `packed`.
void add_caches(const Checker& check, const std::vector<Tensor>& kv, const std::string& kv_layout, bool packed,
                const GatherShape& shape, const char* out_arg, const std::vector<Tensor>& out, int64_t kept,
                std::vector<cuda::GatherTensor>& rows) {
  VTK_CHECK(kv_layout == "HND" || kv_layout == "NHD", check.op, "kv_layout", kv_layout, "HND or NHD");
  const int token_dim = (kv_layout == "HND" ? 2 : 1) - packed;
  const char* dims =
      kv_layout == "HND" ? (packed ? "[H, T, d]" : "[B, H, N, d]") : (packed ? "[T, H, d]" : "[B, N, H, d]");
  check_size(check.op, out_arg, out.size(), kv.size(), "tensors");
  for (size_t i = 0; i < kv.size(); ++i) {
    const std::string at = "[" + std::to_string(i) + "]";
    const View t(kv[i]);
    check.place("kv" + at, kv[i]);
    check_rank(check.op, "kv" + at, t, packed ? 3 : 4, dims);
    if (!packed) check_size(check.op, "kv" + at, t.sizes[0], shape.batch, "B");
    check_size(check.op, "kv" + at, t.sizes[token_dim], shape.tokens, "tokens");
    add_rows(check, kv[i], out_arg + at, out[i], packed ? -1 : 0, token_dim, kept, rows);
  }
}

// Indices [B, k], [B, H, k] or [L, B, H, k] of caches; H of 1 is shared by the heads.
cuda::IndexView cache_indices(const Checker& check, const Tensor& indices, const std::vector<Tensor>& kv,
                              int head_dim) {
  const View i(indices);
  check.place("indices", indices);
  VTK_CHECK(is_index(i.dtype), check.op, "indices", dtype_name(i.dtype), "int32, int64");
  VTK_CHECK(i.dims >= 2 && i.dims <= 4, check.op, "indices", "of shape " + text(i.shape()),
            "[B, k], [B, H, k] or [L, B, H, k]");
  const int64_t row = i.dims == 2 ? 0 : i.dims - 3, last = i.dims - 1, heads = i.dims == 2 ? 1 : i.sizes[last - 1];
  if (i.dims == 4) check_size(check.op, "indices", i.sizes[0], kv.size(), "L (tensors)");
  check_size(check.op, "indices", i.sizes[row], View(kv[0]).sizes[0], "B");
  for (const Tensor& t : kv) {
    if (heads != 1) check_size(check.op, "indices", heads, View(t).sizes[head_dim], "H");
  }
  cuda::IndexView view{const_cast<char*>(i.data()), i.dtype == aoti_torch_dtype_int64(), i.strides[row],
                       i.strides[last]};
  view.heads = heads;
  view.head_stride = heads == 1 ? 0 : i.strides[last - 1];
  if (i.dims == 4) {
    view.tensors = i.sizes[0];
    view.tensor_stride = i.strides[0];
  }
  return view;
}

// A cache [B, H, N, d] or [B, N, H, d] whose rows move within it.
void add_written_cache(const Checker& check, const Tensor& cache, size_t i, const GatherShape& shape, int token_dim,
                       std::vector<cuda::GatherTensor>& rows) {
  const std::string arg = "kv[" + std::to_string(i) + "]";
  const View t(cache);
  check.place(arg, cache);
  check_rank(check.op, arg, t, 4, token_dim == 2 ? "[B, H, N, d]" : "[B, N, H, d]");
  check_size(check.op, arg, t.sizes[0], shape.batch, "B");
  check_size(check.op, arg, t.sizes[token_dim], shape.tokens, "tokens");
  for (int64_t d = 0; d < t.dims; ++d) {
    VTK_CHECK(t.sizes[d] <= 1 || t.strides[d] != 0, check.op, arg, "expanded",
              "a tensor whose elements each have their own memory");
  }
  const std::vector<int64_t> strides(t.strides, t.strides + t.dims);
  rows.push_back({t.data(), t.mutable_data(), t.element(), t.shape(), strides, strides, 0, token_dim});
}

using Gather = decltype(cuda::gather);

void run_gather_kv(const char* op, Gather& gather, const std::vector<Tensor>& kv, const Tensor& indices,
                   const std::string& kv_layout, const std::vector<Tensor>& out, bool in_place,
                   const OptionalTensor& status) {
  const Device device(indices);
  const Checker check{op, device.index};
  VTK_CHECK(!kv.empty(), check.op, "kv", "empty", "at least one tensor");
  const View first(kv[0]);
  check_rank(check.op, "kv[0]", first, 4, kv_layout == "HND" ? "[B, H, N, d]" : "[B, N, H, d]");
  const int token_dim = kv_layout == "HND" ? 2 : 1, head_dim = 3 - token_dim;
  const GatherShape shape{first.sizes[0], first.sizes[token_dim]};
  const View i(indices);
  const int64_t kept = i.dims > 0 ? i.sizes[i.dims - 1] : 0;
  std::vector<cuda::GatherTensor> rows;
  if (in_place) {
    VTK_CHECK(kv_layout == "HND" || kv_layout == "NHD", check.op, "kv_layout", kv_layout, "HND or NHD");
    check_size(check.op, "indices", std::min(kept, shape.tokens), kept, "k (at most N)");
    for (size_t t = 0; t < kv.size(); ++t) add_written_cache(check, kv[t], t, shape, token_dim, rows);
  } else {
    add_caches(check, kv, kv_layout, false, shape, "out", out, kept, rows);
  }
  const cuda::IndexView view = cache_indices(check, indices, kv, head_dim);
  if (view.heads != 1) {
    for (cuda::GatherTensor& row : rows) row.head_dim = head_dim;
  }
  gather(rows, view, shape.batch, shape.tokens, kept, check.status(status), device.stream);
}

void gather_kv_out(const std::vector<Tensor>& kv, const Tensor& indices, const std::string& kv_layout,
                   const std::vector<Tensor>& out, const OptionalTensor& status) {
  run_gather_kv("gather_kv.out", cuda::gather, kv, indices, kv_layout, out, false, status);
}

void gather_kv_inplace_out(const std::vector<Tensor>& kv, const Tensor& indices, const std::string& kv_layout,
                           const OptionalTensor& status) {
  run_gather_kv("gather_kv_inplace.out", cuda::gather_inplace, kv, indices, kv_layout, kv, true, status);
}

void rotate_keys_out(const Tensor& keys, const Tensor& deltas, const Tensor& inv_freq, bool interleaved,
                     const std::string& kv_layout, const Tensor& out) {
  const Device device(keys);
  const Checker check{"rotate_keys.out", device.index};
  check.place("keys", keys);
  check.place("deltas", deltas);
  check.place("inv_freq", inv_freq);
  VTK_CHECK(kv_layout == "HND" || kv_layout == "NHD", check.op, "kv_layout", kv_layout, "HND or NHD");
  const int token = kv_layout == "HND" ? 2 : 1, head = 3 - token;
  const View k(keys), d(deltas), f(inv_freq), o(out);
  cuda::RotateProblem p{};
  p.dtype = floating(check, "keys", k);
  check_rank(check.op, "keys", k, 4, kv_layout == "HND" ? "[B, H, N, d]" : "[B, N, H, d]");
  VTK_CHECK(is_index(d.dtype), check.op, "deltas", dtype_name(d.dtype), "int32, int64");
  VTK_CHECK(d.dims == 2 || d.dims == 3, check.op, "deltas", "of shape " + text(d.shape()), "[B, N] or [axes, B, N]");
  check_size(check.op, "deltas", d.sizes[d.dims - 2], k.sizes[0], "B");
  check_size(check.op, "deltas", d.sizes[d.dims - 1], k.sizes[token], "N");
  VTK_CHECK(f.dtype == aoti_torch_dtype_float32(), check.op, "inv_freq", dtype_name(f.dtype), "float32");
  check_rank(check.op, "inv_freq", f, d.dims - 1, d.dims == 2 ? "[pairs]" : "[axes, pairs]");
  p.axes = d.dims == 3 ? d.sizes[0] : 1;
  if (d.dims == 3) check_size(check.op, "inv_freq", f.sizes[0], p.axes, "axes");
  p.pairs = f.sizes[f.dims - 1];
  check.range("inv_freq", p.pairs, 0, k.sizes[3] / 2);
  check.output("out", out, k.shape(), k.dtype);
  p.batch = k.sizes[0], p.heads = k.sizes[head], p.tokens = k.sizes[token], p.width = k.sizes[3];
  p.keys = k.data();
  p.key_batch = k.strides[0], p.key_head = k.strides[head], p.key_token = k.strides[token], p.key_dim = k.strides[3];
  p.out = o.mutable_data();
  p.out_batch = o.strides[0], p.out_head = o.strides[head], p.out_token = o.strides[token];
  p.deltas = d.data();
  p.wide = d.dtype == aoti_torch_dtype_int64();
  p.delta_axis = d.dims == 3 ? d.strides[0] : 0;
  p.delta_batch = d.strides[d.dims - 2], p.delta_token = d.strides[d.dims - 1];
  p.inv_freq = reinterpret_cast<const float*>(f.data());
  p.freq_axis = f.dims == 2 ? f.strides[0] : 0, p.freq_pair = f.strides[f.dims - 1];
  p.interleaved = interleaved;
  cuda::rotate_keys(p, device.stream);
}

// The caller's workspace, or one for this call.
Tensor workspace_for(const Checker& check, const OptionalTensor& given, int64_t batch, const Device& device) {
  const int64_t words = cuda::workspace_size(batch);
  if (!given) {
    const Tensor scratch = empty({words}, aoti_torch_dtype_int32(), device_type(), device.index);
    cuda::clear_workspace(reinterpret_cast<int*>(View(scratch).mutable_data()), batch, device.stream);
    return scratch;
  }
  check.place("workspace", *given);
  const View w(*given);
  VTK_CHECK(w.dtype == aoti_torch_dtype_int32() && w.dims == 1 && w.sizes[0] >= words && w.strides[0] == 1, check.op,
            "workspace", std::string(dtype_name(w.dtype)) + " of shape " + text(w.shape()),
            "a zeroed, contiguous int32 vector of at least " + std::to_string(words) + " words");
  return *given;
}

void prune_topk_out(const Tensor& hidden, const Tensor& prototypes, int64_t k, const OptionalTensors& kv,
                    bool keep_similar, int64_t span_start, int64_t span_len, const OptionalTensor& span_starts,
                    const OptionalTensor& prototype_rnorm, const std::string& kv_layout, const Tensor& out_hidden,
                    const std::vector<Tensor>& out_kv, const Tensor& out_indices, const Tensor& out_scores,
                    const OptionalTensor& workspace, const OptionalTensor& status) {
  const Device device(hidden);
  const Checker check{"prune_topk.out", device.index};
  const View h(hidden);
  check.place("hidden", hidden);
  check_rank(check.op, "hidden", h, 3, "[B, N, D]");
  const GatherShape shape{h.sizes[0], h.sizes[1]};
  cuda::PruneDense problem{};
  problem.score = score_problem(check, "hidden", hidden, prototypes, prototype_rnorm);
  problem.batch = shape.batch;
  problem.tokens = shape.tokens;
  if (span_starts) {
    check.vector("span_starts", *span_starts, shape.batch, aoti_torch_dtype_int32(), "B");
    check.range("span_len", span_len, 0, shape.tokens);
    const View s(*span_starts);
    problem.span_starts = reinterpret_cast<const int*>(s.data());
    problem.span_starts_stride = s.strides[0];
  } else {
    check.range("span_start", span_start, 0, shape.tokens);
    if (span_len == -1) span_len = shape.tokens - span_start;
    check.range("span_len", span_len, 0, shape.tokens - span_start);
    problem.span_start = span_start;
  }
  check.range("k", k, 0, span_len);
  problem.span_len = span_len;
  problem.k = k;
  problem.keep_similar = keep_similar;
  const int64_t kept = shape.tokens - span_len + k;
  check.output("out_scores", out_scores, {shape.batch, span_len}, aoti_torch_dtype_float32());
  check.output("out_indices", out_indices, {shape.batch, kept}, aoti_torch_dtype_int64(), true);
  std::vector<cuda::GatherTensor> rows;
  add_rows(check, hidden, "out_hidden", out_hidden, 0, 1, kept, rows);
  add_caches(check, kv.value_or(std::vector<Tensor>{}), kv_layout, false, shape, "out_kv", out_kv, kept, rows);
  problem.scores = score_view(View(out_scores));
  problem.indices = index_view(View(out_indices));
  problem.status = check.status(status);
  const Tensor scratch = workspace_for(check, workspace, shape.batch, device);
  problem.workspace = reinterpret_cast<int*>(View(scratch).mutable_data());
  cuda::prune_topk(problem, device.stream);
  cuda::gather(rows, problem.indices, shape.batch, shape.tokens, kept, nullptr, device.stream);
}

void prune_topk_varlen_out(const Tensor& hidden, const Tensor& prototypes, const Tensor& cu_seqlens, const Tensor& k,
                           int64_t total_out, const OptionalTensors& kv, bool keep_similar,
                           const OptionalTensor& span_starts, const OptionalTensor& span_lens,
                           const OptionalTensor& prototype_rnorm, const std::string& kv_layout,
                           const Tensor& out_hidden, const std::vector<Tensor>& out_kv, const Tensor& out_indices,
                           const Tensor& out_scores, const Tensor& out_cu_seqlens, const OptionalTensor& workspace,
                           const OptionalTensor& status) {
  const Device device(hidden);
  const Checker check{"prune_topk_varlen.out", device.index};
  const View h(hidden);
  check.place("hidden", hidden);
  check_rank(check.op, "hidden", h, 2, "[T, D]");
  const int32_t int32 = aoti_torch_dtype_int32();
  const GatherShape shape{1, h.sizes[0]};
  cuda::PruneVarlen problem{};
  problem.score = score_problem(check, "hidden", hidden, prototypes, prototype_rnorm);
  check_rank(check.op, "k", View(k), 1, "[B]");
  problem.batch = View(k).sizes[0];
  problem.tokens = shape.tokens;
  check.range("total_out", total_out, 0, shape.tokens);
  problem.total_out = total_out;
  check.vector("k", k, problem.batch, int32, "B");
  check.vector("cu_seqlens", cu_seqlens, problem.batch + 1, int32, "B + 1");
  problem.k = int_view(View(k));
  problem.cu_seqlens = int_view(View(cu_seqlens));
  VTK_CHECK(span_starts.has_value() == span_lens.has_value(), check.op, "span_starts, span_lens", "only one of them",
            "both, or neither");
  if (span_starts) {
    check.vector("span_starts", *span_starts, problem.batch, int32, "B");
    check.vector("span_lens", *span_lens, problem.batch, int32, "B");
    problem.span_starts = int_view(View(*span_starts));
    problem.span_lens = int_view(View(*span_lens));
  }
  problem.keep_similar = keep_similar;
  check.output("out_scores", out_scores, {shape.tokens}, aoti_torch_dtype_float32());
  check.output("out_indices", out_indices, {total_out}, aoti_torch_dtype_int64(), true);
  check.output("out_cu_seqlens", out_cu_seqlens, {problem.batch + 1}, int32);
  std::vector<cuda::GatherTensor> rows;
  add_rows(check, hidden, "out_hidden", out_hidden, -1, 0, total_out, rows);
  add_caches(check, kv.value_or(std::vector<Tensor>{}), kv_layout, true, shape, "out_kv", out_kv, total_out, rows);
  problem.scores = score_view(View(out_scores));
  problem.indices = index_view(View(out_indices));
  problem.out_cu_seqlens = reinterpret_cast<int*>(View(out_cu_seqlens).mutable_data());
  problem.out_cu_seqlens_stride = View(out_cu_seqlens).strides[0];
  problem.status = check.status(status);
  const Tensor scratch = workspace_for(check, workspace, problem.batch, device);
  problem.workspace = reinterpret_cast<int*>(View(scratch).mutable_data());
  cuda::prune_topk_varlen(problem, device.stream);
  cuda::gather(rows, problem.indices, 1, shape.tokens, total_out, nullptr, device.stream);
}

// A pool of pages, each of whose elements has its own memory.
cuda::PagePool page_pool(const Checker& check, const std::string& arg, const Tensor& t, const View& first,
                         int token_dim, const char* dims) {
  check.place(arg, t);
  const View v(t);
  check_rank(check.op, arg, v, 4, dims);
  check_size(check.op, arg, v.sizes[0], first.sizes[0], "blocks");
  check_size(check.op, arg, v.sizes[token_dim], first.sizes[token_dim], "block_size");
  VTK_CHECK(v.sizes[token_dim] >= 1, check.op, arg, "of shape " + text(v.shape()), "a block_size of at least 1");
  for (int64_t d = 0; d < 4; ++d) {
    VTK_CHECK(v.sizes[d] <= 1 || v.strides[d] != 0, check.op, arg, "expanded",
              "a tensor whose elements each have their own memory");
  }
  const int head_dim = 3 - token_dim;
  return {v.mutable_data(), v.element(),          v.sizes[head_dim],   v.sizes[3],
          v.strides[0],     v.strides[token_dim], v.strides[head_dim], v.strides[3]};
}

cuda::PageTable page_table(const Checker& check, const char* arg, const Tensor& table, int64_t batch) {
  check.place(arg, table);
  const View t(table);
  VTK_CHECK(t.dtype == aoti_torch_dtype_int32(), check.op, arg, dtype_name(t.dtype), "int32");
  check_rank(check.op, arg, t, 2, "[B, max_blocks]");
  check_size(check.op, arg, t.sizes[0], batch, "B");
  return {reinterpret_cast<const int*>(t.data()), t.sizes[1], t.strides[0], t.strides[1]};
}

void compact_kv_paged_out(const std::vector<Tensor>& kv, const Tensor& block_table, const Tensor& seq_lens,
                          const Tensor& indices, const OptionalTensor& counts, const OptionalTensor& dst_block_table,
                          const std::string& kv_layout, bool allow_shared, const Tensor& out_seq_lens,
                          const Tensor& out_slot_mapping, const Tensor& out_freed_blocks,
                          const OptionalTensor& status) {
  const Device device(block_table);
  const Checker check{"compact_kv_paged.out", device.index};
  VTK_CHECK(!kv.empty(), check.op, "kv", "empty", "at least one tensor");
  VTK_CHECK(kv_layout == "HND" || kv_layout == "NHD", check.op, "kv_layout", kv_layout, "HND or NHD");
  VTK_CHECK(dst_block_table || !allow_shared, check.op, "allow_shared", "True",
            "False, unless `dst_block_table` is given");
  const int token_dim = kv_layout == "HND" ? 2 : 1;
  const char* dims = token_dim == 2 ? "[blocks, H, block_size, d]" : "[blocks, block_size, H, d]";
  const View first(kv[0]), table(block_table), i(indices);
  check_rank(check.op, "kv[0]", first, 4, dims);
  check_rank(check.op, "block_table", table, 2, "[B, max_blocks]");
  std::vector<cuda::PagePool> pools;
  for (size_t n = 0; n < kv.size(); ++n) {
    const std::string arg = "kv[" + std::to_string(n) + "]";
    pools.push_back(page_pool(check, arg, kv[n], first, token_dim, dims));
    for (size_t other = 0; other < n && pools[n].heads * pools[n].width > 0; ++other) {
      VTK_CHECK(pools[other].data != pools[n].data, check.op, arg,
                "the same memory as kv[" + std::to_string(other) + "]", "each pool once");
    }
  }
  cuda::PagedCompaction p{};
  p.batch = table.sizes[0];
  p.blocks = first.sizes[0];
  p.block_size = first.sizes[token_dim];
  p.table = page_table(check, "block_table", block_table, p.batch);
  if (dst_block_table) p.target = page_table(check, "dst_block_table", *dst_block_table, p.batch);
  // A table without pages has no memory, and still is a table.
  static const int no_pages = 0;
  if (dst_block_table && p.target.data == nullptr) p.target.data = &no_pages;
  const int32_t int32 = aoti_torch_dtype_int32();
  check.vector("seq_lens", seq_lens, p.batch, int32, "B");
  p.lengths = int_view(View(seq_lens));
  p.kept = check_indices(check, indices, {p.batch, 0}).sizes[1];
  p.indices = index_view(i);
  if (counts) {
    check.vector("counts", *counts, p.batch, int32, "B");
    p.counts = int_view(View(*counts));
  }
  p.allow_shared = allow_shared;
  check.output("out_seq_lens", out_seq_lens, {p.batch}, int32);
  check.output("out_slot_mapping", out_slot_mapping, {p.batch, p.kept}, aoti_torch_dtype_int64(), true);
  check.output("out_freed_blocks", out_freed_blocks, {p.batch, p.table.width}, int32);
  const View freed(out_freed_blocks);
  p.out_lengths = reinterpret_cast<int*>(View(out_seq_lens).mutable_data());
  p.slots = index_view(View(out_slot_mapping));
  p.freed = reinterpret_cast<int*>(freed.mutable_data());
  p.freed_batch_stride = freed.strides[0];
  p.status = check.status(status);
  const int64_t claims = cuda::page_claims(p.blocks, !dst_block_table);
  const Tensor counters = empty({claims}, int32, device_type(), device.index);
  const Tensor plans = empty({2 * p.batch}, aoti_torch_dtype_int64(), device_type(), device.index);
  p.claims = reinterpret_cast<int*>(View(counters).mutable_data());
  p.row_plans = reinterpret_cast<int64_t*>(View(plans).mutable_data());
  cuda::clear_words(p.claims, claims, device.stream);
  cuda::compact_pages(p, pools, device.stream);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vtkernels_cuda, VTK_DISPATCH_KEY, m) {
  m.impl("prototype_scores.out", VTK_BOX(prototype_scores_out));
  m.impl("select_topk.out", VTK_BOX(select_topk_out));
  m.impl("gather_tokens.out", VTK_BOX(gather_tokens_out));
  m.impl("gather_kv.out", VTK_BOX(gather_kv_out));
  m.impl("gather_kv_inplace.out", VTK_BOX(gather_kv_inplace_out));
  m.impl("rotate_keys.out", VTK_BOX(rotate_keys_out));
  m.impl("compact_kv_paged.out", VTK_BOX(compact_kv_paged_out));
  m.impl("prune_topk.out", VTK_BOX(prune_topk_out));
  m.impl("prune_topk_varlen.out", VTK_BOX(prune_topk_varlen_out));
}

}  // namespace vtkernels
