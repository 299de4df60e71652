#include "launch/cli/session.h"

#include <fmt/format.h>

#include <chrono>
#include <condition_variable>
#include <ctime>
#include <mutex>
#include <optional>

#include "engine/base/file.h"
#include "engine/base/status.h"

namespace millrace {

namespace {

constexpr uint64_t kMaxTemplateBytes = 1 << 20;
constexpr auto kLossDelay = std::chrono::seconds(1);

ModelContext make_context(const Options& options, const Engine& engine) {
  const Checkpoint& checkpoint = engine.model();
  ModelContext model;
  model.name = options.served_model_name.empty() ? checkpoint.name() : options.served_model_name;
  if (!checkpoint.tokenizer_json().empty()) {
    model.tokenizer = Tokenizer::from_json(checkpoint.tokenizer_json());
  }
  const std::string source =
      options.chat_template.empty()
          ? checkpoint.chat_template()
          : read_file(options.chat_template, kMaxTemplateBytes, ExitCode::kInput);
  if (!source.empty()) {
    model.chat_template =
        ChatTemplate::parse(source, checkpoint.bos_token(), checkpoint.eos_token());
  }
  model.vocab_size = checkpoint.config().vocab_size;
  model.max_model_len = engine.max_model_len();
  model.eos_token_ids = checkpoint.config().eos_token_ids;
  model.created = std::time(nullptr);
  return model;
}

}  // namespace

struct Session::Loss {
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<Finished> finished;
};

Session::Session(const Options& options, Text text, Engine::OnLost on_lost)
    : loss_(std::make_shared<Loss>()) {
  engine_ = Engine::start(
      options.launch, [loss = loss_, on_lost = std::move(on_lost)](const Finished& finished) {
        {
          const std::lock_guard lock(loss->mutex);
          loss->finished = finished;
        }
        loss->changed.notify_all();
        if (on_lost) on_lost(finished);
      });
  model_ = make_context(options, *engine_);
  if (text == Text::kNeeded && model_.tokenizer == nullptr) {
    throw Error(ExitCode::kModel,
        fmt::format("{} has no tokenizer: put its tokenizer.json beside the weights, or "
                    "run `millrace bench`, which needs none",
            options.launch.engine.model_path));
  }
}

void Session::throw_if_lost() const {
  std::unique_lock lock(loss_->mutex);
  if (loss_->changed.wait_for(lock, kLossDelay, [this] { return loss_->finished.has_value(); })) {
    throw Error(loss_->finished->exit_code, loss_->finished->message);
  }
}

}  // namespace millrace
