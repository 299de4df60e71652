#include "launch/api/open_call.h"

#include <fmt/format.h>

#include <ctime>
#include <random>

namespace millrace {
namespace {

std::string event(const std::string& json) { return "data: " + json + "\n\n"; }

}  // namespace

std::string random_id() {
  thread_local std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  return fmt::format("{:016x}{:08x}", generator(), generator() >> 32);
}

OpenCall::OpenCall(EngineApi& engine, const ModelContext& model, ApiCall call)
    : engine_(engine),
      call_(std::move(call)),
      writer_(call_, model, (call_.kind == ApiKind::kChat ? "chatcmpl-" : "cmpl-") + random_id(),
          std::time(nullptr)) {
  for (size_t i = 0; i < call_.choices.size(); ++i)
    choices_.push_back({OutputStream(call_, i, model.tokenizer)});
  num_open_ = choices_.size();
}

OpenCall::~OpenCall() { cancel_all(); }

void OpenCall::submit(const std::function<EmissionCallback(size_t)>& callback) {
  for (size_t i = 0; i < choices_.size(); ++i) {
    choices_[i].running = true;
    choices_[i].id = engine_.submit(std::move(call_.choices[i].request), callback(i));
  }
}

int32_t OpenCall::completion_tokens() const {
  int32_t tokens = 0;
  for (const Choice& choice : choices_) tokens += choice.stream.num_tokens();
  return tokens;
}

void OpenCall::cancel_all() {
  for (Choice& choice : choices_)
    if (std::exchange(choice.running, false)) engine_.cancel(choice.id);
}

OpenCall::Progress OpenCall::take(size_t index, const Emission& emission) {
  Progress progress;
  Choice& choice = choices_[index];
  if (!choice.running) return progress;
  if (emission.finish != FinishReason::kNone) choice.running = false;
  OutputPiece piece = choice.stream.push(emission);
  if (piece.stopped_by_string) {
    choice.running = false;
    engine_.cancel(choice.id);
  }
  progress.finish = piece.finish;
  if (piece.finish == FinishReason::kError || piece.finish == FinishReason::kCancelled) {
    cancel_all();
    progress.failed = piece.finish == FinishReason::kError
                          ? piece.status
                          : Status{ErrorCode::kUnavailable, "The server ended the request.", ""};
    return progress;
  }
  if (piece.finish != FinishReason::kNone) --num_open_;
  progress.ended = num_open_ == 0;
  if (!call_.stream) {
    choice.whole.append(std::move(piece));
  } else if (!piece.text.empty() || piece.has_logprobs() || piece.finish != FinishReason::kNone ||
             (call_.return_token_ids && !piece.token_ids.empty())) {
    const int32_t so_far = call_.continuous_usage ? completion_tokens() : 0;
    progress.text =
        event(writer_.chunk(index, piece, !std::exchange(choice.started, true), so_far));
  }
  if (!progress.ended) return progress;
  if (call_.stream) {
    if (call_.include_usage) progress.text += event(writer_.usage_chunk(completion_tokens()));
    progress.text += event("[DONE]");
  } else {
    std::vector<OutputPiece> pieces;
    for (Choice& each : choices_) pieces.push_back(std::move(each.whole));
    progress.text = writer_.response(pieces, completion_tokens());
  }
  return progress;
}

}  // namespace millrace
