#include "launch/batch/run_batch.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <deque>
#include <unordered_map>
#include <vector>

#include "engine/base/siphash.h"
#include "launch/api/mailbox.h"
#include "launch/api/open_call.h"
#include "launch/batch/batch_file.h"
#include "launch/batch/batch_line.h"
#include "launch/batch/progress.h"

namespace millrace {
namespace {

constexpr std::chrono::milliseconds kRedraw{200};

// --- the first pass

[[noreturn]] void refuse_twice(BatchInput& input, int64_t first, int64_t second) {
  std::string line;
  bool too_long = false;
  input.rewind();
  while (input.line_number() < second && input.next(line, too_long)) continue;
  throw Error(ExitCode::kInput,
      "The custom_id \"{}\" stands on line {} and again on line {}. Give every "
      "line its own; nothing was asked.",
      read_batch_line(line).custom_id.value_or(""), first, second);
}

// Counts the lines, and refuses a custom_id that stands on two. 24 bytes of memory a line: two
// keyed hashes of its id, so that no file can be made whose ids collide, and its number.
int64_t check_input(BatchInput& input) {
  const SipKey keys[] = {random_sip_key(), random_sip_key()};
  std::vector<std::array<uint64_t, 3>> seen;
  std::string line;
  bool too_long = false;
  int64_t count = 0;
  for (; input.next(line, too_long); ++count) {
    const auto id = read_batch_line(line).custom_id;
    if (!id) continue;
    const std::span bytes(reinterpret_cast<const uint8_t*>(id->data()), id->size());
    seen.push_back({siphash(keys[0], bytes), siphash(keys[1], bytes),
        static_cast<uint64_t>(input.line_number())});
  }
  std::ranges::sort(seen);
  const auto twice = std::ranges::adjacent_find(
      seen, [](const auto& a, const auto& b) { return a[0] == b[0] && a[1] == b[1]; });
  if (twice != seen.end()) {
    refuse_twice(input, static_cast<int64_t>((*twice)[2]), static_cast<int64_t>(twice[1][2]));
  }
  input.rewind();
  return count;
}

// --- the second

class Run {
 public:
  Run(const BatchConfig& config, EngineApi& engine, const ModelContext& model)
      : config_(config), engine_(engine), model_(model), input_(config.input) {}

  BatchSummary run() {
    const auto start = std::chrono::steady_clock::now();
    const int64_t total = check_input(input_);
    BatchOutput output(config_.output);
    output_ = &output;
    Progress progress(total, isatty(STDERR_FILENO) == 1);
    while (start_more() || !jobs_.empty()) {
      for (const Mailbox::Mail& mail : mailbox_->take(kRedraw)) take(mail);
      progress.update(done(), summary_.failed, tokens());
    }
    output.commit();
    progress.finish(done(), summary_.failed, tokens());
    summary_.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return summary_;
  }

 private:
  struct Job {
    BatchLine line;
    std::unique_ptr<OpenCall> call;
    bool alone = false;  // nothing else was in the engine when it was asked
  };

  int64_t done() const { return summary_.completed + summary_.failed; }
  int64_t tokens() const { return summary_.completion_tokens; }

  // Asks until the window is full; false when there is nothing more to ask.
  bool start_more() {
    while (open_choices_ < window() && retries_.empty()) {
      std::string text;
      bool too_long = false;
      if (!input_.next(text, too_long)) return false;
      BatchLine line = read_batch_line(text);
      if (too_long)
        line.problem = fmt::format("It is longer than {} MiB.", BatchInput::kMaxLine >> 20);
      if (line.problem.empty()) {
        ask(std::move(line));
      } else {
        ++summary_.failed;
        output_->write_line(error_line(line.custom_id, input_.line_number(), line.problem));
      }
    }
    if (!retries_.empty() && open_choices_ < window()) {
      BatchLine line = std::move(retries_.front());
      retries_.pop_front();
      ask(std::move(line));
    }
    return true;
  }

  size_t window() const {
    const auto asked = static_cast<size_t>(std::max(config_.max_in_flight, 1));
    return narrowed_ > 0 ? std::min(asked, narrowed_) : asked;
  }

  void ask(BatchLine line) {
    const uint64_t id = next_job_++;
    ApiCall call;
    try {
      call = parse_call(line.kind, line.body, model_);
    } catch (const RequestError& error) {
      return fail(line, error.status());
    }
    Job& job = jobs_[id];
    job.line = std::move(line);
    job.alone = open_choices_ == 0;
    job.call = std::make_unique<OpenCall>(engine_, model_, std::move(call));
    open_choices_ += job.call->num_choices();
    job.call->submit([&](size_t choice) { return mailbox_->slot(id, choice); });
  }

  void take(const Mailbox::Mail& mail) {
    const auto found = jobs_.find(mail.call);
    if (found == jobs_.end()) return;
    Job& job = found->second;
    const OpenCall::Progress progress = job.call->take(mail.choice, mail.emission);
    if (!progress.ended && !progress.failed) return;
    open_choices_ -= job.call->num_choices();
    if (progress.failed) {
      end_failed(job, *progress.failed);
    } else {
      ++summary_.completed;
      summary_.prompt_tokens += job.call->prompt_tokens();
      summary_.completion_tokens += job.call->completion_tokens();
      output_->write_line(result_line(*job.line.custom_id, 200, progress.text));
    }
    jobs_.erase(found);
  }

  void end_failed(Job& job, const Status& status) {
    if (status.code == ErrorCode::kUnavailable)
      throw Error(ExitCode::kWorkerLost,
          "The engine ended after {} lines: {} What was answered is in \"{}\".", done(),
          status.message, output_->partial_path());
    if (status.code == ErrorCode::kOverloaded && !job.alone) {
      // The queue was full: what it did take is as much as it takes.
      narrowed_ = std::max<size_t>(open_choices_, 1);
      retries_.push_back(std::move(job.line));
      return;
    }
    fail(job.line, status);
  }

  void fail(const BatchLine& line, const Status& status) {
    ++summary_.failed;
    output_->write_line(result_line(*line.custom_id, http_status(status.code), error_json(status)));
  }

  const BatchConfig& config_;
  EngineApi& engine_;
  const ModelContext& model_;
  BatchInput input_;
  BatchOutput* output_ = nullptr;
  std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
  std::unordered_map<uint64_t, Job> jobs_;
  std::deque<BatchLine> retries_;  // refused by a full queue
  uint64_t next_job_ = 0;
  size_t open_choices_ = 0;
  size_t narrowed_ = 0;  // the window that the queue has room for; 0: not met yet
  BatchSummary summary_;
};

}  // namespace

BatchSummary run_batch(const BatchConfig& config, EngineApi& engine, const ModelContext& model) {
  return Run(config, engine, model).run();
}

}  // namespace millrace
