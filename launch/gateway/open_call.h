// One call in the engine: its choices, their text, and the bytes that go to the client. Knows no
// socket. One thread at a time (the connection's strand).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launch/api/openai.h"
#include "launch/api/output.h"
#include "launch/gateway/hub.h"

namespace millrace {

class OpenCall {
 public:
  OpenCall(std::shared_ptr<const Serving> serving, ApiCall call);
  // Cancels in the engine whatever still runs.
  ~OpenCall();
  OpenCall(const OpenCall&) = delete;

  bool streams() const { return call_.stream; }
  // Hands every choice to the engine; `callback(choice)` makes what the engine calls for it.
  void submit(const std::function<EmissionCallback(size_t)>& callback);

  struct Progress {
    std::string text;              // streaming: events to send; else the response, when ended
    bool ended = false;            // every choice is done
    std::optional<Status> failed;  // the call is over, with this error; nothing runs any more
  };
  Progress take(size_t choice, const Emission& emission);

 private:
  void cancel_all();

  std::shared_ptr<const Serving> serving_;
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
