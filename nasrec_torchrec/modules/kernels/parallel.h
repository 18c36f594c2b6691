// Work in equal parts on a few threads, with scratch memory for each.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

// Calls part(first, last, scratch) so that every one of count items is in one part. An item is computed alike on
// whichever thread, so results do not depend on how many there are. Threads are started for the call: unlike those of a
// pool they survive a fork of the process. Throws std::bad_alloc where there is no memory left.
template <class Part>
void in_parallel(int64_t count, int64_t scratch_bytes, int64_t threads, Part part) {
  threads = std::max<int64_t>(1, std::min(threads, count));
  scratch_bytes = (scratch_bytes + kBytes - 1) / kBytes * kBytes;
  const std::align_val_t alignment{kBytes};
  auto* scratch = static_cast<char*>(::operator new(threads * scratch_bytes, alignment));
  const auto run = [&](int64_t t) { part(count * t / threads, count * (t + 1) / threads, scratch + t * scratch_bytes); };
  std::vector<std::thread> others;
  others.reserve(threads);
  for (int64_t t = 1; t < threads; ++t) {
    try {
      others.emplace_back(run, t);
    } catch (const std::system_error&) {  // the machine has no thread left
      run(t);
    }
  }
  run(0);
  for (auto& thread : others) thread.join();
  ::operator delete(scratch, alignment);
}
