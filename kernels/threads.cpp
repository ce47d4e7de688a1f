#include "threads.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>

namespace truesparse {
namespace {

// The entry point GCC emits for `#pragma omp parallel`; Intel's and LLVM's runtimes offer it too.
using Parallel = void(void (*)(void*), void*, unsigned threads, unsigned flags);

struct Runtime {
  Parallel* parallel = nullptr;
  std::string path;
};

#if defined(__linux__)
int visit(dl_phdr_info* info, size_t, void* data) {
  auto* runtime = static_cast<Runtime*>(data);
  const char* path = info->dlpi_name ? info->dlpi_name : "";
  const char* slash = std::strrchr(path, '/');
  const char* name = slash ? slash + 1 : path;
  if (std::strncmp(name, "libgomp", 7) && std::strncmp(name, "libiomp5", 8) && std::strncmp(name, "libomp", 6)) return 0;
  void* handle = dlopen(path, RTLD_NOLOAD | RTLD_LAZY);
  if (!handle) return 0;
  runtime->parallel = reinterpret_cast<Parallel*>(dlsym(handle, "GOMP_parallel"));
  runtime->path = path;
  return runtime->parallel ? 1 : 0;  // 1 ends the search; the handle stays open, the runtime stays loaded
}
#endif

// Looked for until found: torch may be imported after this module.
const Runtime& runtime() {
  static std::mutex mutex;
  static Runtime found;
  static std::atomic<bool> done{false};
  if (!done.load(std::memory_order_acquire)) {
    const std::lock_guard<std::mutex> lock(mutex);
#if defined(__linux__)
    if (!found.parallel) dl_iterate_phdr(visit, &found);
#endif
    if (!found.parallel) {
      static const Runtime none;
      return none;
    }
    done.store(true, std::memory_order_release);
  }
  return found;
}

struct Job {
  int64_t items;
  void (*body)(void*, int64_t, int64_t);
  void* context;
  int64_t before;
  std::atomic<int64_t> next_item{0}, next_slot{0}, done_before{0};
};

void work(void* data) {
  auto* job = static_cast<Job*>(data);
  const int64_t slot = job->next_slot.fetch_add(1);
  for (int64_t item; (item = job->next_item.fetch_add(1)) < job->items;) {
    // Nothing is waited for but items that a thread is already working on, so this ends.
    if (item >= job->before)
      while (job->done_before.load(std::memory_order_acquire) < job->before) std::this_thread::yield();
    job->body(job->context, slot, item);
    if (item < job->before) job->done_before.fetch_add(1, std::memory_order_release);
  }
}

}  // namespace

std::string threading() {
  const Runtime& found = runtime();
  return found.parallel ? "openmp: " + found.path : "serial: no OpenMP runtime loaded";
}

void parallel_for(int64_t items, int64_t threads, void (*body)(void*, int64_t, int64_t), void* context, int64_t before) {
  const int64_t team = std::min(items, threads);
  Parallel* parallel = team > 1 ? runtime().parallel : nullptr;
  if (!parallel) {
    for (int64_t item = 0; item < items; ++item) body(context, 0, item);
    return;
  }
  Job job{items, body, context, before};
  parallel(work, &job, static_cast<unsigned>(team), 0);
}

}  // namespace truesparse
