#include "launch/cli/answer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "engine/base/status.h"
#include "launch/api/mailbox.h"

namespace millrace {

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kWait = std::chrono::seconds(1);

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

std::string Answer::speed() const {
  // The first token's time is the prompt's.
  const double rate = num_tokens > 1 ? (num_tokens - 1) / std::max(total_s - first_s, 1e-9)
                                     : num_tokens / std::max(total_s, 1e-9);
  return fmt::format("{} token{}, {:.1f} tokens/s, the first after {:.2f} s", num_tokens,
      num_tokens == 1 ? "" : "s", rate, first_s);
}

boost::json::object call_body(const Options& options, const ModelContext& model) {
  boost::json::object body = options.sampling;
  body["model"] = model.name;
  body["ignore_eos"] = options.ignore_eos;
  return body;
}

Answer ask(
    Session& session, const ApiCall& call, const std::function<void(std::string_view)>& on_text) {
  OutputStream stream(call, 0, session.model().tokenizer);
  const auto mailbox = std::make_shared<Mailbox>();
  const auto began = Clock::now();
  const RequestId id = session.engine().submit(call.choices[0].request, mailbox->slot(0, 0));
  Answer answer;
  while (!stream.done()) {
    for (const auto& [number, choice, emission] : mailbox->take(kWait)) {
      if (stream.done()) break;
      if (answer.first_s == 0 && !emission.tokens.empty()) answer.first_s = seconds_since(began);
      OutputPiece piece = stream.push(emission);
      if (piece.finish == FinishReason::kError) {
        if (piece.status.code == ErrorCode::kUnavailable) session.throw_if_lost();
        throw RequestError(piece.status);
      }
      if (piece.stopped_by_string) session.engine().cancel(id);
      if (!piece.text.empty()) on_text(piece.text);
      answer.piece.append(std::move(piece));
    }
  }
  answer.num_tokens = stream.num_tokens();
  answer.total_s = seconds_since(began);
  return answer;
}

void write_stdout(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw Error(ExitCode::kInput, "standard output is closed: nobody reads the answer");
  }
}

}  // namespace millrace
