#include "engine/protocol/step.h"

#include <utility>

#include "engine/base/check.h"

// A plan's body: u64 sequence, u64 slot hash, u16 number of sections, then the sections in
// ascending order of type, each u16 type, u32 length, body. An empty section is left out, so a
// plan has one encoding only.
//
// A result's body: u64 sequence, u16 stage, u32 compute, comm and idle time, u32 number of rows,
// the rows.

namespace millrace {

namespace {

enum class Section : uint16_t { kReleases = 1, kAdmissions = 2, kRows = 3, kNewBlocks = 4 };

constexpr size_t kMaxRows = 65536;       // one per slot
constexpr size_t kMinResultBytes = 7;    // slot, status, number of tokens
constexpr size_t kMinTokenBytes = 12;    // id, logprob, number of alternatives
constexpr size_t kLogprobBytes = 8;      // id, logprob
constexpr uint16_t kCountMask = 0x3fff;  // of a row's second word; its output stands above
static_assert(kCountMask == kMaxRowTokens);

class SectionWriter {
 public:
  explicit SectionWriter(ByteWriter& out) : out_(out), count_at_(out.size()) {
    out_.put(uint16_t{0});
  }
  template <typename Body>
  void add(Section type, bool empty, const Body& body) {
    if (empty) return;
    out_.put(type);
    const size_t length_at = out_.size();
    out_.put(uint32_t{0});
    body();
    out_.patch(length_at, static_cast<uint32_t>(out_.size() - length_at - sizeof(uint32_t)));
    out_.patch(count_at_, ++count_);
  }

 private:
  ByteWriter& out_;
  size_t count_at_;
  uint16_t count_ = 0;
};

void put(ByteWriter& out, const Admission& admission) {
  out.put(admission.slot);
  out.put(admission.num_computed);
  out.put(admission.num_prompt);
  put(out, admission.sampling);
  out.put_array(std::span<const int32_t>(admission.token_ids));
}

void put_rows(ByteWriter& out, const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    CHECK(row.count >= 1 && row.count <= kMaxRowTokens, "slot {} gets {} tokens", row.slot,
        row.count);
    out.put(row.slot);
    out.put(static_cast<uint16_t>(row.count | static_cast<uint16_t>(row.output) << 14));
  }
}

bool has_new_blocks(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    if (!row.new_blocks.empty()) return true;
  }
  return false;
}

bool get_releases(ByteReader in, std::vector<uint16_t>& releases) {
  if (in.remaining() > kMaxRows * sizeof(uint16_t)) return false;
  releases.reserve(in.remaining() / sizeof(uint16_t));
  while (in.remaining() > 0 && in.ok()) releases.push_back(in.get<uint16_t>());
  return in.done();
}

bool get_admissions(ByteReader in, std::vector<Admission>& admissions) {
  while (in.ok() && in.remaining() > 0 && admissions.size() < kMaxRows) {
    Admission admission;
    admission.slot = in.get<uint16_t>();
    admission.num_computed = in.get<uint32_t>();
    admission.num_prompt = in.get<uint32_t>();
    admission.sampling = get_sampling_params(in);
    admission.token_ids = in.get_array<int32_t>();
    // The last known id is always still to be computed: its logits give the next one.
    const size_t num_ids = admission.token_ids.size();
    if (!in.ok() || admission.num_computed >= num_ids || admission.num_prompt < 1 ||
        admission.num_prompt > num_ids || !within_limits(admission.sampling)) {
      return false;
    }
    for (const int32_t id : admission.token_ids) {
      if (id < 0) return false;
    }
    admissions.push_back(std::move(admission));
  }
  return in.done();
}

bool get_rows(ByteReader in, std::vector<Row>& rows) {
  constexpr size_t kRowBytes = 4;
  if (in.remaining() % kRowBytes != 0 || in.remaining() / kRowBytes > kMaxRows) return false;
  rows.reserve(in.remaining() / kRowBytes);
  while (in.remaining() > 0) {
    Row row;
    row.slot = in.get<uint16_t>();
    const auto word = in.get<uint16_t>();
    row.count = word & kCountMask;
    if (row.count == 0 || word >> 14 > static_cast<int>(Output::kLast)) return false;
    row.output = static_cast<Output>(word >> 14);
    rows.push_back(std::move(row));
  }
  return in.done();
}

// Row indices ascend and no array is empty.
bool get_new_blocks(ByteReader in, std::vector<Row>& rows) {
  size_t next = 0;
  while (in.ok() && in.remaining() > 0) {
    const size_t index = in.get<uint16_t>();
    std::vector<BlockId> blocks = in.get_array<BlockId>();
    if (!in.ok() || index < next || index >= rows.size() || blocks.empty()) return false;
    rows[index].new_blocks = std::move(blocks);
    next = index + 1;
  }
  return in.done();
}

bool get_section(Section type, ByteReader body, StepPlan& plan) {
  switch (type) {
    case Section::kReleases: return get_releases(body, plan.releases);
    case Section::kAdmissions: return get_admissions(body, plan.admissions);
    case Section::kRows: return get_rows(body, plan.rows);
    case Section::kNewBlocks: return get_new_blocks(body, plan.rows);
  }
  return false;  // of a newer protocol: to skip it would be to run another plan
}

void put(ByteWriter& out, const SampledToken& token) {
  out.put(token.token);
  out.put(token.logprob);
  out.put(static_cast<uint32_t>(token.top.size()));
  for (const TokenLogprob& entry : token.top) {
    out.put(entry.token);
    out.put(entry.logprob);
  }
}

bool get_token(ByteReader& in, SampledToken& token) {
  token.token = in.get<int32_t>();
  token.logprob = in.get<float>();
  const auto count = in.get<uint32_t>();
  if (!in.ok() || token.token < 0 || count > kMaxLogprobs ||
      count * kLogprobBytes > in.remaining()) {
    return false;
  }
  token.top.resize(count);
  for (TokenLogprob& entry : token.top) {
    entry.token = in.get<int32_t>();
    entry.logprob = in.get<float>();
    if (entry.token < 0) return false;
  }
  return true;
}

bool get_row_result(ByteReader& in, RowResult& row) {
  row.slot = in.get<uint16_t>();
  row.status = in.get<RowStatus>();
  const auto count = in.get<uint32_t>();
  if (!in.ok() || row.status > RowStatus::kNonFinite || count > kMaxRowTokens ||
      count * kMinTokenBytes > in.remaining()) {
    return false;
  }
  row.tokens.resize(count);
  for (SampledToken& token : row.tokens) {
    if (!get_token(in, token)) return false;
  }
  return true;
}

}  // namespace

Bytes encode(const StepPlan& plan) {
  CHECK(plan.rows.size() <= kMaxRows && plan.releases.size() <= kMaxRows &&
        plan.admissions.size() <= kMaxRows);
  ByteWriter out;
  out.put(plan.sequence);
  out.put(plan.slot_hash);
  SectionWriter sections(out);
  sections.add(Section::kReleases, plan.releases.empty(), [&] {
    for (const uint16_t slot : plan.releases) out.put(slot);
  });
  sections.add(Section::kAdmissions, plan.admissions.empty(), [&] {
    for (const Admission& admission : plan.admissions) put(out, admission);
  });
  sections.add(Section::kRows, plan.rows.empty(), [&] { put_rows(out, plan.rows); });
  sections.add(Section::kNewBlocks, !has_new_blocks(plan.rows), [&] {
    for (size_t i = 0; i < plan.rows.size(); ++i) {
      if (plan.rows[i].new_blocks.empty()) continue;
      out.put(static_cast<uint16_t>(i));
      out.put_array(std::span<const BlockId>(plan.rows[i].new_blocks));
    }
  });
  return out.take();
}

bool decode(std::span<const uint8_t> bytes, StepPlan* plan) {
  ByteReader in(bytes);
  StepPlan read;
  read.sequence = in.get<uint64_t>();
  read.slot_hash = in.get<uint64_t>();
  const auto num_sections = in.get<uint16_t>();
  uint16_t last_type = 0;
  for (uint16_t i = 0; i < num_sections; ++i) {
    const auto type = in.get<uint16_t>();
    const auto length = in.get<uint32_t>();
    const ByteReader body = in.sub(length);
    if (!in.ok() || type <= last_type || length == 0 ||
        !get_section(static_cast<Section>(type), body, read)) {
      return false;
    }
    last_type = type;
  }
  if (!in.done()) return false;
  *plan = std::move(read);
  return true;
}

Bytes encode(const StepResult& result) {
  ByteWriter out;
  out.put(result.sequence);
  out.put(result.stage);
  out.put(result.compute_us);
  out.put(result.comm_us);
  out.put(result.idle_us);
  out.put(static_cast<uint32_t>(result.rows.size()));
  for (const RowResult& row : result.rows) {
    out.put(row.slot);
    out.put(row.status);
    out.put(static_cast<uint32_t>(row.tokens.size()));
    for (const SampledToken& token : row.tokens) put(out, token);
  }
  return out.take();
}

bool decode(std::span<const uint8_t> bytes, StepResult* result) {
  ByteReader in(bytes);
  StepResult read;
  read.sequence = in.get<uint64_t>();
  read.stage = in.get<uint16_t>();
  read.compute_us = in.get<uint32_t>();
  read.comm_us = in.get<uint32_t>();
  read.idle_us = in.get<uint32_t>();
  const auto num_rows = in.get<uint32_t>();
  if (num_rows > kMaxRows || num_rows * kMinResultBytes > in.remaining()) return false;
  read.rows.resize(num_rows);
  for (RowResult& row : read.rows) {
    if (!get_row_result(in, row)) return false;
  }
  if (!in.done()) return false;
  *result = std::move(read);
  return true;
}

}  // namespace millrace
