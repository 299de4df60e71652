#include "launch/bench/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "engine/base/log.h"
#include "engine/model/families.h"

namespace millrace {

namespace {

constexpr int64_t kBufferBytes = int64_t{512} << 20;
constexpr int kPasses = 5;

// Bytes per second that all cores of this host together read from memory: the best of several
// passes over a buffer far larger than the caches.
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

// The best of several copies by one thread, as a rank makes them.
double measure_copy_bandwidth() {
  std::vector<uint8_t> from(kBufferBytes / 4, 1), to(from.size());
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    std::copy(from.begin(), from.end(), to.begin());
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::max(best, static_cast<double>(to.size()) / seconds.count());
  }
  return best;
}

}  // namespace

DeviceLimits measure_device(DeviceKind device, bool with_peers) {
  log::info("measuring the device's limits");
  if (device == DeviceKind::kCuda) return measure_cuda_limits(with_peers);
  return {.read_bytes_per_s = measure_read_bandwidth(),
      .peer_bytes_per_s = with_peers ? measure_copy_bandwidth() : 0};
}

double Limits::decode_step_s(double rows, double context) const {
  const double compute = device.flops > 0 ? rows * flop_per_token / device.flops : 0;
  return std::max(compute, weight_bytes / device.read_bytes_per_s) +
         rows * context * kv_bytes / device.read_bytes_per_s;
}

double Limits::prompt_s(double length) const {
  // The head only for the last token. Causal: a token attends to half of the prompt on average.
  const double flop =
      length * (flop_per_token - head_flop + attention_flop * length / 2) + head_flop;
  return device.flops > 0 ? flop / device.flops : 0;
}

double Limits::request_s(double input, double output) const {
  if (device.flops <= 0) return 0;
  const double reads = output * (input + output / 2) * kv_bytes / device.read_bytes_per_s;
  return (prompt_s(input) + output * flop_per_token / device.flops + reads) / stages;
}

Limits measure_limits(const Checkpoint& model, const EngineConfig& engine) {
  const bool gpu = engine.device == DeviceKind::kCuda;
  Limits limits;
  limits.device = measure_device(engine.device, /*with_peers=*/false);
  if (gpu) {
    limits.device.read_bytes_per_s *= engine.tp;
    limits.device.flops *= engine.tp;
  }
  const ModelConfig& config = model.config();
  const double held_bytes = engine.dtype == ActivationType::kFloat32 ? 4 : 2;
  for (const ExpectedTensor& tensor : expected_tensors(config)) {
    if (tensor.name == "model.embed_tokens.weight" && !config.tie_embeddings) continue;
    int64_t count = 1;
    for (const int64_t size : tensor.shape) count *= size;
    const auto stored = static_cast<double>(dtype_bytes(model.find(tensor.name)->dtype, count));
    limits.weight_bytes += gpu ? static_cast<double>(count) * held_bytes : stored;
    if (tensor.shape.size() > 1) limits.flop_per_token += 2.0 * static_cast<double>(count);
  }
  limits.stages = engine.pp;
  limits.head_flop = 2.0 * config.hidden_size * config.vocab_size;
  const double width = static_cast<double>(config.num_layers) * config.head_dim;
  limits.kv_bytes = 2 * width * config.num_kv_heads * (gpu ? held_bytes : 4);
  limits.attention_flop = 4 * width * config.num_heads;
  return limits;
}

}  // namespace millrace
