#include "workspace.h"

#if defined(_WIN32)
#include <malloc.h>
#else
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace truesparse {
namespace {

struct Buffer {
  void* data;
  size_t bytes;
};

constexpr size_t large_page = size_t{2} << 20;
constexpr size_t largest_kept = size_t{64} << 20;
constexpr size_t most_kept = 8;
std::mutex mutex;

// Never destroyed: a thread may still return a buffer while the process ends.
std::vector<Buffer>& kept() {
  static auto* buffers = new std::vector<Buffer>;
  return *buffers;
}

void* allocate(size_t alignment, size_t bytes) {
#if defined(_WIN32)
  return _aligned_malloc(bytes, alignment);
#else
  return std::aligned_alloc(alignment, bytes);
#endif
}

void release(void* data) {
#if defined(_WIN32)
  _aligned_free(data);
#else
  std::free(data);
#endif
}

}  // namespace

void use_large_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t begin = (address + large_page - 1) / large_page * large_page, end = (address + bytes) / large_page * large_page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

Workspace::Workspace(size_t bytes) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    auto& buffers = kept();
    size_t best = buffers.size();
    for (size_t i = 0; i < buffers.size(); ++i)
      if (buffers[i].bytes >= bytes && (best == buffers.size() || buffers[i].bytes < buffers[best].bytes)) best = i;
    if (best < buffers.size()) {
      data_ = buffers[best].data;
      bytes_ = buffers[best].bytes;
      buffers.erase(buffers.begin() + static_cast<std::ptrdiff_t>(best));
      return;
    }
  }
  const size_t alignment = bytes >= large_page / 2 ? large_page : 4096;
  bytes_ = (bytes / alignment + 1) * alignment;
  data_ = allocate(alignment, bytes_);
  if (!data_) throw std::bad_alloc();
  // Packed planes are walked in many places at once: with small pages, looking up addresses costs more than the loads.
  use_large_pages(data_, bytes_);
}

Workspace::~Workspace() {
  if (bytes_ <= largest_kept) {
    const std::lock_guard<std::mutex> lock(mutex);
    auto& buffers = kept();
    if (buffers.size() < most_kept) {
      buffers.push_back({data_, bytes_});
      return;
    }
    for (auto& buffer : buffers)
      if (buffer.bytes < bytes_) {  // the larger one serves more calls
        release(buffer.data);
        buffer = {data_, bytes_};
        return;
      }
  }
  release(data_);
}

}  // namespace truesparse
