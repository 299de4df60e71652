// What a long prompt does to sequences that decode, and they to it.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json/serialize.hpp>

#include "engine/base/log.h"
#include "launch/bench/bench.h"
#include "launch/bench/load.h"

namespace millrace {

namespace {

constexpr int32_t kWindow = 64;  // tokens of each decoder before the prompt comes, and after

struct Figures {
  double alone_s = 0;       // the prompt's first token, nothing else running
  double ttft_s = 0;        // the same among the decoders
  Percentiles undisturbed;  // seconds between tokens of the decoders: the windows
  Percentiles during;       // and those that the prompt's time touches
};

class Interference {
 public:
  Interference(const BenchConfig& config, EngineApi& engine, int32_t vocab, int32_t max_model_len)
      : config_(config), engine_(engine), vocab_size_(vocab), random_(config.seed) {
    decoder_ = {0, config.context, max_model_len - config.context};
    prompt_ = {0, config.prompt_len, 1};
  }

  Figures run() {
    Figures figures;
    const auto alone = run_load(engine_, {prompt_}, vocab_size_, random_);
    figures.alone_s = alone->token_s[0].at(0) - alone->sent_s[0];
    const auto load = std::make_shared<Load>();
    std::vector<RequestId> ids;
    const auto num_decoders = static_cast<size_t>(config_.num_decoders);
    for (size_t i = 0; i < num_decoders; ++i) {
      ids.push_back(send(load, engine_, decoder_, vocab_size_, random_).second);
    }
    const std::vector<size_t> decoding = after(*load, std::vector<size_t>(num_decoders));
    after(*load, decoding);
    const double began = load->now_s();
    const size_t prompt = send(load, engine_, prompt_, vocab_size_, random_).first;
    wait_until(*load, [&] { return !load->token_s[prompt].empty(); });
    std::vector<size_t> counts(num_decoders);
    {
      const std::lock_guard lock(load->mutex);
      for (size_t i = 0; i < num_decoders; ++i) counts[i] = load->token_s[i].size();
    }
    after(*load, counts);
    for (const RequestId id : ids) engine_.cancel(id);
    const std::lock_guard lock(load->mutex);
    const double ended = load->token_s[prompt][0];
    figures.ttft_s = ended - load->sent_s[prompt];
    std::vector<double> undisturbed, during;
    for (size_t i = 0; i < num_decoders; ++i) {
      const std::vector<double>& at = load->token_s[i];
      for (size_t t = decoding[i]; t < at.size(); ++t) {
        (at[t] > began && at[t - 1] < ended ? during : undisturbed).push_back(at[t] - at[t - 1]);
      }
    }
    figures.undisturbed = percentiles(std::move(undisturbed));
    figures.during = percentiles(std::move(during));
    return figures;
  }

 private:
  // Waits until every decoder has a window of tokens more than `counts`; how many they have then.
  std::vector<size_t> after(Load& load, std::vector<size_t> counts) {
    wait_until(load, [&] {
      for (size_t i = 0; i < counts.size(); ++i) {
        if (load.token_s[i].size() < counts[i] + kWindow) return false;
      }
      return true;
    });
    const std::lock_guard lock(load.mutex);
    for (size_t i = 0; i < counts.size(); ++i) counts[i] = load.token_s[i].size();
    return counts;
  }

  const BenchConfig& config_;
  EngineApi& engine_;
  const int32_t vocab_size_;
  std::mt19937_64 random_;
  Arrival decoder_, prompt_;
};

}  // namespace

BenchReport bench_interference(
    const BenchConfig& config, EngineApi& engine, int32_t vocab_size, int32_t max_model_len) {
  if (config.num_decoders < 1 || config.context < 1 || config.prompt_len < 1 ||
      config.prompt_len >= max_model_len || int64_t{config.context} + 8 * kWindow > max_model_len) {
    throw Error(ExitCode::kUsage,
        "--decoders, --context and --prompt-len take numbers from 1 on; the context of {} tokens "
        "must hold the prompt, and --context with {} tokens more",
        max_model_len, 8 * kWindow);
  }
  Interference interference(config, engine, vocab_size, max_model_len);
  for (int32_t i = 0; i < config.num_warmup; ++i) {
    interference.run();
    log::info("warm-up {} of {}", i + 1, config.num_warmup);
  }
  const Figures f = interference.run();
  const double itl_ratio = f.during.p99 / f.undisturbed.p99;
  const double ttft_ratio = f.ttft_s / f.alone_s;
  boost::json::object json = {{"decoders", config.num_decoders}, {"context", config.context},
      {"prompt_len", config.prompt_len}, {"undisturbed_itl_p99_ms", f.undisturbed.p99 * 1e3},
      {"itl_p99_ms", f.during.p99 * 1e3}, {"itl_ratio", itl_ratio},
      {"ttft_alone_ms", f.alone_s * 1e3}, {"ttft_ms", f.ttft_s * 1e3}, {"ttft_ratio", ttft_ratio}};
  std::string table = fmt::format(
      "interference: a prompt of {} among {} that decode at {}\n"
      "  p99 between tokens {:10.2f} ms undisturbed{:10.2f} ms beside the prompt{:8.2f} x\n"
      "  first token        {:10.2f} ms alone      {:10.2f} ms among them       {:8.2f} x\n",
      config.prompt_len, config.num_decoders, config.context, f.undisturbed.p99 * 1e3,
      f.during.p99 * 1e3, itl_ratio, f.alone_s * 1e3, f.ttft_s * 1e3, ttft_ratio);
  return {std::move(table), boost::json::serialize(json)};
}

}  // namespace millrace
