#include "engine/worker/comm_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <numeric>
#include <span>

#include "engine/worker/timer.h"
#include "parallel/partition.h"
#include "parallel/pp_link.h"

namespace millrace {

namespace {

constexpr int64_t kKiB = 1024;
constexpr int kCalls = 20;
constexpr int kRounds = 5;

class CommBench {
 public:
  CommBench(const Topology& topology, Backend& backend, const EngineConfig& config,
      int64_t hidden_size, int64_t vocab_size)
      : topology_(topology),
        device_(backend.device()),
        ops_(backend.ops()),
        tp_(backend.tp()),
        pp_(topology, backend.peers()),
        config_(config),
        hidden_(hidden_size),
        vocab_(vocab_size),
        act_(device_.activation_dtype()),
        timer_(device_) {}

  std::vector<Figure> run() {
    if (topology_.tp() > 1) {
      for (int64_t bytes = 8 * kKiB; bytes <= 16 * kKiB * kKiB; bytes *= 2) all_reduce(bytes);
      for (const int64_t rows : {1, 8, 64, 256, 1024}) fused(rows);
      for (const int64_t rows : {1, 8, 64, 256}) {
        if (rows <= config_.max_num_seqs) gather_vocabulary(rows);
      }
    }
    if (topology_.pp() > 1) {
      for (const int64_t rows : {1, 64, 256, 2048}) {
        if (rows > config_.max_num_batched_tokens) continue;
        hand_over(rows, /*every_one_answered=*/true);
        hand_over(rows, /*every_one_answered=*/false);
      }
      hand_over(1, /*every_one_answered=*/true);  // waits for what was sent before
      figures_.pop_back();
    }
    return std::move(figures_);
  }

 private:
  Tensor random(DType dtype, std::initializer_list<int64_t> shape) {
    const Tensor made = device_.tensor(dtype, shape, "a message");
    device_.fill_normal(made.view, 1e-3f, 1);
    return made;
  }
  void add(std::string name, double bytes, bool captured, const std::function<void(int)>& call) {
    const double seconds = timer_.seconds(kCalls, kRounds, captured, call);
    figures_.push_back({std::move(name), seconds, bytes, 0});
  }
  // Of a sum of so many bytes: each rank's part comes to it and the sums of all others' do.
  double reduced(int64_t bytes) const {
    return 2.0 * static_cast<double>(bytes) * (tp_.size() - 1) / tp_.size();
  }

  void all_reduce(int64_t bytes) {
    const Tensor x = random(act_, {bytes / dtype_bytes(act_, 1)});
    add(fmt::format("all-reduce {} KiB, {}", bytes / kKiB, tp_.sum_method(bytes)), reduced(bytes),
        true, [&](int) { tp_.all_reduce_sum(x.view); });
  }

  void fused(int64_t rows) {
    const Tensor x = random(act_, {rows, hidden_}), residual = random(act_, {rows, hidden_}),
                 out = random(act_, {rows, hidden_}), weight = random(DType::kF32, {hidden_});
    const auto call = [&](int) {
      return tp_.all_reduce_add_norm(x.view, residual.view, weight.view, 1e-5f, out.view);
    };
    if (!call(0)) return;
    const int64_t bytes = dtype_bytes(act_, rows * hidden_);
    add(fmt::format("all-reduce + residual + norm, {} rows, {} KiB", rows, bytes / kKiB),
        reduced(bytes), true, call);
  }

  // What drawing tokens needs of all shards: what scans found, or whole rows of logits.
  void gather_vocabulary(int64_t rows) {
    std::vector<int64_t> cols;
    for (int r = 0; r < tp_.size(); ++r) {
      cols.push_back(shard_columns(vocab_, 1, tp_.size(), r).size);
    }
    gather("logits", rows, cols);
    const int64_t scanned = ops_.scan_cols(rows, *std::max_element(cols.begin(), cols.end()));
    if (scanned > 0) {
      gather("scans", rows, std::vector(static_cast<size_t>(tp_.size()), scanned));
    }
  }

  void gather(const char* what, int64_t rows, const std::vector<int64_t>& cols) {
    const int64_t own = cols[static_cast<size_t>(tp_.rank())];
    const int64_t all = std::accumulate(cols.begin(), cols.end(), int64_t{0});
    const Tensor mine = random(DType::kF32, {rows, own});
    const Tensor out = device_.tensor(DType::kF32, {rows, all}, "gathered columns");
    add(fmt::format("gather of {}, {} rows", what, rows),
        static_cast<double>(rows * (all - own) * 4), true,
        [&](int) { tp_.all_gather_cols(mine.view, cols, out.view); });
  }

  // Hidden states from stage to stage to the last, which answers with sampled ids as in a decode
  // step: every time, or once after all.
  void hand_over(int64_t rows, bool every_one_answered) {
    // Kept: a message may be read until the next one of its lane has been sent.
    const Tensor& hidden = sent_.emplace_back(random(act_, {rows, hidden_}));
    const int64_t num_ids = std::min<int64_t>(rows, config_.max_num_seqs);
    const Tensor& ids = sent_.emplace_back(device_.tensor(DType::kI32, {num_ids}, "sampled ids"));
    const std::span<int32_t> answer(ids.view.as<int32_t>(), static_cast<size_t>(num_ids));
    const auto bytes = static_cast<double>(dtype_bytes(act_, rows * hidden_));
    add(fmt::format("hidden states of {} rows{}", rows,
            every_one_answered ? " through all stages, ids back" : ", one after another"),
        every_one_answered ? bytes * (topology_.pp() - 1) : bytes, false, [&](int i) {
          if (!topology_.first_stage()) pp_.receive_hidden(hidden.view);
          if (!topology_.last_stage()) pp_.send_hidden(i % topology_.num_lanes(), hidden.view);
          if (!every_one_answered && i + 1 < kCalls) return;
          if (topology_.last_stage()) pp_.send_ids(/*lane=*/0, answer);
          if (topology_.first_stage()) pp_.receive_ids(answer);
        });
    for (int lane = 0; lane < topology_.num_lanes(); ++lane) pp_.wait_lane(lane);
    device_.synchronize();
  }

  const Topology& topology_;
  Device& device_;
  Ops& ops_;
  DeviceComm& tp_;
  PpLink pp_;
  const EngineConfig& config_;
  const int64_t hidden_, vocab_;
  const DType act_;
  Timer timer_;
  std::vector<Figure> figures_;
  std::deque<Tensor> sent_;
};

}  // namespace

std::vector<Figure> bench_comm(const Topology& topology, Backend& backend,
    const EngineConfig& config, int64_t hidden_size, int64_t vocab_size) {
  return CommBench(topology, backend, config, hidden_size, vocab_size).run();
}

}  // namespace millrace
