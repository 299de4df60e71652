#include "launch/sim/simulate.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <filesystem>

#include "engine/base/file.h"
#include "engine/base/status.h"
#include "launch/bench/load.h"
#include "launch/bench/saved_model.h"
#include "launch/sim/simulation.h"

namespace millrace {

namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxConfigBytes = 1 << 20;
constexpr int32_t kSequencesPerStage = 256;
constexpr int32_t kMaxSlots = 65535;
constexpr int32_t kAnyVocabulary = 32'000;  // ids of prompts that are only told apart
constexpr int32_t kMaxReplicas = 4096;
constexpr double kSteadyBegin = 0.3, kSteadyEnd = 0.8;  // shares of the requests that have ended
// Requests for each that may run at once, from which on there is such a part.
constexpr int kSteadyRounds = 4;

// The folder of `shape`: itself, or a name under configs/shapes here or beside the build.
std::string find_shape(const std::string& shape) {
  if (shape.empty()) {
    throw Error(ExitCode::kUsage,
        "simulate needs --shape: a folder with config.json, or a name under configs/shapes");
  }
  std::error_code ignored;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  const fs::path shapes[] = {"configs/shapes", program / "../configs/shapes"};
  std::vector<fs::path> folders = {shape};
  for (const fs::path& place : shapes) folders.push_back(place / shape);
  for (const fs::path& folder : folders) {
    if (fs::exists(folder / "config.json", ignored)) return folder.string();
  }
  std::vector<std::string> known;
  for (const fs::path& place : shapes) {
    for (const auto& entry : fs::directory_iterator(place, ignored)) {
      known.push_back(entry.path().filename());
    }
    if (!known.empty()) break;
  }
  std::ranges::sort(known);
  throw Error(ExitCode::kUsage, "--shape {}: no folder with config.json; configs/shapes has {}",
      shape, known.empty() ? "none here" : fmt::format("{}", fmt::join(known, ", ")));
}

ReplicaConfig replica_config(const SimulateConfig& config) {
  if (!config.step_model.empty()) {
    SavedModel saved = read_step_model(config.step_model);
    ReplicaConfig measured{.engine = std::move(saved.engine), .num_blocks = saved.num_blocks};
    measured.model.vocab_size = kAnyVocabulary;
    measured.step_models = std::move(saved.stages);
    measured.max_stretch = config.max_itl_stretch;
    measured.balance = config.balance;
    return measured;
  }
  const std::string path = find_shape(config.shape) + "/config.json";
  ReplicaConfig replica;
  replica.model = parse_hf_config(read_file(path, kMaxConfigBytes, ExitCode::kModel), "", path);
  replica.engine = config.engine;
  replica.engine.model_path = config.shape;
  if (replica.engine.max_num_seqs == 0) {
    replica.engine.max_num_seqs = std::min(kSequencesPerStage * config.engine.pp, kMaxSlots);
  }
  replica.gpu = find_gpu(config.gpu);
  replica.gpus_per_host = config.gpus_per_host;
  replica.max_stretch = config.max_itl_stretch;
  replica.balance = config.balance;
  replica.network_bytes_per_s = config.network_gbit_per_s / 8 * 1e9;
  return replica;
}

// What a replica does when requests never run out.
struct Saturation {
  double tokens_per_s = 0;  // computed: prompts and outputs
  double requests_per_s = 0;
  double bubble_fraction = 0;
  uint32_t num_blocks = 0;
};

Saturation saturate(const ReplicaConfig& replica, std::vector<Arrival> arrivals, uint64_t seed) {
  double tokens = 0;
  for (Arrival& arrival : arrivals) {
    arrival.at_s = 0;
    tokens += arrival.prompt_tokens + arrival.output_tokens - 1;
  }
  const SimResult result = simulate(replica, /*num_replicas=*/1, arrivals, seed);
  // Few requests are no steady state: most of them begin and end together.
  const bool endless = std::ssize(arrivals) >= int64_t{kSteadyRounds} * replica.engine.max_num_seqs;
  const Span steady = endless ? result.between(kSteadyBegin, kSteadyEnd) : result.between(0, 1);
  const double rate = result.tokens_per_s(steady);
  return {.tokens_per_s = rate,
      .requests_per_s = rate * static_cast<double>(arrivals.size()) / tokens,
      .bubble_fraction = result.bubble_fraction(steady),
      .num_blocks = result.replicas[0].num_blocks};
}

// One stage alone, with its share of the sequences and of the cache.
ReplicaConfig one_stage(const ReplicaConfig& replica, uint32_t num_blocks) {
  ReplicaConfig one = replica;
  const int32_t pp = replica.engine.pp;
  one.engine.pp = 1;
  one.engine.pp_layers.clear();
  if (!one.step_models.empty()) {  // all layers on one stage: the sum of their times
    StepModel::Terms sum{};
    for (const StepModel& stage : replica.step_models) {
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += stage.weights()[i];
    }
    one.step_models = {StepModel(sum)};
  }
  one.engine.max_num_seqs = std::max(1, replica.engine.max_num_seqs / pp);
  one.num_blocks = std::max(1u, num_blocks / static_cast<uint32_t>(pp));
  return one;
}

// What the clients of the requests that came from `begin` to `end` saw, in ms.
struct Latencies {
  Percentiles ttft, tpot, itl;
};

Latencies latencies(const SimResult& result, size_t begin, size_t end) {
  std::vector<double> ttft, tpot, itl;
  for (size_t i = begin; i < end; ++i) {
    const Outcome& outcome = result.outcomes[i];
    const auto& at = outcome.token_s;
    if (!outcome.done) continue;
    ttft.push_back((at.front() - outcome.arrival.at_s) * 1e3);
    for (size_t t = 1; t < at.size(); ++t) itl.push_back((at[t] - at[t - 1]) * 1e3);
    if (at.size() < 2) continue;
    tpot.push_back((at.back() - at.front()) * 1e3 / static_cast<double>(at.size() - 1));
  }
  return {percentiles(std::move(ttft)), percentiles(std::move(tpot)), percentiles(std::move(itl))};
}

void check(const SimulateConfig& config) {
  if (!(config.load > 0 && config.load <= 1)) {
    throw Error(
        ExitCode::kUsage, "--load {}: write a share of saturation above 0, at most 1", config.load);
  }
  if (!(config.rate >= 0 && config.lengths.variation >= 0 && config.network_gbit_per_s > 0)) {
    throw Error(ExitCode::kUsage,
        "--rate and --length-variation take numbers from 0 on, --network-gbit-per-s one above 0");
  }
  if (config.rate > 0 && !config.trace.empty()) {
    throw Error(
        ExitCode::kUsage, "--rate and --trace: a trace has its own times; give one of them");
  }
}

// Everything that the report says, in its order.
struct Findings {
  ReplicaConfig replica;
  Saturation saturation;        // of one replica
  double throughput_ratio = 0;  // of it, to pp stages that each are alone
  int replicas;
  double rate;  // requests a second that came
  SimResult result;
  Span window;         // what the rest is of
  size_t first, last;  // requests that came in it
};

Findings investigate(const SimulateConfig& config) {
  check(config);
  const ReplicaConfig replica = replica_config(config);
  const EngineConfig& engine = replica.engine;
  const int32_t context =
      engine.max_model_len > 0 ? engine.max_model_len : replica.model.max_position;
  const int32_t count = config.num_requests > 0 ? config.num_requests : 8 * engine.max_num_seqs;
  std::vector<Arrival> trace;
  if (!config.trace.empty()) trace = read_trace(config.trace, context);
  std::vector<Arrival> arrivals;
  if (trace.empty()) {
    arrivals = draw_lengths(config.lengths, count, context, config.seed);
  } else {
    for (int32_t i = 0; i < count; ++i)
      arrivals.push_back(trace[static_cast<size_t>(i) % trace.size()]);
  }

  Findings found{.replica = replica, .saturation = saturate(replica, arrivals, config.seed)};
  const auto share = std::max<size_t>(1, arrivals.size() / static_cast<size_t>(engine.pp));
  const Saturation one = saturate(one_stage(replica, found.saturation.num_blocks),
      {arrivals.begin(), arrivals.begin() + static_cast<std::ptrdiff_t>(share)}, config.seed);
  // Few requests saturate nothing.
  if (one.tokens_per_s > 0) {
    found.throughput_ratio = found.saturation.tokens_per_s / (engine.pp * one.tokens_per_s);
  }

  const double carried = config.load * found.saturation.requests_per_s;  // by each replica
  found.rate = config.rate;
  if (!trace.empty()) {
    const double seconds = trace.back().at_s - trace.front().at_s;
    found.rate = seconds > 0 ? static_cast<double>(trace.size()) / seconds : carried;
  }
  const double needed = carried > 0 ? std::ceil(found.rate / carried) : 1;
  if (config.replicas == 0 && needed > kMaxReplicas) {
    throw Error(ExitCode::kUsage,
        "{} requests/s would take {} replicas, at most {} are simulated: lower --rate", found.rate,
        needed, kMaxReplicas);
  }
  found.replicas = config.replicas > 0 ? config.replicas : std::max(1, static_cast<int>(needed));
  if (found.rate == 0) found.rate = carried * found.replicas;
  if (trace.empty()) draw_times(arrivals, found.rate, config.seed);
  found.result = simulate(replica, found.replicas, trace.empty() ? arrivals : trace, config.seed);
  // What was asked for counts whole; of a stream that could go on for ever the steady part counts.
  const bool endless = trace.empty() && config.rate == 0;
  found.window =
      endless ? found.result.between(kSteadyBegin, kSteadyEnd) : found.result.between(0, 1);
  const auto& outcomes = found.result.outcomes;
  const auto index_at = [&](double time) {
    return static_cast<size_t>(std::ranges::partition_point(outcomes, [&](const Outcome& outcome) {
      return outcome.arrival.at_s < time;
    }) - outcomes.begin());
  };
  found.first = index_at(found.window.begin);
  found.last = index_at(found.window.end);
  return found;
}

}  // namespace

SimulateReport run_simulation(const SimulateConfig& config) {
  const Findings found = investigate(config);
  const EngineConfig& engine = found.replica.engine;
  const SimResult& result = found.result;
  const Latencies seen = latencies(result, found.first, found.last);
  const bool measured = !config.step_model.empty();
  const std::string& what = measured ? config.step_model : config.shape;
  const std::string on = measured ? "measured" : config.gpu;
  const int gpus = engine.tp * engine.pp * found.replicas;
  const auto num_done = std::ranges::count_if(result.outcomes, &Outcome::done);
  const double bubble = result.bubble_fraction(found.window);
  const double tokens_per_s = result.tokens_per_s(found.window);
  double busy = 0, comm = 0;
  boost::json::array layers, stage_busy;
  const double all = result.outcomes.empty() ? 0 : result.between(0, 1).end;
  for (const Replica::StageTimes& stage : result.replicas[0].stages) {
    layers.push_back(stage.num_layers);
    stage_busy.push_back(all > 0 ? stage.busy_s / all : 0);
    busy += stage.busy_s + stage.transfer_s;
    comm += stage.reduce_s + stage.transfer_s;
  }
  const double exposed = busy > 0 ? comm / busy : 0;
  boost::json::object json = {{"shape", what}, {"gpu", on}, {"tp", engine.tp}, {"pp", engine.pp},
      {"replicas", found.replicas}, {"gpus", gpus}, {"layers_of_stages", std::move(layers)},
      {"max_num_seqs", engine.max_num_seqs},
      {"kv_cache_tokens", int64_t{result.replicas[0].num_blocks} * engine.block_size},
      {"seed", static_cast<int64_t>(config.seed)}, {"load", config.load},
      {"requests", result.outcomes.size()},
      {"refused", result.outcomes.size() - static_cast<size_t>(num_done)},
      {"offered_requests_per_s", found.rate}, {"tokens_per_s", tokens_per_s},
      {"saturation_requests_per_s", found.saturation.requests_per_s * found.replicas},
      {"saturation_tokens_per_s", found.saturation.tokens_per_s * found.replicas},
      {"saturation_bubble_fraction", found.saturation.bubble_fraction},
      {"throughput_ratio", found.throughput_ratio}, {"stage_bubble_fraction", bubble},
      {"exposed_comm_fraction", exposed}, {"stage_busy_fraction", std::move(stage_busy)},
      {"ttft_ms", to_json(seen.ttft)}, {"tpot_ms", to_json(seen.tpot)},
      {"itl_ms", to_json(seen.itl)}};
  std::string table =
      fmt::format("{} on {} x {}: {} replica{} of tp {} x pp {}, {} requests at {:.2f}/s\n", what,
          gpus, on, found.replicas, found.replicas == 1 ? "" : "s", engine.tp, engine.pp,
          result.outcomes.size(), found.rate);
  const auto line = [&table](const char* key, double value, const char* unit) {
    table += fmt::format("  {:28}{:10.3f} {}\n", key, value, unit);
  };
  line("saturation_requests_per_s", found.saturation.requests_per_s * found.replicas, "requests/s");
  line("tokens_per_s", tokens_per_s, "prompt and output tokens/s");
  line("throughput_ratio", found.throughput_ratio, "of pp x one stage, at saturation");
  line("stage_bubble_fraction", bubble, "");
  line("exposed_comm_fraction", exposed, "");
  const auto spread = [&table](const char* key, const Percentiles& values) {
    table += fmt::format(
        "  {:16}{:10.2f} p50{:10.2f} p90{:10.2f} p99\n", key, values.p50, values.p90, values.p99);
  };
  spread("ttft_ms", seen.ttft);
  spread("tpot_ms", seen.tpot);
  spread("itl_ms", seen.itl);
  return {std::move(table), boost::json::serialize(json)};
}

}  // namespace millrace
