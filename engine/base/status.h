// The two kinds of error that are not bugs: a request's (Status, RequestError) and the
// environment's (Error, with the process's exit code). Values; any thread.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace millrace {

enum class ErrorCode : uint8_t {
  kOk,
  kInvalidArgument,        // a bad value: HTTP 400
  kContextLengthExceeded,  // prompt (+ max_tokens) longer than the context: HTTP 400
  kNotFound,               // unknown model or route: HTTP 404
  kOverloaded,             // queue full: HTTP 503
  kUnavailable,            // loading, draining, worker lost: HTTP 503
  kCancelled,              // the client went away
  kInternal,               // ours: HTTP 500
  kTimeout,                // the request's own deadline passed: HTTP 504
};

// The end of one request that went wrong, or ok. `param` names the request's field, or is empty.
struct [[nodiscard]] Status {
  ErrorCode code = ErrorCode::kOk;
  std::string message;
  std::string param;

  bool ok() const { return code == ErrorCode::kOk; }
};

// Thrown only before a request is enqueued (parsing, validation, templates, tokenizing).
class RequestError : public std::runtime_error {
 public:
  explicit RequestError(Status status)
      : std::runtime_error(status.message), status_(std::move(status)) {}
  RequestError(ErrorCode code, std::string message, std::string param = "")
      : RequestError(Status{code, std::move(message), std::move(param)}) {}
  const Status& status() const { return status_; }

 private:
  Status status_;
};

// The published table of exit codes (docs/exit-codes.md). Do not renumber.
enum class ExitCode : int {
  kOk = 0,
  kFailure = 1,      // anything without a code of its own
  kUsage = 2,        // unknown flag or key, bad value, prompt too long on the command line
  kModel = 3,        // model missing, torn, of an unknown type, or not fitting its config
  kLayout = 4,       // rank count and degrees disagree, or the model cannot be cut that way
  kAddress = 5,      // port in use, address not available, peer not reachable
  kWorkerLost = 6,   // a worker died or hung while serving
  kOutOfMemory = 7,  // weights or the KV cache do not fit
  kRowsFailed = 8,   // run-batch ended, but some lines have an error
  kInput = 9,        // an input or output file cannot be read or written
  kBug = 70,         // CHECK (the process aborts; mpirun and shells may show 134)
};

// A fault of the environment: a plain sentence with the remedy. main() prints it and exits.
class Error : public std::runtime_error {
 public:
  Error(ExitCode exit_code, const std::string& message)
      : std::runtime_error(message), exit_code_(exit_code) {}
  template <typename First, typename... Rest>
  Error(
      ExitCode exit_code, fmt::format_string<First, Rest...> format, First&& first, Rest&&... rest)
      : Error(exit_code,
            fmt::format(format, std::forward<First>(first), std::forward<Rest>(rest)...)) {}
  ExitCode exit_code() const { return exit_code_; }

 private:
  ExitCode exit_code_;
};

}  // namespace millrace
