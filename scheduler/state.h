// The scheduler's state and its verbs, split over plan.cc, commit.cc and integrity.cc. Used by this
// room alone, from the scheduler's thread.
#pragma once

#include <array>
#include <deque>
#include <list>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/protocol/slot_table.h"
#include "scheduler/scheduler.h"
#include "scheduler/sequence.h"

namespace millrace {

// A plan that is issued and not committed.
struct Scheduler::InFlight {
  struct PlannedRow {
    Sequence* sequence;  // stays until the plan is committed
    int32_t count;
    bool output;
  };
  uint64_t number = 0;
  bool has_prefill = false;
  std::vector<PlannedRow> rows;
};

struct Scheduler::State {
  explicit State(const SchedulerConfig& config);

  // scheduler.cc
  Status add(RequestId id, Request request);
  void cancel(RequestId id);
  void move(Sequence& sequence, Phase phase);
  // The sequence gets no further row; it goes at once, or with the last plan that names it.
  void retire(Sequence& sequence);
  void forget(Sequence& sequence);

  // plan.cc
  std::optional<StepPlan> plan(std::vector<Emission>& failed);
  bool decode_due(const Sequence& sequence) const;
  bool filler_due() const;
  int32_t prefill_budget(int32_t tokens_left) const;
  bool fits(const Sequence& sequence) const;
  void plan_decodes(StepPlan& plan, InFlight& record);
  void plan_prefills(StepPlan& plan, InFlight& record);
  void admit(Sequence& sequence, StepPlan& plan);
  void add_row(Sequence& sequence, int32_t count, StepPlan& plan, InFlight& record);
  void fail_oldest(std::vector<Emission>& failed);

  // commit.cc
  std::vector<Emission> commit(const StepResult& result);
  Emission take_row(Sequence& sequence, const RowResult& row);

  // integrity.cc
  std::string check_integrity() const;
  std::string check_sequences() const;
  std::string check_sequence(const Sequence& sequence) const;
  std::string check_flights() const;
  std::string check_memory() const;
  std::string check_slots() const;

  std::list<Sequence*>& list(Phase phase) { return lists[static_cast<size_t>(phase)]; }
  const std::list<Sequence*>& list(Phase phase) const { return lists[static_cast<size_t>(phase)]; }
  int32_t size(Phase phase) const { return static_cast<int32_t>(list(phase).size()); }
  int32_t num_lanes() const { return config.pp + 1; }

  const SchedulerConfig config;
  BlockPool pool;  // outlives the blocks that `sequences` hold
  SlotTable table;
  std::unordered_map<RequestId, Sequence> sequences;  // every request known, at a fixed address
  // By phase. Waiting and prefill in order of arrival, decode in order of the last plan.
  std::array<std::list<Sequence*>, kNumPhases> lists;
  std::vector<uint16_t> free_slots;        // the last one goes first
  std::vector<uint16_t> pending_releases;  // free already; the next plan tells the ranks
  std::deque<InFlight> flights;            // oldest first
  uint64_t next_plan = 0;
  uint32_t reserved_blocks = 0;  // over all sequences that hold a slot
  int64_t prompt_backlog = 0;    // prompt tokens not planned yet, waiting and prefill
  uint64_t steps = 0;
  uint64_t tokens_computed = 0;
  uint64_t tokens_emitted = 0;
};

}  // namespace millrace
