// A whole replica in one process: the real coordinator, real workers as threads, in-process links
// and a thread group as data plane. For tests of the step contract without MPI.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/link.h"
#include "engine/coordinator/coordinator.h"
#include "engine/worker/worker.h"
#include "parallel/topology.h"
#include "tests/comm/thread_comm.h"

namespace millrace {

class LocalReplica {
 public:
  struct Answer {
    std::vector<SampledToken> tokens;
    std::vector<SampledToken> prompt;
    FinishReason finish = FinishReason::kNone;
    Status status;
    std::vector<int32_t> ids() const {
      std::vector<int32_t> out;
      for (const auto& token : tokens) out.push_back(token.token);
      return out;
    }
  };

  explicit LocalReplica(const EngineConfig& config)
      : config_(config), world_(config.tp * config.pp) {
    const int num_ranks = config.tp * config.pp;
    CoordinatorConfig coordinator_config;
    coordinator_config.engine = config;
    coordinator_ = std::make_unique<Coordinator>(coordinator_config, /*now=*/0);
    for (int stage = 0; stage < config.pp; ++stage) {
      stages_.push_back(std::make_unique<ThreadGroup>(config.tp));
    }
    LinkEvents events;
    events.on_frame = [this](int rank, Bytes frame) { handle(FrameEvent{rank, std::move(frame)}); };
    events.on_closed = [this](int rank, const std::string& reason) {
      if (!finished_) handle(LinkClosedEvent{rank, reason});
    };
    for (int rank = 0; rank < num_ranks; ++rank) {
      InProcessLink link = make_in_process_link(io_, rank, events);
      links_.push_back(std::move(link.worker_link));
      worker_ends_.push_back(std::move(link.coordinator_link));
    }
    handle(TickEvent{});  // the first event greets the workers
    for (int rank = 0; rank < num_ranks; ++rank) {
      threads_.emplace_back([this, rank] { run_rank(rank); });
    }
    run_until([this] { return ready_ || finished_; });
  }

  ~LocalReplica() {
    if (!finished_) handle(StopEvent{"the test is over"});
    for (auto& link : links_) link->close();
    io_.poll();  // what was sent leaves
    for (auto& thread : threads_) thread.join();
  }

  RequestId submit(Request request) {
    const RequestId id = ++last_id_;
    answers_[id];
    handle(SubmitEvent{id, std::move(request)});
    return id;
  }
  void cancel(RequestId id) { handle(CancelEvent{id}); }

  // Runs until every request has its end (cancelled ones have none and are not waited for).
  const Answer& wait(RequestId id) {
    run_until([&] { return finished_ || answers_[id].finish != FinishReason::kNone; });
    return answers_[id];
  }
  const Answer& run(Request request) { return wait(submit(std::move(request))); }

  bool ready() const { return ready_; }
  const Finished& end() const { return end_; }
  std::string check_integrity() const { return coordinator_->check_integrity(); }
  CoordinatorStats stats() const { return coordinator_->stats(0); }

 private:
  void run_rank(int rank) {
    const Topology topology(config_.tp, config_.pp, rank);
    const auto tp = stages_[static_cast<size_t>(topology.pp_rank())]->comm(topology.tp_rank());
    const auto peers = world_.peers(rank);
    WorkerContext context;
    context.rank = rank;
    context.local_size = topology.num_ranks();
    context.link = worker_ends_[static_cast<size_t>(rank)].get();
    context.tp_comm = tp.get();
    context.peers = peers.get();
    run_worker(context);
  }

  void handle(Event event) {
    std::vector<Action> actions;
    coordinator_->handle(std::move(event), /*now=*/0, actions);
    for (Action& action : actions) act(action);
  }

  void act(Action& action) {
    if (auto* send = std::get_if<SendAll>(&action)) {
      for (auto& link : links_) link->send(send->frame);
    } else if (auto* emit = std::get_if<Emit>(&action)) {
      Answer& answer = answers_[emit->emission.id];
      for (auto& token : emit->emission.tokens) answer.tokens.push_back(std::move(token));
      for (auto& token : emit->emission.prompt) answer.prompt.push_back(std::move(token));
      if (emit->emission.finish != FinishReason::kNone) answer.finish = emit->emission.finish;
      if (!emit->emission.status.ok()) answer.status = emit->emission.status;
    } else if (std::holds_alternative<BecameReady>(action)) {
      ready_ = true;
    } else if (auto* finished = std::get_if<Finished>(&action)) {
      finished_ = true;
      end_ = *finished;
    }
  }

  template <typename Done>
  void run_until(Done done) {
    while (!done()) io_.run_one();
  }

  EngineConfig config_;
  boost::asio::io_context io_;
  // Without it the io_context would stop for good whenever it has nothing to do.
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_{
      io_.get_executor()};
  ThreadGroup world_;
  std::vector<std::unique_ptr<ThreadGroup>> stages_;
  std::unique_ptr<Coordinator> coordinator_;
  std::vector<std::unique_ptr<WorkerLink>> links_;
  std::vector<std::unique_ptr<CoordinatorLink>> worker_ends_;
  std::vector<std::thread> threads_;
  std::map<RequestId, Answer> answers_;
  RequestId last_id_ = 0;
  bool ready_ = false;
  bool finished_ = false;
  Finished end_{};
};

}  // namespace millrace
