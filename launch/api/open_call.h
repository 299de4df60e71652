// One call in the engine: its choices, their text, and what is said of them as JSON: events of a
// stream, or one response. Knows no socket and no file; the gateway and the batch runner share it.
// One thread at a time.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launch/api/engine_api.h"
#include "launch/api/openai.h"
#include "launch/api/output.h"

namespace millrace {

class OpenCall {
 public:
  // `engine` and `model` must outlive it.
  OpenCall(EngineApi& engine, const ModelContext& model, ApiCall call);
  // Cancels in the engine whatever still runs.
  ~OpenCall();
  OpenCall(const OpenCall&) = delete;

  bool streams() const { return call_.stream; }
  size_t num_choices() const { return choices_.size(); }
  int32_t prompt_tokens() const { return call_.prompt_tokens; }
  int32_t completion_tokens() const;
  // Hands every choice to the engine; `callback(choice)` makes what the engine calls for it.
  void submit(const std::function<EmissionCallback(size_t)>& callback);

  struct Progress {
    std::string text;    // streaming: events to send; else the response, when ended
    bool ended = false;  // every choice is done
    FinishReason finish = FinishReason::kNone;  // of this choice
    std::optional<Status> failed;  // the call is over, with this error; nothing runs any more
  };
  Progress take(size_t choice, const Emission& emission);

 private:
  void cancel_all();

  EngineApi& engine_;
  ApiCall call_;
  ResponseWriter writer_;
  struct Choice {
    OutputStream stream;
    OutputPiece whole;  // when not streaming
    RequestId id = 0;
    bool started = false;  // its first chunk was sent
    bool running = false;  // in the engine
  };
  std::vector<Choice> choices_;
  size_t num_open_ = 0;
};

// 96 random bits as 24 hexadecimal digits, for the ids that answers carry.
std::string random_id();

}  // namespace millrace
