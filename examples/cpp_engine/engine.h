// A small engine around a paged K/V pool of several layers. Its pruning is done by the ops of vtkernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

#include "page_table.h"

namespace engine {

struct Sizes {
  int64_t layers, pages, page_size, heads, head_dim;
  int64_t max_requests, max_tokens;  // of one call of `prune`
};

// Every call checks all of its arguments before it changes anything.
class Engine {
 public:
  // `prototypes` [P, D] of redundant tokens; their dtype is that of the hidden states and of K and V. On the CPU.
  Engine(const Sizes& sizes, at::Tensor prototypes);

  // Takes pages for N tokens and writes K and V [layers, N, heads, head_dim]. Returns the request.
  int64_t admit(const at::Tensor& keys, const at::Tensor& values, int64_t span_start, int64_t span_len);

  // Keeps keep[i] of the visual tokens of requests[i], by the hidden states [T, D] of all their tokens, packed in this
  // order. Returns the hidden states that stay and their rows in `hidden`: views of buffers that the next call reuses.
  std::tuple<at::Tensor, at::Tensor> prune(const std::vector<int64_t>& requests, const at::Tensor& hidden,
                                           const std::vector<int64_t>& keep);

  // Later, when pages are short: keeps fewer visual tokens of a pruned request, by the scores from then.
  void shrink(int64_t request, int64_t keep);

  // Appends a token (K and V [layers, heads, head_dim]) and answers its queries [layers, query_heads, head_dim].
  at::Tensor decode(int64_t request, const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values);

  void release(int64_t request) { table_.release(request); }

  int64_t free_pages() const { return table_.free_pages(); }
  int64_t length(int64_t request) { return table_.at("length", request).length; }
  std::vector<int32_t> pages(int64_t request) { return table_.at("pages", request).pages; }
  at::Tensor pool() const { return pool_; }

 private:
  void write(const Request& request, int64_t first, const at::Tensor& keys, const at::Tensor& values);
  void describe(int64_t row, const Request& request);
  void check_status(const char* call) const;

  Sizes sizes_;
  PageTable table_;
  at::Tensor prototypes_;
  at::Tensor pool_;             // [layers, 2, pages, page_size, heads, head_dim]
  std::vector<at::Tensor> kv_;  // K and V of every layer, [pages, page_size, heads, head_dim]
  // What the ops read and write, allocated once.
  at::Tensor tables_, seq_lens_, cu_seqlens_, k_, span_starts_, span_lens_;
  at::Tensor hidden_, indices_, scores_, out_cu_seqlens_, out_seq_lens_, slots_, freed_, workspace_, status_;
};

}  // namespace engine
