#include "launch/cluster/trace_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "engine/base/log.h"
#include "engine/base/status.h"
#include "parallel/topology.h"

namespace millrace {

namespace {

constexpr size_t kBufferBytes = 1 << 20;  // few writes: the coordinator's thread makes them

enum Track : int { kCompute = 1, kHost = 2 };

}  // namespace

TraceFile::TraceFile(const std::string& path, const EngineConfig& engine)
    : path_(path), buffer_(kBufferBytes), file_(std::fopen(path.c_str(), "we")) {
  if (file_ == nullptr) {
    throw Error(ExitCode::kInput, "--profile {}: {}", path, std::strerror(errno));
  }
  std::setvbuf(file_.get(), buffer_.data(), _IOFBF, buffer_.size());
  std::fputs("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[", file_.get());
  for (int rank = 0; rank < engine.tp * engine.pp; ++rank) name_tracks(engine, rank);
}

TraceFile::~TraceFile() {
  std::fputs("\n]}\n", file_.get());
  if (std::fflush(file_.get()) != 0 || std::ferror(file_.get()) != 0) {
    log::error("--profile {}: {}", path_, std::strerror(errno));
  }
}

void TraceFile::write(const std::string& event) {
  std::fputs(first_ ? "\n" : ",\n", file_.get());
  std::fputs(event.c_str(), file_.get());
  first_ = false;
}

void TraceFile::name_tracks(const EngineConfig& engine, int rank) {
  const Topology place(engine.tp, engine.pp, rank);
  const auto meta = [&](const char* kind, int track, const std::string& name) {
    write(fmt::format(R"({{"ph":"M","name":"{}","pid":{},"tid":{},"args":{{"name":"{}"}}}})", kind,
        rank, track, name));
  };
  meta("process_name", 0,
      fmt::format("rank {}: stage {}, tp {}", rank, place.pp_rank(), place.tp_rank()));
  meta("thread_name", kCompute, "compute stream");
  meta("thread_name", kHost, "host");
}

void TraceFile::span(
    int rank, int track, const char* name, int64_t begin, int64_t end, const std::string& args) {
  if (end <= begin) return;
  write(fmt::format(
      R"({{"ph":"X","name":"{}","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},"args":{{{}}}}})", name,
      rank, track, static_cast<double>(begin - origin_) * 1e-3,
      static_cast<double>(end - begin) * 1e-3, args));
}

void TraceFile::add(int rank, const StepTrace& step) {
  if (origin_ == 0) origin_ = step.host_begin;
  const std::string args =
      fmt::format(R"("step":{},"rows":{},"tokens":{})", step.sequence, step.rows, step.tokens);
  span(rank, kHost, "enqueue", step.host_begin, step.host_end, args);
  span(rank, kCompute, "idle", step.last_end, step.begin, args);
  span(rank, kCompute, "wait for input", step.begin, step.ready, args);
  span(rank, kCompute, "forward", step.ready, step.forward, args);
  // The waits of one step, put together at its end: where each lay is not known.
  span(rank, kCompute, "exposed communication", std::max(step.ready, step.forward - step.comm),
      step.forward, args);
  span(rank, kCompute, "sample or hand over", step.forward, step.end, args);
}

}  // namespace millrace
