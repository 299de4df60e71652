// The logarithm of the chance that a model gives each token of a text, for tests/oracle:
//
//     perplexity MODEL < IDS
//
// IDS: windows of token ids, one a line, none longer than kWindow. Prints one line a window, the
// natural logarithms from its second token on. On the CPU, alone, the whole window in one step.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <iostream>
#include <numeric>
#include <sstream>
#include <thread>

#include "engine/base/thread_pool.h"
#include "engine/model/cost.h"
#include "engine/model/decoder.h"
#include "engine/worker/kv_cache.h"

namespace millrace {
namespace {

constexpr int32_t kWindow = 512;

std::vector<double> logprobs(
    Decoder& decoder, KvCache& cache, Device& device, const std::vector<int32_t>& ids) {
  const auto count = static_cast<int32_t>(ids.size());
  const std::vector<int32_t> cu_tokens = {0, count};
  std::vector<int32_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<uint32_t> table(kWindow / 16);
  std::iota(table.begin(), table.end(), 0u);
  const uint32_t* tables[] = {table.data()};
  const Tensor hidden = device.tensor(DType::kF32, {count, decoder.hidden_size()}, "hidden");
  std::atomic<uint64_t> progress{0};
  decoder.embed(ids, hidden.view);
  decoder.forward(hidden.view, {count, 16, cu_tokens, positions, tables}, cache.views(), progress);
  decoder.compute_logits(hidden.view, positions);
  const TensorView logits = decoder.gather_logits(count);
  std::vector<double> result;
  for (size_t i = 1; i < ids.size(); ++i) {
    const std::span row(
        logits.row_as<float>(static_cast<int64_t>(i) - 1), static_cast<size_t>(logits.cols()));
    double sum = 0;
    const double max = *std::ranges::max_element(row);
    for (const float logit : row) sum += std::exp(logit - max);
    result.push_back(row[static_cast<size_t>(ids[i])] - max - std::log(sum));
  }
  return result;
}

int run(const std::string& path) {
  const auto model = open_checkpoint(path);
  const auto device = make_cpu_device();
  ThreadPool pool(static_cast<int>(std::thread::hardware_concurrency()));
  const auto ops = make_cpu_ops(pool);
  DeviceComm comm;
  TpOps tp(comm);
  const Stage stage = cut_stages(model->config(), EngineConfig()).front();
  Decoder decoder(*model, stage, {kWindow, kWindow, kWindow}, *ops, tp, *device, [] {});
  KvCache cache(*device, decoder.num_layers(), decoder.attention_shape(), 16, kWindow / 16);
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::vector<int32_t> ids;
    for (int32_t id = 0; words >> id;) ids.push_back(id);
    CHECK(ids.size() >= 2 && ids.size() <= kWindow, "a window of {} tokens", ids.size());
    fmt::print("{}\n", fmt::join(logprobs(decoder, cache, *device, ids), " "));
  }
  return 0;
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  return millrace::run(argv[1]);
}
