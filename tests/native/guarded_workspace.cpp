// Workspaces that keep nothing between calls: exactly as large as asked for, so that a sanitizer sees an access beyond the end,
// and filled with NaN, so that a result that depends on memory nobody wrote is wrong.
#include "workspace.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace truesparse {

Workspace::Workspace(size_t bytes) : bytes_(bytes) {
  if (posix_memalign(&data_, 64, bytes_)) throw std::bad_alloc();
  std::memset(data_, 0xff, bytes_);
}

Workspace::~Workspace() { std::free(data_); }

}  // namespace truesparse
