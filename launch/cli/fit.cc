// `millrace fit`: what a model takes of each rank's memory, and over how many GPUs it fits.
#include <fmt/format.h>

#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

#include "engine/base/log.h"
#include "engine/worker/memory_fit.h"
#include "launch/cli/answer.h"
#include "launch/cli/commands.h"
#include "launch/cli/session.h"

namespace millrace {

namespace {

constexpr int kMostGpus = 64;  // that a remedy may name
// Resident in a CPU process before its weights beside what is here: of MPI in a rank of several
// (Open MPI 4.1.4), else of the coordinator. Measured.
constexpr int64_t kMpiBytes = int64_t{14} << 20, kCoordinatorBytes = int64_t{3} << 20;

double gib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }
std::string degrees(const LayoutFit& fit) { return fmt::format("-tp {} -pp {}", fit.tp, fit.pp); }

constexpr std::pair<const char*, int64_t MemoryPlan::*> kParts[] = {
    {"weights", &MemoryPlan::weights}, {"workspace", &MemoryPlan::workspace},
    {"communication", &MemoryPlan::comm}, {"graphs", &MemoryPlan::graphs},
    {"kv_cache", &MemoryPlan::kv}};

std::string to_json(
    const std::string& model, const LayoutFit& fit, int64_t memory, const std::string& why) {
  boost::json::array ranks;
  for (const MemoryPlan& plan : fit.ranks) {
    boost::json::object rank;
    for (const auto& [name, part] : kParts) rank[name] = plan.*part;
    rank["together"] = plan.together();
    ranks.push_back(rank);
  }
  return boost::json::serialize(boost::json::object{{"model", model}, {"tp", fit.tp},
      {"pp", fit.pp}, {"why", why}, {"memory", memory}, {"needed", fit.needed},
      {"kv_tokens", fit.ranks[0].kv_tokens}, {"max_model_len", fit.longest}, {"ranks", ranks}});
}

std::string to_table(const LayoutFit& fit) {
  std::string text = fmt::format("{:6}", "rank");
  for (const auto& part : kParts) text += fmt::format("{:>15}", part.first);
  text += fmt::format("{:>15}  MiB\n", "together");
  for (size_t rank = 0; rank < fit.ranks.size(); ++rank) {
    text += fmt::format("{:<6}", rank);
    for (const auto& part : kParts)
      text += fmt::format("{:15.1f}", gib(fit.ranks[rank].*part.second) * 1024);
    text += fmt::format("{:15.1f}\n", gib(fit.ranks[rank].together()) * 1024);
  }
  return text;
}

}  // namespace

ExitCode run_fit(const Options& options) {
  if (!log::enabled(log::Level::kDebug)) log::init(log::Level::kWarning, "");
  const EngineConfig& engine = options.launch.engine;
  const bool gpu = engine.device == DeviceKind::kCuda;
  const int asked = engine.tp * engine.pp;
  const auto checkpoint = open_checkpoint(engine.model_path, engine.dummy_weights);
  // A process that is all of a job has its tokenizer, a rank of several has MPI.
  ModelContext text;
  if (!gpu && asked == 1) text = make_context(options, *checkpoint);
  const auto host = make_cpu_device();
  const int64_t memory = gpu ? options.fit.gpu_memory : host->free_bytes();
  const int64_t program = host->used_bytes() + (asked > 1 ? kMpiBytes : kCoordinatorBytes);
  const bool chosen = asked > 1 || !gpu;
  const LayoutFit fit = chosen ? fit_layout(checkpoint, engine, memory, program)
                               : propose_layout(checkpoint, engine, options.fit.gpus, memory);
  const char* of_what = gpu ? "of each GPU" : "free on this host";
  if (!fit.reason.empty()) {
    if (fit.needed == 0) throw Error(ExitCode::kLayout, fit.reason);
    std::string ways = "lower --max-model-len";
    if (gpu) {
      const LayoutFit more = propose_layout(checkpoint, engine, kMostGpus, memory);
      if (more.reason.empty()) {
        ways += fmt::format(", or take {} such GPUs with {}", more.tp * more.pp, degrees(more));
      }
    }
    throw Error(ExitCode::kOutOfMemory, "{} does not fit with {}: {}; {}", checkpoint->name(),
        degrees(fit),
        fit.needed > memory ? fmt::format("it needs {:.1f} GiB {}, there are {:.1f}",
                                  gib(fit.needed), of_what, gib(memory))
                            : fit.reason,
        ways);
  }
  const std::string why = fmt::format("{}, with room for a sequence of {} tokens",
      chosen ? "as given" : "the fewest GPUs that hold the model", fit.longest);
  write_stdout(options.json
                   ? to_json(checkpoint->name(), fit, memory, why) + "\n"
                   : fmt::format("{} fits {:.1f} GiB {} with {}: {}\nKV cache of {} tokens\n\n{}",
                         checkpoint->name(), gib(memory), of_what, degrees(fit), why,
                         fit.ranks[0].kv_tokens, to_table(fit)));
  return ExitCode::kOk;
}

}  // namespace millrace
