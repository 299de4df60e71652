#include "engine/protocol/step.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"

// A plan's body: u64 sequence, u64 slot hash, u16 number of sections, then the sections in
// ascending order of type, each u16 type, u32 length, body. An empty section is left out, so a
// plan has one encoding only.

namespace millrace {

namespace {

enum class Section : uint16_t { kReleases = 1, kAdmissions = 2, kRows = 3, kNewBlocks = 4 };

constexpr size_t kCountAt = 16;          // of the number of sections
constexpr uint16_t kCountMask = 0x3fff;  // of a row's second word; its output stands above
static_assert(kCountMask == kMaxRowTokens);

bool get_releases(ByteReader in, std::vector<uint16_t>& releases) {
  while (in.ok() && in.remaining() > 0 && releases.size() < kMaxRows) {
    releases.push_back(in.get<uint16_t>());
  }
  return in.done();
}

bool get_admissions(ByteReader in, std::vector<Admission>& admissions) {
  while (in.ok() && in.remaining() > 0 && admissions.size() < kMaxRows) {
    Admission& admission = admissions.emplace_back();
    in(admission);
    // The last known id is always still to be computed: its logits give the next one.
    const auto& ids = admission.token_ids;
    if (!in.ok() || admission.num_computed >= ids.size() || admission.num_prompt < 1 ||
        admission.num_prompt > ids.size() || !within_limits(admission.sampling) ||
        !within_limits(admission.logit_bias) ||
        std::ranges::any_of(ids, [](int32_t id) { return id < 0; })) {
      return false;
    }
  }
  return in.done();
}

bool get_rows(ByteReader in, std::vector<Row>& rows) {
  while (in.ok() && in.remaining() > 0 && rows.size() < kMaxRows) {
    Row& row = rows.emplace_back();
    row.slot = in.get<uint16_t>();
    const auto word = in.get<uint16_t>();
    row.count = word & kCountMask;
    if (row.count == 0) return false;
    row.output = static_cast<Output>(word >> 14);
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

}  // namespace

Bytes encode(const StepPlan& plan) {
  CHECK(plan.rows.size() <= kMaxRows && plan.releases.size() <= kMaxRows &&
        plan.admissions.size() <= kMaxRows);
  ByteWriter releases, admissions, rows, new_blocks;
  for (const uint16_t slot : plan.releases) releases(slot);
  for (const Admission& admission : plan.admissions) admissions(admission);
  for (size_t i = 0; i < plan.rows.size(); ++i) {
    const Row& row = plan.rows[i];
    CHECK(row.count >= 1 && row.count <= kMaxRowTokens, "slot {} gets {} tokens", row.slot,
        row.count);
    rows(row.slot, static_cast<uint16_t>(row.count | static_cast<uint16_t>(row.output) << 14));
    if (!row.new_blocks.empty()) new_blocks(static_cast<uint16_t>(i), row.new_blocks);
  }

  ByteWriter out;
  uint16_t num_sections = 0;
  out(plan.sequence, plan.slot_hash, num_sections);
  const auto add = [&](Section type, ByteWriter& body) {
    if (body.size() == 0) return;
    out(type, body.take());
    out.patch(kCountAt, ++num_sections);
  };
  add(Section::kReleases, releases);
  add(Section::kAdmissions, admissions);
  add(Section::kRows, rows);
  add(Section::kNewBlocks, new_blocks);
  return out.take();
}

bool decode(std::span<const uint8_t> bytes, StepPlan* plan) {
  ByteReader in(bytes);
  StepPlan read;
  uint16_t num_sections = 0;
  in(read.sequence, read.slot_hash, num_sections);
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

bool within_limits(const StepResult& result) {
  const auto is_id = [](const TokenLogprob& entry) { return entry.token >= 0; };
  const auto are_ids = [&](const std::vector<SampledToken>& tokens) {
    return std::ranges::all_of(tokens, [&](const SampledToken& sampled) {
      return sampled.token >= 0 && std::ranges::all_of(sampled.top, is_id);
    });
  };
  return std::ranges::all_of(result.rows, [&](const RowResult& row) {
    return row.status <= RowStatus::kNonFinite && are_ids(row.tokens) && are_ids(row.scored);
  });
}

}  // namespace millrace
