// A running engine with what the ways in need of its model. Made and used on the main thread.
#pragma once

#include <future>
#include <memory>

#include "launch/api/model_context.h"
#include "launch/cli/options.h"
#include "launch/cluster/engine.h"

namespace millrace {

// All but max_model_len, which the engine knows. Nothing is started before this has passed. Throws
// Error.
ModelContext make_context(const Options& options, const Checkpoint& checkpoint);

class Session {
 public:
  enum class Text { kNeeded, kNotNeeded };

  // Starts the engine and waits until it is ready. Throws Error: also kModel when text is needed
  // and the model has no tokenizer. `on_lost` runs on the coordinator's thread.
  Session(const Options& options, Text text, Engine::OnLost on_lost = nullptr);

  Engine& engine() { return *engine_; }
  const ModelContext& model() const { return model_; }
  // Throws Error with the replica's last words if it was lost; called when a request ended as
  // unavailable, which is told before the loss itself.
  void throw_if_lost() const;

 private:
  std::shared_future<Finished> lost_;
  std::unique_ptr<Engine> engine_;
  ModelContext model_;
};

}  // namespace millrace
