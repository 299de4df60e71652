#include "launch/bench/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "engine/model/families.h"

namespace millrace {

namespace {

constexpr int64_t kBufferBytes = int64_t{512} << 20;
constexpr int kPasses = 5;

}  // namespace

double measure_read_bandwidth() {
  const unsigned num_threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<uint64_t> buffer(static_cast<size_t>(kBufferBytes) / sizeof(uint64_t), 1);
  const size_t share = buffer.size() / num_threads;
  std::atomic<uint64_t> sink{0};  // so that no read can be left out
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < num_threads; ++t) {
      threads.emplace_back([&, t] {
        uint64_t sums[8] = {};
        const uint64_t* words = buffer.data() + t * share;
        for (size_t i = 0; i + 8 <= share; i += 8) {
          for (size_t j = 0; j < 8; ++j) sums[j] += words[i + j];
        }
        for (const uint64_t sum : sums) sink += sum;
      });
    }
    for (auto& thread : threads) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, static_cast<double>(share * num_threads * 8) / seconds.count());
  }
  return best;
}

int64_t streamed_weight_bytes(const Checkpoint& model) {
  int64_t bytes = 0;
  for (const ExpectedTensor& tensor : expected_tensors(model.config())) {
    if (tensor.name == "model.embed_tokens.weight" && !model.config().tie_embeddings) continue;
    int64_t count = 1;
    for (const int64_t size : tensor.shape) count *= size;
    bytes += dtype_bytes(model.find(tensor.name)->dtype, count);
  }
  return bytes;
}

}  // namespace millrace
