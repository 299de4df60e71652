// Writes what the ranks did as a Chrome trace, for ui.perfetto.dev or chrome://tracing: a process
// for each rank, in it a track for the compute stream and one for the host thread that feeds it.
// Steps are written as they come. One thread at a time.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "engine/protocol/engine_config.h"
#include "engine/protocol/trace.h"

namespace millrace {

class TraceFile {
 public:
  // Throws Error(kInput) when the file cannot be written.
  TraceFile(const std::string& path, const EngineConfig& engine);
  // Completes the file; a write that failed is logged.
  ~TraceFile();

  void add(int rank, const StepTrace& step);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  void write(const std::string& event);
  void name_tracks(const EngineConfig& engine, int rank);
  void span(
      int rank, int track, const char* name, int64_t begin, int64_t end, const std::string& args);

  std::string path_;
  std::vector<char> buffer_;  // outlives the file
  std::unique_ptr<std::FILE, Close> file_;
  bool first_ = true;
  int64_t origin_ = 0;  // ns: the first step's begin, so that times keep their digits
};

}  // namespace millrace
