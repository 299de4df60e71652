#include "launch/gateway/open_call.h"

#include <fmt/format.h>

#include <ctime>
#include <random>

namespace millrace {
namespace {

std::string event(const std::string& json) {
  return "data: " + json + "\n\n";
}

}  // namespace

std::string random_id() {
  thread_local std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  return fmt::format("{:016x}{:08x}", generator(), generator() >> 32);
}

OpenCall::OpenCall(std::shared_ptr<const Serving> serving, ApiCall call)
    : serving_(std::move(serving)),
      call_(std::move(call)),
      writer_(call_, serving_->model,
              (call_.kind == ApiKind::kChat ? "chatcmpl-" : "cmpl-") + random_id(),
              std::time(nullptr)) {
  for (size_t i = 0; i < call_.choices.size(); ++i)
    choices_.push_back({OutputStream(call_, i, serving_->model.tokenizer)});
  num_open_ = choices_.size();
}

OpenCall::~OpenCall() {
  cancel_all();
}

void OpenCall::submit(const std::function<EmissionCallback(size_t)>& callback) {
  for (size_t i = 0; i < choices_.size(); ++i) {
    choices_[i].running = true;
    choices_[i].id = serving_->engine->submit(std::move(call_.choices[i].request), callback(i));
  }
}

void OpenCall::cancel_all() {
  for (Choice& choice : choices_)
    if (std::exchange(choice.running, false)) serving_->engine->cancel(choice.id);
}

OpenCall::Progress OpenCall::take(size_t index, const Emission& emission) {
  Progress progress;
  Choice& choice = choices_[index];
  if (!choice.running) return progress;
  if (emission.finish != FinishReason::kNone) choice.running = false;
  OutputPiece piece = choice.stream.push(emission);
  if (piece.stopped_by_string) {
    choice.running = false;
    serving_->engine->cancel(choice.id);
  }
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
  } else if (!piece.text.empty() || !piece.logprobs.empty() ||
             piece.finish != FinishReason::kNone ||
             (call_.return_token_ids && !piece.token_ids.empty())) {
    progress.text = event(writer_.chunk(index, piece, !std::exchange(choice.started, true)));
  }
  if (!progress.ended) return progress;
  int32_t completion_tokens = 0;
  for (const Choice& each : choices_) completion_tokens += each.stream.num_tokens();
  if (call_.stream) {
    if (call_.include_usage) progress.text += event(writer_.usage_chunk(completion_tokens));
    progress.text += event("[DONE]");
  } else {
    std::vector<OutputPiece> pieces;
    for (Choice& each : choices_) pieces.push_back(std::move(each.whole));
    progress.text = writer_.response(pieces, completion_tokens);
  }
  return progress;
}

}  // namespace millrace
