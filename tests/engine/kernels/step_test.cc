// begin_step against a plain model of what a rank knows of its slots.
#include <gtest/gtest.h>

#include "tests/engine/kernels/paged_batch.h"

namespace millrace {
namespace {

constexpr int32_t kSlots = 24;
constexpr int32_t kMaxPosition = 700;
constexpr int32_t kBlockSize = 16;
constexpr int32_t kBlocks = (kMaxPosition + kBlockSize - 1) / kBlockSize;

class StepTest : public BackendTest {
 protected:
  struct Slot {
    std::vector<int32_t> ids = std::vector<int32_t>(kMaxPosition + 1);
    std::vector<int32_t> blocks = std::vector<int32_t>(kBlocks);
    int32_t num_prompt = 0;
    SamplingParams sampling;
    std::vector<TokenBias> biases;
  };

  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    memory_ =
        std::make_unique<StepMemory>(*backend_, kSlots, kMaxPosition, kBlocks, kBlockSize, 4242u);
    for (int32_t i = 0; i < kTestTokens; ++i) arrived_.push_back(1000000 + i);
    memory_->arrived = backend_->upload(arrived_);
  }
  void apply(const TestStep& step) {
    for (const auto& from : step.admissions) {
      Slot& slot = slots_[static_cast<size_t>(from.slot)];
      std::copy(from.ids.begin(), from.ids.end(), slot.ids.begin());
      slot.num_prompt = from.num_prompt;
      slot.sampling = from.sampling;
      slot.biases = from.biases;
    }
    const auto at = [](int32_t i) { return static_cast<size_t>(i); };
    for (const auto& b : step.new_blocks) slots_[at(b[0])].blocks[at(b[1])] = b[2];
    for (const auto& a : step.arrivals) slots_[at(a[0])].ids[at(a[1])] = arrived_[at(a[2])];
  }
  void begin(const BatchView& batch) { memory_->begin(*ops_, batch, {4, 2, 64, 0.125f, 0}); }
  // Replays graph `key` if it is there.
  void run_and_check(const TestStep& step, int64_t key = 0) {
    apply(step);
    const std::vector<int32_t> unwritten(kTestTokens, StepMemory::kUnwritten);
    backend_->copy(memory_->token_ids.data(), unwritten);
    backend_->copy(memory_->positions.data(), unwritten);
    const BatchView batch = memory_->upload(step);
    if (!backend_->device().replay(key)) begin(batch);
    check_slots();
    check_arrays(step);
  }
  void check_slots() {
    const auto ids =
        backend_->download(memory_->ids.view.as<int32_t>(), kSlots * (kMaxPosition + 1));
    const auto blocks =
        backend_->download(memory_->block_tables.view.as<int32_t>(), kSlots * kBlocks);
    const auto num_prompt = backend_->download(memory_->num_prompt.data(), kSlots);
    const auto sampling = backend_->download(memory_->sampling.data(), kSlots);
    const auto biases = backend_->download(memory_->biases.data(), size_t{kSlots} * kMaxLogitBias);
    const auto num_biases = backend_->download(memory_->num_biases.data(), kSlots);
    for (size_t s = 0; s < kSlots; ++s) {
      const Slot& want = slots_[s];
      ASSERT_TRUE(std::equal(want.ids.begin(), want.ids.end(),
          ids.begin() + static_cast<ptrdiff_t>(s * want.ids.size())))
          << s;
      ASSERT_TRUE(std::equal(want.blocks.begin(), want.blocks.end(),
          blocks.begin() + static_cast<ptrdiff_t>(s * want.blocks.size())))
          << s;
      ASSERT_EQ(num_prompt[s], want.num_prompt);
      ASSERT_EQ(sampling[s], want.sampling);
      const auto first = biases.begin() + static_cast<ptrdiff_t>(s) * kMaxLogitBias;
      ASSERT_EQ(std::vector(first, first + num_biases[s]), want.biases);
    }
  }
  void check_arrays(const TestStep& step) {
    const auto ids = backend_->download(memory_->token_ids.data(), kTestTokens);
    const auto positions = backend_->download(memory_->positions.data(), kTestTokens);
    const auto tables = backend_->download(memory_->table_rows.data(), step.rows.size());
    const auto outputs = backend_->download(memory_->output_tokens.data(), kTestTokens);
    const auto rows = backend_->download(memory_->sample_rows.data(), kTestTokens);
    size_t t = 0;
    size_t scored = 0;  // the next of these stands here
    for (const TestStep::Row& row : step.rows) scored += row.output ? 1 : 0;
    size_t r = 0;
    for (size_t s = 0; s < step.rows.size(); ++s) {
      const TestStep::Row& row = step.rows[s];
      const auto* table = row.slot < 0 ? memory_->padding.data()
                                       : memory_->block_tables.view.row_as<uint32_t>(row.slot);
      ASSERT_EQ(tables[s], table);
      for (int32_t p = row.first; p < row.first + row.count; ++p, ++t) {
        ASSERT_EQ(positions[t], p);
        ASSERT_EQ(ids[t],
            row.slot < 0 ? 0 : slots_[static_cast<size_t>(row.slot)].ids[static_cast<size_t>(p)]);
      }
      for (int32_t i = 0; i < row.num_scored; ++i, ++scored) {
        ASSERT_EQ(outputs[scored], static_cast<int32_t>(t) - row.count + i);
        check_sample_row(rows[scored], row.slot, row.first + i + 1, true);
      }
      if (!row.output) continue;
      ASSERT_EQ(outputs[r], static_cast<int32_t>(t) - 1);
      if (row.slot >= 0) check_sample_row(rows[r], row.slot, row.first + row.count, false);
      ++r;
    }
    ASSERT_EQ(ids[t], StepMemory::kUnwritten) << "after the last token";
    ASSERT_EQ(positions[t], StepMemory::kUnwritten);
  }
  void check_sample_row(const SampleRow& got, int32_t slot, int32_t num_ids, bool scored) {
    const Slot& want = slots_[static_cast<size_t>(slot)];
    ASSERT_EQ(got.params, memory_->sampling.data() + slot);
    ASSERT_EQ(got.position, static_cast<uint64_t>(num_ids));
    ASSERT_EQ(got.ids, memory_->ids.view.row_as<int32_t>(slot));
    ASSERT_EQ(got.num_prompt, want.num_prompt);
    ASSERT_EQ(got.num_ids, num_ids);
    ASSERT_EQ(
        got.biases, memory_->biases.data() + size_t{kMaxLogitBias} * static_cast<size_t>(slot));
    ASSERT_EQ(got.num_biases, static_cast<int32_t>(want.biases.size()));
    ASSERT_EQ(got.scored, scored ? want.ids[static_cast<size_t>(num_ids)] : -1);
  }
  TestStep::Admitted admitted(int32_t slot, int32_t num_prompt, int32_t num_ids) {
    TestStep::Admitted a{slot, num_prompt, {}, {}};
    for (int32_t i = 0; i < num_ids; ++i) {
      a.ids.push_back(static_cast<int32_t>(random_.below(kTestVocabulary)));
    }
    a.sampling.temperature = random_.normal();
    a.sampling.top_k = static_cast<int32_t>(random_.below(100));
    a.sampling.seed = static_cast<uint64_t>(random_.below(int64_t{1} << 62));
    a.sampling.num_logprobs = static_cast<int32_t>(random_.below(20));
    a.biases.resize(
        static_cast<size_t>(random_.below(3) == 0 ? random_.below(kMaxLogitBias + 1) : 0));
    for (size_t i = 0; i < a.biases.size(); ++i) {
      a.biases[i] = {static_cast<int32_t>(3 * i), random_.normal()};
    }
    return a;
  }

  std::unique_ptr<StepMemory> memory_;
  std::vector<int32_t> arrived_;
  std::vector<Slot> slots_ = std::vector<Slot>(kSlots);
};

TEST_P(StepTest, AdmitsAndPrefills) {
  TestStep step;
  step.admissions = {admitted(3, 40, 40), admitted(0, 1, 1), admitted(kSlots - 1, 5, kMaxPosition)};
  step.new_blocks = {{3, 0, 7}, {3, 1, 9}, {3, 2, 1}, {0, 0, 0}, {kSlots - 1, kBlocks - 1, 8}};
  step.rows = {{0, 0, 1, true}, {3, 0, 40, true, 39}, {kSlots - 1, 0, 300, false, 300}};
  run_and_check(step);
  TestStep next;  // the rest of a prompt beside decode, whose ids have just arrived
  next.arrivals = {{3, 40, 17}, {0, 1, 3}};
  next.rows = {{3, 40, 1, true}, {0, 1, 1, true}, {kSlots - 1, 300, kMaxPosition - 300, true}};
  run_and_check(next);
}

TEST_P(StepTest, LaterSectionsWin) {
  TestStep step;
  step.admissions = {admitted(2, 4, 6)};
  step.new_blocks = {{2, 0, 5}, {1, 3, 6}};
  step.arrivals = {{2, 5, 100}, {2, 6, 101}, {1, 0, 102}};
  step.rows = {{2, 3, 4, true}, {1, 0, 1, true}};
  run_and_check(step);
}

TEST_P(StepTest, PaddingRows) {
  TestStep step;
  step.admissions = {admitted(1, 3, 3)};
  step.rows = {{1, 2, 1, true}, {-1, 0, 1, true}, {-1, 0, 1, true}, {-1, 0, 1, true}};
  run_and_check(step);
  TestStep all;
  all.rows.assign(kTestSequences, {-1, 0, 1, true});
  run_and_check(all);
}

TEST_P(StepTest, StepsWithoutRows) {
  run_and_check(TestStep());
  TestStep step;
  step.admissions = {admitted(5, 10, 12)};
  step.new_blocks = {{5, 0, 3}};
  step.arrivals = {{5, 12, 1}};
  run_and_check(step);
}

TEST_P(StepTest, RandomSteps) {
  for (int i = 0; i < 60; ++i) {
    TestStep step;
    int32_t budget = kTestTokens - 1;
    for (int32_t slot = 0; slot < kSlots; ++slot) {
      if (random_.below(4) == 0) {
        const auto num_ids = static_cast<int32_t>(1 + random_.below(kMaxPosition));
        step.admissions.push_back(
            admitted(slot, static_cast<int32_t>(1 + random_.below(num_ids)), num_ids));
      }
      for (int32_t b = 0; b < random_.below(4); ++b) {
        step.new_blocks.push_back({slot, b * 10 + static_cast<int32_t>(random_.below(10)),
            static_cast<int32_t>(random_.below(5000))});
      }
      if (random_.below(2) == 0) {
        step.arrivals.push_back({slot, static_cast<int32_t>(random_.below(kMaxPosition + 1)),
            static_cast<int32_t>(random_.below(kTestTokens))});
      }
      const auto first = static_cast<int32_t>(random_.below(kMaxPosition));
      const auto most = std::min({budget, kMaxPosition - first, random_.below(3) == 0 ? 300 : 1});
      if (most < 1 || random_.below(4) == 0) continue;
      const auto count = static_cast<int32_t>(1 + random_.below(most));
      budget -= count;
      const bool output = random_.below(3) != 0;
      const auto scored = static_cast<int32_t>(random_.below(count));
      step.rows.push_back({slot, first, count, output, random_.below(3) == 0 ? scored : 0});
    }
    run_and_check(step);
    if (HasFatalFailure()) return;
  }
}

// A batch captured while nothing arrived takes whatever a later one brings.
TEST_P(StepTest, CapturedStepTakesOtherContents) {
  TestStep padding;
  padding.rows.assign(4, {-1, 0, 1, true});
  const BatchView batch = memory_->upload(padding);
  begin(batch);
  backend_->device().synchronize();
  backend_->device().capture(4, [&] { begin(batch); });
  TestStep step;
  step.admissions = {admitted(6, 100, 600), admitted(7, 3, 3)};
  step.new_blocks = {{6, 0, 1}, {6, 1, 2}, {7, 0, 3}};
  step.arrivals = {{6, 600, 5}, {7, 3, 6}};
  step.rows = {{7, 3, 1, true}, {6, 600, 1, true}, {-1, 0, 1, true}, {-1, 0, 1, true}};
  run_and_check(step, 4);
  step.admissions.clear();
  step.new_blocks.clear();
  step.arrivals = {{6, 601, 50}, {7, 4, 60}};
  step.rows = {{6, 601, 1, true}, {7, 4, 1, true}, {0, 0, 1, true}, {-1, 0, 1, true}};
  run_and_check(step, 4);
}

MILLRACE_ON_ALL_BACKENDS(StepTest);

}  // namespace
}  // namespace millrace
