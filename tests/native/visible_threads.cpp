// The one function of an OpenMP runtime that the kernels look for, with threads whose start and end ThreadSanitizer sees. It does not
// see those of libgomp, and takes all that happens after a parallel region for a race with what happened in it.
#include <thread>
#include <vector>

extern "C" void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(body, data);
  body(data);
  for (std::thread& other : others) other.join();
}
