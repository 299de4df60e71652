// One question to the engine from the terminal, answered as it is generated. Main thread.
#pragma once

#include <boost/json/object.hpp>
#include <functional>
#include <string>
#include <string_view>

#include "launch/api/openai.h"
#include "launch/api/output.h"
#include "launch/cli/session.h"

namespace millrace {

struct Answer {
  OutputPiece piece;  // all of it
  int32_t num_tokens = 0;
  double first_s = 0;  // until the first token
  double total_s = 0;

  // "24 tokens, 38.7 tokens/s, the first after 0.11 s"
  std::string speed() const;
};

// The sampling flags as fields of an API call.
boost::json::object call_body(const Options& options, const ModelContext& model);

// Runs the one choice of `call`; `on_text` gets each piece of text that has become certain. Throws
// RequestError when the request fails, Error(kWorkerLost) when the engine does.
Answer ask(
    Session& session, const ApiCall& call, const std::function<void(std::string_view)>& on_text);

// Writes and flushes; throws Error(kInput) when standard output is closed.
void write_stdout(std::string_view text);

}  // namespace millrace
