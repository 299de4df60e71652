// Which sequences run in the next step, and with how many tokens. Pure and deterministic: no
// clock, no thread, no socket; the same calls give the same plans. By rank: priority and arrival.
//
// A sequence has num_computed and num_tokens; plan() advances the first, commit() the second, and
// the difference is what is in flight (docs/architecture.md, the step contract).
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <list>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/protocol/slot_table.h"
#include "engine/protocol/step.h"
#include "scheduler/block_pool.h"
#include "scheduler/prefix_cache.h"
#include "scheduler/step_model.h"

namespace millrace {

// What steps are sized by. kTime is the engine's way; the others are for the simulator, to show
// what it gives: a step has its share of the tokens, or as many of them as it holds, first come.
enum class Balance : uint8_t { kTime, kTokens, kFirstCome };

struct SchedulerConfig {
  int32_t pp = 1;  // stages; lanes are pp + 1
  int32_t block_size = 16;
  uint32_t num_blocks = 0;
  int32_t max_num_seqs = 64;
  int32_t max_num_batched_tokens = 2048;
  int32_t max_queue = 1024;  // waiting requests beyond which add() says overloaded
  // While fewer wait for their first token than decode, a step with prompt tokens takes at most
  // this many times as long as one of decode rows alone: no prompt stretches the others' time
  // between tokens further. 0: no such limit.
  double max_stretch = 0;
  Balance balance = Balance::kTime;
  SipKey cache_key{};  // of the prefix cache's hash: random where clients choose prompts
};

// What commit() reports for one request.
struct Emission {
  RequestId id = 0;
  std::vector<SampledToken> tokens;
  FinishReason finish = FinishReason::kNone;
  Status status;  // not ok with kError only
  // With the first token, if asked for: the logprobs of the prompt's ids after the first. Nothing
  // of them comes before, so that a request that starts over has reported none.
  std::vector<SampledToken> prompt;
};

struct SchedulerStats {
  int32_t running = 0;
  int32_t waiting = 0;
  RequestId next = 0;        // of those the one that runs first, if it has not run yet; 0: none
  uint32_t free_blocks = 0;  // those that keep a prefix included
  uint32_t num_blocks = 0;
  uint64_t steps = 0;
  uint64_t tokens_computed = 0;
  uint64_t tokens_emitted = 0;
  uint64_t preemptions = 0;
  uint64_t admitted_tokens = 0;    // prompts, and what was known of preempted ones, ...
  uint64_t prefix_hit_tokens = 0;  // ... of which the prefix cache had this many
  // Of as many newest plans as there are lanes: (longest - shortest) / longest, a running mean.
  double lane_spread = 0;
  double model_error = 0;  // relative, of the step-time model's worst stage; 0 until it is ready
  std::vector<StepModel::Terms> step_models;  // weights, per stage
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerConfig& config);

  // Queues a validated request. Not ok: kOverloaded when the queue is full, kInvalidArgument when
  // prompt + max_tokens can never fit the pool. `id` is new. The deadline is a time as expire()
  // gets it.
  Status add(RequestId id, Request request, int64_t deadline = INT64_MAX);
  // The request gets no further emission. In flight, its slot and blocks come back once the last
  // plan that names it is committed. Unknown ids are ignored (it may have just finished).
  void cancel(RequestId id);
  // Ends the requests whose deadline is not after `now`: kError, with Status kTimeout. Any unit.
  std::vector<Emission> expire(int64_t now);

  // The next plan, or nothing: no lane is free, or nothing can run. A plan without rows keeps apart
  // the plans of decoding sequences that are too few for the stages (scheduler/README.md). `failed`
  // receives requests that can never run (nothing in flight and nothing admitted: the oldest ends,
  // so the engine moves; call again).
  std::optional<StepPlan> plan(std::vector<Emission>& failed);
  // Takes the last stage's result of the oldest uncommitted plan; CHECKs the order.
  std::vector<Emission> commit(const StepResult& result);
  // How long a stage took for a plan, from the result of any stage, before its commit or after: the
  // step-time model learns from it. Without it steps are balanced by tokens alone.
  void observe(const StepResult& result);

  // Plans issued and not committed.
  int32_t num_in_flight() const { return static_cast<int32_t>(flights_.size()); }
  // No request known and nothing in flight.
  bool idle() const { return sequences_.empty() && flights_.empty(); }
  SchedulerStats stats() const;
  // free + held = total, every table within bounds, every count consistent; "" or what is broken.
  std::string check_integrity() const;

 private:
  // Where a sequence stands. It is in the list of its phase and in no other.
  //
  //   kWaiting -> kPrefill -> kDecode -> kPlanned -> kRetiring -> gone
  //      ^           |           |
  //      +------- kPreempted <---+
  //
  // kPlanned: every position it may need is in a plan, results are due. kRetiring: it has ended,
  // but plans in flight name it. A stop, an error or a cancel leads to kRetiring from anywhere.
  // kPreempted: its blocks are others' now; it waits again, from position 0 and with all ids it
  // has, once no plan in flight names it.
  enum class Phase : uint8_t { kWaiting, kPrefill, kDecode, kPlanned, kPreempted, kRetiring };
  static constexpr int kNumPhases = 6;

  // One request: how far it is planned, how far it is known, what it holds.
  struct Sequence {
    RequestId id = 0;
    Request request;           // its prompt is in `ids`
    std::vector<int32_t> ids;  // known: prompt, then what was committed
    int32_t num_prompt = 0;
    int64_t rank = 0;  // lower goes first
    uint64_t arrival = 0;
    int64_t deadline = INT64_MAX;
    Phase phase = Phase::kWaiting;
    std::list<Sequence*>::iterator place;  // in the list of its phase

    int32_t target = 0;  // positions to compute before it decodes: ids known when it began to wait
    // The first position whose next id is still to be scored; kNothing: all that was asked for is
    // in a plan, or nothing was.
    static constexpr int32_t kNothing = INT32_MAX;
    int32_t unscored = kNothing;
    std::vector<SampledToken> scored;  // of the prompt, committed and not emitted

    // From admission on.
    uint16_t slot = 0;
    std::vector<Block> blocks;       // block b holds positions [b * block_size, ...)
    size_t num_told = 0;             // blocks that a plan has named
    size_t num_published = 0;        // blocks that the prefix cache has seen
    PrefixCache::Chain chain;        // of these
    int32_t num_computed = 0;        // positions planned
    int32_t in_flight = 0;           // uncommitted plans that name it
    uint64_t last_plan = 0;          // the newest plan that samples for it
    uint64_t last_row = UINT64_MAX;  // the newest plan that names it

    int32_t num_known() const { return static_cast<int32_t>(ids.size()); }
    // Positions to compute in all. The last token is emitted and never computed.
    int32_t num_positions() const { return num_prompt + request.max_tokens - 1; }
    int32_t prompt_left() const { return target - num_computed; }
    // From `first` on, of one row: what had its scores before a preemption gets none again.
    int32_t row_left(int32_t first) const {
      return std::min(target, first < unscored ? unscored : target) - first;
    }
    bool goes_before(const Sequence& other) const {
      return std::pair(rank, arrival) < std::pair(other.rank, other.arrival);
    }
  };

  // A plan that is issued and not committed.
  struct InFlight {
    struct PlannedRow {
      Sequence* sequence;  // stays until the plan is committed
      int32_t count;
      Output output;
    };
    uint64_t number = 0;
    StepWork work;
    std::vector<PlannedRow> rows;
  };
  // The blocks that the prefix cache has for a sequence that waits.
  struct Prefix {
    std::vector<BlockId> blocks;
    PrefixCache::Chain chain;
    int64_t num_idle = 0;    // of the blocks: in use by nobody
    bool computing = false;  // the next one is computed by the plan in the making
  };
  // What was asked by a plan whose times may still come in.
  struct Issued {
    uint64_t number = UINT64_MAX;
    StepWork work;
  };

  // scheduler.cc
  void move(Sequence& sequence, Phase phase);
  std::list<Sequence*>::iterator place_in(std::list<Sequence*>& ranked, const Sequence& sequence);
  // The sequence gets no further row; it goes at once, or with the last plan that names it.
  void retire(Sequence& sequence);
  void forget(Sequence& sequence);
  void wait_again(Sequence& sequence);
  void free_slot(const Sequence& sequence);

  // plan.cc
  bool decode_due(const Sequence& sequence) const;
  bool filler_due() const;
  void plan_decodes(StepPlan& plan, InFlight& record);
  void plan_prefills(StepPlan& plan, InFlight& record);
  void plan_admissions(int32_t budget, double limit, StepPlan& plan, InFlight& record);
  int32_t chunk_of(
      int32_t first, int32_t left, double limit, const InFlight& record, int32_t& budget) const;
  void add_row(Sequence& sequence, int32_t count, StepPlan& plan, InFlight& record);
  void fail_oldest(std::vector<Emission>& failed);

  // memory.cc
  int32_t blocks_for(int64_t positions) const;
  Prefix find_prefix(const Sequence& sequence) const;
  bool fits(const Sequence& sequence, const Prefix& prefix);
  int64_t blocks_to_admit() const;
  void admit(Sequence& sequence, const Prefix& prefix, StepPlan& plan);
  void make_way();
  int32_t secure_blocks(const Sequence& sequence, int32_t count);
  Sequence* last_behind(const Sequence& sequence, int32_t priority_below);
  void preempt(Sequence& sequence);
  void publish(Sequence& sequence, uint64_t plan);

  // balance.cc
  int64_t runnable_prompt_tokens() const;
  int32_t prefill_budget(int32_t num_decodes);
  double time_limit() const;
  int32_t fit_chunk(const StepWork& work, int64_t first, int32_t count, double limit) const;
  bool model_ready() const;
  double step_seconds(const StepWork& work) const;  // of the slowest stage; 0 until observed
  double newest_spread() const;

  // commit.cc
  Emission take_row(Sequence& sequence, const RowResult& row);

  // integrity.cc
  std::string check_sequences() const;
  std::string check_sequence(const Sequence& sequence) const;
  std::string check_flights() const;
  std::string check_memory() const;
  std::string check_slots() const;

  std::list<Sequence*>& list(Phase phase) { return lists_[static_cast<size_t>(phase)]; }
  const std::list<Sequence*>& list(Phase phase) const { return lists_[static_cast<size_t>(phase)]; }
  int32_t size(Phase phase) const { return static_cast<int32_t>(list(phase).size()); }
  int32_t num_lanes() const { return config_.pp + 1; }

  const SchedulerConfig config_;
  BlockPool pool_;  // outlives the blocks that `sequences_` hold
  PrefixCache cache_;
  SlotTable table_;
  std::unordered_map<RequestId, Sequence> sequences_;  // every request known, at a fixed address
  // By phase. Waiting and prefill by rank, decode in order of the last plan.
  std::array<std::list<Sequence*>, kNumPhases> lists_;
  std::vector<uint16_t> free_slots_;        // the last one goes first
  std::vector<uint16_t> pending_releases_;  // free already; the next plan tells the ranks
  std::deque<InFlight> flights_;            // oldest first
  std::vector<StepModel> models_;           // per stage
  std::vector<Issued> issued_;              // plan n at n mod size
  StepWork last_decodes_;                   // of the newest plan that had decode rows
  uint64_t next_plan_ = 0;
  std::set<std::pair<int64_t, RequestId>> deadlines_;
  uint64_t num_arrivals_ = 0;
  int32_t lowest_priority_ = INT32_MAX;  // of all requests so far
  // The head of the queue did not fit when so many blocks were to be had.
  std::pair<RequestId, int64_t> blocked_{0, INT64_MIN};
  int64_t prompt_backlog_ = 0;  // tokens to compute before their sequence decodes, not planned yet
  double prompt_share_ = 0;     // of it, what a step takes: follows the backlog
  double lane_spread_ = 0;
  uint64_t preemptions_ = 0;
  uint64_t admitted_tokens_ = 0;
  uint64_t prefix_hit_tokens_ = 0;
  uint64_t steps_ = 0;
  uint64_t tokens_computed_ = 0;
  uint64_t tokens_emitted_ = 0;
};

}  // namespace millrace
