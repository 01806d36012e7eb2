// Plans the launches of `gather`: axes merged, the widest vector that every address allows, tensors grouped by layout.
#include <algorithm>
#include <cstring>
#include <vtkernels/cuda/gather.cuh>

namespace vtkernels::cuda {
namespace {

constexpr int64_t kTileUnits = kGatherThreads * kGatherUnroll;
constexpr int64_t kMaxBlocks = 1 << 20;

struct Planned {
  GatherLayout layout;  // no first_tile, no first_entry
  std::vector<GatherEntry> entries;
  std::vector<uint16_t> tensors;
};

static_assert(std::has_unique_object_representations_v<GatherLayout>);
bool same_layout(const GatherLayout& a, const GatherLayout& b) { return memcmp(&a, &b, sizeof a) == 0; }

class Plan {
 public:
  Plan(int64_t batch, int64_t kept, bool in_place) : batch_(batch), kept_(kept), in_place_(in_place) {}

  void add(const GatherTensor& t, uint16_t tensor) {
    std::vector<GatherAxis> axes;  // outermost first, the bytes of one element last
    GatherAxis batch{1, 0, 0}, token{1, 0, 0}, head{1, 0, 0};
    for (int d = 0; d < static_cast<int>(t.sizes.size()); ++d) {
      const GatherAxis axis{t.sizes[d], t.src_strides[d] * t.element_size, t.dst_strides[d] * t.element_size};
      if (d == t.batch_dim) {
        batch = axis;
      } else if (d == t.token_dim) {
        token = axis;
      } else if (d == t.head_dim) {
        head = axis;
      } else {
        push(axes, axis);
      }
    }
    push(axes, {t.element_size, 1, 1});
    for (const GatherAxis& axis : axes) {
      if (axis.size == 0) return;
    }
    if (head.size == 0) return;
    add(static_cast<const char*>(t.src), static_cast<char*>(t.dst), axes, batch, token, head, t.head_dim >= 0, tensor);
  }

  const std::vector<Planned>& layouts() const { return layouts_; }

 private:
  static void push(std::vector<GatherAxis>& axes, const GatherAxis& axis) {
    if (axis.size == 1) return;
    if (!axes.empty() && axes.back().src_stride == axis.size * axis.src_stride &&
        axes.back().dst_stride == axis.size * axis.dst_stride) {
      axes.back() = {axes.back().size * axis.size, axis.src_stride, axis.dst_stride};
    } else {
      axes.push_back(axis);
    }
  }

  // Heads with indices of their own take the place of an outer axis.
  void add(const char* src, char* dst, std::vector<GatherAxis> axes, const GatherAxis& batch, const GatherAxis& token,
           const GatherAxis& head, bool own_heads, uint16_t tensor) {
    GatherLayout layout{};
    const bool bytes_last = !axes.empty() && axes.back().src_stride == 1 && axes.back().dst_stride == 1;
    const int64_t run = bytes_last ? axes.back().size : 1;
    uint64_t alignment = 16 | static_cast<uint64_t>(run) | reinterpret_cast<uintptr_t>(src) |
                         reinterpret_cast<uintptr_t>(dst) | strides_of(batch) | strides_of(head);
    if (token.size > 1) alignment |= static_cast<uint64_t>(token.src_stride);
    if (kept_ > 1) alignment |= static_cast<uint64_t>(token.dst_stride);
    for (size_t i = 0; i + bytes_last < axes.size(); ++i) alignment |= strides_of(axes[i]);
    layout.width = static_cast<int>(alignment & (~alignment + 1));  // lowest bit
    if (bytes_last) {
      axes.pop_back();
      if (run > layout.width) axes.push_back({run / layout.width, layout.width, layout.width});
    }
    while (axes.size() > (own_heads ? 2 : 3)) {  // rare: one entry for each step of the outermost axis
      const GatherAxis outermost = axes.front();
      axes.erase(axes.begin());
      axes.push_back({layout.width, 1, 1});
      for (int64_t i = 0; i < outermost.size; ++i) {
        add(src + i * outermost.src_stride, dst + i * outermost.dst_stride, axes, batch, token, head, own_heads,
            tensor);
      }
      return;
    }
    GatherAxis* const targets[] = {&layout.inner, &layout.outer[0], &layout.outer[1]};
    for (GatherAxis* target : targets) {
      *target = {1, 0, 0};
      if (axes.empty()) continue;
      *target = axes.back();
      axes.pop_back();
    }
    if (own_heads) layout.outer[1] = head;
    layout.src_batch = batch.src_stride;
    layout.dst_batch = batch.dst_stride;
    layout.src_token = token.src_stride;
    layout.dst_token = token.dst_stride;
    layout.tile_inner = static_cast<int>(std::min(layout.inner.size, kTileUnits));
    layout.tile_tokens = static_cast<int>(std::min(kept_, kTileUnits / layout.tile_inner));
    layout.tiles = batch_ * layout.outer[0].size * layout.outer[1].size *
                   (in_place_ ? 1 : (kept_ + layout.tile_tokens - 1) / layout.tile_tokens) *
                   ((layout.inner.size + layout.tile_inner - 1) / layout.tile_inner);
    for (Planned& planned : layouts_) {
      if (!same_layout(planned.layout, layout)) continue;
      planned.entries.push_back({src, dst});
      planned.tensors.push_back(tensor);
      return;
    }
    layouts_.push_back({layout, {{src, dst}}, {tensor}});
  }

  static uint64_t strides_of(const GatherAxis& axis) {
    return axis.size == 1 ? 0 : static_cast<uint64_t>(axis.src_stride) | static_cast<uint64_t>(axis.dst_stride);
  }

  int64_t batch_, kept_;
  bool in_place_;
  std::vector<Planned> layouts_;
};

void run(const std::vector<GatherTensor>& tensors, const IndexView& indices, int64_t batch, int64_t tokens,
         int64_t kept, int* status, Stream stream, bool in_place) {
  if (batch == 0 || kept == 0) return;
  if (tensors.size() > UINT16_MAX + size_t{1}) throw std::runtime_error("a gather takes at most 65536 tensors");
  Plan plan(batch, kept, in_place);
  for (size_t i = 0; i < tensors.size(); ++i) plan.add(tensors[i], static_cast<uint16_t>(i));

  GatherParams p{};
  p.indices = indices.data;
  p.wide = indices.wide;
  p.index_batch_stride = indices.batch_stride;
  p.index_stride = indices.stride;
  p.index_tensor_stride = indices.tensor_stride;
  p.index_head_stride = indices.head_stride;
  p.index_tensors = indices.tensors;
  p.index_heads = indices.heads;
  p.batch = batch;
  p.tokens = tokens;
  p.kept = kept;
  p.status = status;
  int entry_count = 0;
  const auto flush = [&] {
    const int64_t indices_count = p.index_tensors * batch * p.index_heads * kept;
    const int64_t blocks = p.tiles > 0 ? p.tiles : (indices_count + kGatherThreads - 1) / kGatherThreads;
    launch(in_place ? gather_kernel<true> : gather_kernel<false>, std::min(blocks, kMaxBlocks), kGatherThreads, 0,
           stream, p);
    p.status = nullptr;
    p.tiles = 0;
    p.layout_count = entry_count = 0;
  };
  for (const Planned& planned : plan.layouts()) {
    for (size_t next = 0; next < planned.entries.size();) {
      if (p.layout_count == GatherParams::kMaxLayouts || entry_count == GatherParams::kMaxEntries) flush();
      const size_t count =
          std::min(planned.entries.size() - next, static_cast<size_t>(GatherParams::kMaxEntries - entry_count));
      GatherLayout& layout = p.layouts[p.layout_count++];
      layout = planned.layout;
      layout.first_entry = entry_count;
      layout.first_tile = p.tiles;
      for (size_t i = 0; i < count; ++i, ++next) {
        p.tensors[entry_count] = planned.tensors[next];
        p.entries[entry_count++] = planned.entries[next];
      }
      p.tiles += layout.tiles * static_cast<int64_t>(count);
    }
  }
  if (p.tiles > 0 || p.status != nullptr) flush();
}

}  // namespace

void gather(const std::vector<GatherTensor>& tensors, const IndexView& indices, int64_t batch, int64_t tokens,
            int64_t kept, int* status, Stream stream) {
  run(tensors, indices, batch, tokens, kept, status, stream, false);
}

void gather_inplace(const std::vector<GatherTensor>& tensors, const IndexView& indices, int64_t batch, int64_t tokens,
                    int64_t kept, int* status, Stream stream) {
  run(tensors, indices, batch, tokens, kept, status, stream, true);
}

}  // namespace vtkernels::cuda
