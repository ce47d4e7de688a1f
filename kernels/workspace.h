// Where do packed tensors live? In buffers that are kept between calls: fresh pages cost as much as the packing itself.
#pragma once

#include <cstddef>
#include <cstdint>

namespace truesparse {

class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  template <class T>
  T* as(size_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + offset_bytes);
  }

 private:
  void* data_;
  size_t bytes_;
};

// Asks for large pages under what lies whole in them; a wish, which systems may ignore.
void use_large_pages(void* data, size_t bytes);

// Bytes of `count` elements, rounded up to whole cache lines.
template <class T>
size_t lines(int64_t count) {
  return (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
}

}  // namespace truesparse
