// Which pages are free, and which hold what of whom: the scheduler's side of the engine. No torch.
#pragma once

#include <cstdint>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "vtkernels/c_api.h"

namespace engine {

struct OutOfPages : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename Got, typename Allowed>
[[noreturn]] void refuse(const char* call, const char* arg, const Got& got, const Allowed& allowed) {
  std::ostringstream out;
  out << call << ": `" << arg << "` is " << got << ", allowed: " << allowed;
  throw std::invalid_argument(out.str());
}

inline void check(bool ok, const char* call, const char* arg, int64_t got, const std::string& allowed) {
  if (!ok) refuse(call, arg, got, allowed);
}

inline std::string range(int64_t from, int64_t to) { return std::to_string(from) + " to " + std::to_string(to); }

struct Request {
  std::vector<int32_t> pages;
  int64_t length;                // tokens in the cache
  int64_t span_start, span_len;  // the visual tokens among them
  std::vector<float> scores;     // of those, from the last pruning: low ones are worth keeping
};

class PageTable {
 public:
  PageTable(int64_t pages, int64_t page_size) : page_size(page_size) {
    for (int64_t page = pages; page-- > 0;) free_.push_back(static_cast<int32_t>(page));
  }

  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }
  int64_t pages_of(int64_t tokens) const { return (tokens + page_size - 1) / page_size; }

  Request& at(const char* call, int64_t id) {
    const auto found = requests_.find(id);
    if (found == requests_.end()) refuse(call, "request", id, "a request that was admitted and not released");
    return found->second;
  }

  int64_t admit(int64_t tokens, int64_t span_start, int64_t span_len) {
    Request request{{}, 0, span_start, span_len, {}};
    grow("admit", request, tokens);
    requests_.emplace(next_, std::move(request));
    return next_++;
  }

  // Room for further tokens at the end of a request: all of it, or an error and nothing.
  void grow(const char* call, Request& request, int64_t tokens) {
    const int64_t needed = pages_of(request.length + tokens) - static_cast<int64_t>(request.pages.size());
    if (needed > free_pages()) {
      throw OutOfPages(std::string(call) + ": needs " + std::to_string(needed) +
                       " pages, free: " + std::to_string(free_pages()) + "; prune, shrink or release a request first");
    }
    for (int64_t i = 0; i < needed; ++i) {
      request.pages.push_back(free_.back());
      free_.pop_back();
    }
    request.length += tokens;
  }

  int64_t slot(const Request& request, int64_t position) const {
    return int64_t{request.pages[position / page_size]} * page_size + position % page_size;
  }

  // After a compaction: `freed` pages (-1 padded) hold nothing of the request any more.
  void compacted(Request& request, int64_t length, int64_t span_len, const int32_t* freed, int64_t count) {
    for (int64_t i = 0; i < count && freed[i] >= 0; ++i) {
      for (auto page = request.pages.begin(); page != request.pages.end(); ++page) {
        if (*page != freed[i]) continue;
        request.pages.erase(page);
        free_.push_back(freed[i]);
        break;
      }
    }
    request.length = length;
    request.span_len = span_len;
  }

  void release(int64_t id) {
    const Request& request = at("release", id);
    free_.insert(free_.end(), request.pages.begin(), request.pages.end());
    requests_.erase(id);
  }

  // Positions in the cache that stay when `keep` visual tokens do, ascending.
  static std::vector<int64_t> best(const Request& request, int64_t keep) {
    std::vector<int64_t> kept(keep), positions;
    vtk_cpu_select_topk(request.scores.data(), request.span_len, keep, /*largest=*/0, kept.data());
    for (int64_t i = 0; i < request.span_start; ++i) positions.push_back(i);
    for (const int64_t i : kept) positions.push_back(request.span_start + i);
    for (int64_t i = request.span_start + request.span_len; i < request.length; ++i) positions.push_back(i);
    return positions;
  }

  const int64_t page_size;

 private:
  std::vector<int32_t> free_;
  std::map<int64_t, Request> requests_;
  int64_t next_ = 0;
};

}  // namespace engine
