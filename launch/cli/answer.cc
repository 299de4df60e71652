#include "launch/cli/answer.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <mutex>

#include "engine/base/status.h"

namespace millrace {

namespace {

using Clock = std::chrono::steady_clock;

// From the coordinator's thread to this one; shared, because the engine may outlive the question.
struct Inbox {
  void push(const Emission& emission) {
    {
      const std::lock_guard lock(mutex);
      emissions.push_back(emission);
    }
    changed.notify_one();
  }
  Emission pop() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return !emissions.empty(); });
    Emission emission = std::move(emissions.front());
    emissions.pop_front();
    return emission;
  }

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Emission> emissions;
};

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

template <typename T>
void set_if(boost::json::object& body, const char* name, const std::optional<T>& value) {
  if (value) body[name] = *value;
}

}  // namespace

std::string Answer::speed() const {
  // The first token's time is the prompt's.
  const double rate = num_tokens > 1 ? (num_tokens - 1) / std::max(total_s - first_s, 1e-9)
                                     : num_tokens / std::max(total_s, 1e-9);
  return fmt::format("{} token{}, {:.1f} tokens/s, the first after {:.2f} s", num_tokens,
      num_tokens == 1 ? "" : "s", rate, first_s);
}

boost::json::object call_body(const SamplingFlags& flags, const ModelContext& model) {
  boost::json::object body{{"model", model.name}};
  set_if(body, "max_tokens", flags.max_tokens);
  set_if(body, "min_tokens", flags.min_tokens);
  set_if(body, "seed", flags.seed);
  set_if(body, "top_k", flags.top_k);
  set_if(body, "temperature", flags.temperature);
  set_if(body, "top_p", flags.top_p);
  set_if(body, "min_p", flags.min_p);
  set_if(body, "repetition_penalty", flags.repetition_penalty);
  set_if(body, "presence_penalty", flags.presence_penalty);
  set_if(body, "frequency_penalty", flags.frequency_penalty);
  if (!flags.stop.empty()) body["stop"] = boost::json::array(flags.stop.begin(), flags.stop.end());
  if (flags.ignore_eos) body["ignore_eos"] = true;
  return body;
}

Answer ask(
    Session& session, const ApiCall& call, const std::function<void(std::string_view)>& on_text) {
  OutputStream stream(call, 0, session.model().tokenizer);
  const auto inbox = std::make_shared<Inbox>();
  const auto began = Clock::now();
  const RequestId id = session.engine().submit(
      call.choices[0].request, [inbox](const Emission& emission) { inbox->push(emission); });
  Answer answer;
  while (answer.piece.finish == FinishReason::kNone) {
    const Emission emission = inbox->pop();
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
