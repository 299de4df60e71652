#include "launch/cli/session.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <openssl/sha.h>

#include <array>
#include <chrono>
#include <ctime>

#include "engine/base/file.h"
#include "engine/base/log.h"
#include "engine/base/status.h"
#include "launch/cluster/trace_file.h"

namespace millrace {

namespace {

constexpr uint64_t kMaxTemplateBytes = 1 << 20;
constexpr auto kLossDelay = std::chrono::seconds(1);

// A tokenizer of another model would turn text into ids that mean something else, or nothing.
// Added tokens beyond the embedding are known (Gemma 3): text that names one is refused.
void check_tokenizer(
    const Tokenizer& tokenizer, const Checkpoint& checkpoint, const std::string& path) {
  const int32_t rows = checkpoint.config().vocab_size;
  if (tokenizer.ordinary_size() > rows) {
    throw Error(ExitCode::kModel,
        "the tokenizer of '{}' has ids up to {}, the embedding only {} rows: they do not belong "
        "together; download the model again",
        path, tokenizer.ordinary_size() - 1, rows);
  }
  std::array<uint8_t, SHA256_DIGEST_LENGTH> hash{};
  const std::string& text = checkpoint.tokenizer_json();
  SHA256(reinterpret_cast<const uint8_t*>(text.data()), text.size(), hash.data());
  log::info("tokenizer: {} ids, SHA-256 {:02x}", tokenizer.vocab_size(), fmt::join(hash, ""));
}

// What `parse` gives; its error names the file or model at `path`.
template <typename Parse>
auto naming(const std::string& path, const Parse& parse) {
  try {
    return parse();
  } catch (const Error& error) {
    throw Error(error.exit_code(), "'{}': {}", path, error.what());
  }
}

}  // namespace

ModelContext make_context(const Options& options, const Checkpoint& checkpoint) {
  const std::string& path = options.launch.engine.model_path;
  ModelContext model;
  model.name = options.served_model_name.empty() ? checkpoint.name() : options.served_model_name;
  if (!checkpoint.tokenizer_json().empty()) {
    model.tokenizer =
        naming(path, [&] { return Tokenizer::from_json(checkpoint.tokenizer_json()); });
    check_tokenizer(*model.tokenizer, checkpoint, path);
  }
  const std::string source =
      options.chat_template.empty()
          ? checkpoint.chat_template()
          : read_file(options.chat_template, kMaxTemplateBytes, ExitCode::kInput);
  if (!source.empty()) {
    model.chat_template = naming(options.chat_template.empty() ? path : options.chat_template, [&] {
      return ChatTemplate::parse(source, checkpoint.bos_token(), checkpoint.eos_token());
    });
  }
  model.vocab_size = checkpoint.config().vocab_size;
  model.eos_token_ids = checkpoint.config().eos_token_ids;
  model.created = std::time(nullptr);
  return model;
}

Session::Session(const Options& options, Text text, Engine::OnLost on_lost) {
  LaunchConfig launch = options.launch;
  if (!options.profile.empty()) {
    launch.on_trace = [next = std::move(launch.on_trace),
                          file = std::make_shared<TraceFile>(options.profile, launch.engine)](
                          int rank, const StepTrace& step) {
      file->add(rank, step);
      if (next) next(rank, step);
    };
  }
  launch.engine.profile = static_cast<bool>(launch.on_trace);
  const EngineConfig& config = launch.engine;
  const int ranks = config.tp * config.pp;
  log::info("computing on {}: {}",
      config.device == DeviceKind::kCpu ? "the CPU"
      : ranks == 1                      ? "1 GPU"
                                        : fmt::format("{} GPUs", ranks),
      options.device_reason);
  const auto checkpoint = open_checkpoint(config.model_path, config.dummy_weights);
  model_ = make_context(options, *checkpoint);
  if (text == Text::kNeeded && model_.tokenizer == nullptr) {
    throw Error(ExitCode::kModel,
        "{0} has no tokenizer: put its tokenizer.json beside the weights (a folder that has only "
        "tokenizer.model: python3 -c \"from transformers import AutoTokenizer as T; "
        "T.from_pretrained('{0}').save_pretrained('{0}')\"), or run `millrace bench`, which needs "
        "none",
        config.model_path);
  }
  const auto loss = std::make_shared<std::promise<Finished>>();
  lost_ = loss->get_future();
  engine_ = Engine::start(
      launch,
      [loss, on_lost = std::move(on_lost)](const Finished& finished) {
        loss->set_value(finished);
        if (on_lost) on_lost(finished);
      },
      checkpoint);
  model_.max_model_len = engine_->max_model_len();
}

void Session::throw_if_lost() const {
  if (lost_.wait_for(kLossDelay) == std::future_status::ready)
    throw Error(lost_.get().exit_code, lost_.get().message);
}

}  // namespace millrace
