// begin_step: one block reads the whole step, so that what it takes in is there when it expands the
// rows. The counts come from the header: a captured launch is replayed with other ones.
#include "engine/core/cuda/cuda_device.h"
#include "engine/kernels/cuda/kernels.h"
#include "engine/kernels/cuda/math.cuh"

namespace millrace::cuda {

namespace {

constexpr int32_t kThreads = 1024;

__device__ int32_t* row_of(const TensorView& t, int32_t i) {
  return reinterpret_cast<int32_t*>(t.data + i * t.stride);
}

// body(i) for i in [0, count), dealt to the threads.
template <typename Body>
__device__ void for_all(int32_t count, const Body& body) {
  for (auto i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) body(i);
}

// max_ids, max_blocks: columns of the slots' rows.
__device__ void take_in(const int32_t* words, const StepHeader& header, const int32_t* arrived,
    const SlotState& slots, int32_t max_ids, int32_t max_blocks) {
  const auto* admissions = reinterpret_cast<const AdmittedSlot*>(words + header.admissions);
  for (int32_t a = 0; a < header.num_admissions; ++a) {
    const AdmittedSlot& admitted = admissions[a];
    const int32_t* from = words + header.ids + admitted.first_id;
    int32_t* to = row_of(slots.ids, admitted.slot);
    for_all(min(admitted.num_ids, max_ids), [&](int32_t i) { to[i] = from[i]; });
    const auto* biases = reinterpret_cast<const TokenBias*>(from + admitted.num_ids);
    TokenBias* to_biases = slots.biases + int64_t{admitted.slot} * kMaxLogitBias;
    for_all(min(admitted.num_biases, kMaxLogitBias), [&](int32_t i) { to_biases[i] = biases[i]; });
    if (threadIdx.x != 0) continue;
    slots.num_prompt[admitted.slot] = admitted.num_prompt;
    slots.sampling[admitted.slot] = admitted.sampling;
    slots.num_biases[admitted.slot] = admitted.num_biases;
  }
  __syncthreads();
  for_all(header.num_new_blocks, [&](int32_t i) {
    const int32_t* block = words + header.new_blocks + 3 * i;
    if (block[1] < max_blocks) row_of(slots.block_tables, block[0])[block[1]] = block[2];
  });
  for_all(header.num_arrivals, [&](int32_t i) {
    const int32_t* arrival = words + header.arrivals + 3 * i;
    if (arrival[1] < max_ids) row_of(slots.ids, arrival[0])[arrival[1]] = arrived[arrival[2]];
  });
}

__global__ void __launch_bounds__(kThreads)
    begin_step_kernel(const StepHeader* step, const int32_t* arrived, SlotState slots,
        StepArrays arrays, int32_t max_ids, int32_t max_blocks, int32_t num_single) {
  const auto* words = reinterpret_cast<const int32_t*>(step);
  const StepHeader header = *step;
  take_in(words, header, arrived, slots, max_ids, max_blocks);
  __syncthreads();
  const int32_t* slot_of = words + header.slots;
  const int32_t* first = words + header.first;
  const int32_t* cu_tokens = words + header.cu_tokens;
  for_all(header.num_tokens, [&](int32_t t) {
    const int32_t s = sequence_of(t, cu_tokens, num_single, header.num_sequences);
    const int32_t position = first[s] + t - cu_tokens[s];
    arrays.positions[t] = position;
    arrays.ids[t] = slot_of[s] < 0 ? 0 : row_of(slots.ids, slot_of[s])[min(position, max_ids - 1)];
  });
  for_all(header.num_sequences, [&](int32_t s) {
    arrays.block_tables[s] =
        slot_of[s] < 0 ? arrays.padding_block
                       : reinterpret_cast<uint32_t*>(row_of(slots.block_tables, slot_of[s]));
  });
  for_all(header.num_outputs, [&](int32_t r) {
    const int32_t t = words[header.outputs + r];
    const int32_t s = sequence_of(t, cu_tokens, num_single, header.num_sequences);
    arrays.output_tokens[r] = t;
    // Nobody reads what a padding row gives, but it must be drawable.
    const bool padding = slot_of[s] < 0;
    const int32_t slot = padding ? 0 : slot_of[s];
    const int32_t known = padding ? 0 : first[s] + t + 1 - cu_tokens[s];
    const bool scored = r >= header.num_outputs - header.num_scored;
    SampleRow& row = arrays.sample_rows[r];
    row.params = slots.sampling + slot;
    row.position = static_cast<uint64_t>(known);
    row.ids = row_of(slots.ids, slot);
    row.num_prompt = padding ? 0 : slots.num_prompt[slot];
    row.num_ids = min(known, max_ids);
    row.biases = slots.biases + int64_t{slot} * kMaxLogitBias;
    row.num_biases = padding ? 0 : slots.num_biases[slot];
    row.scored = scored ? row.ids[min(known, max_ids - 1)] : -1;
  });
}

}  // namespace

void begin_step(const StepHeader* step, const int32_t* arrived, const SlotState& slots,
    const StepArrays& arrays, const BatchView& batch, cudaStream_t stream) {
  CHECK(slots.ids.rank == 2 && slots.block_tables.rank == 2);
  begin_step_kernel<<<1, kThreads, 0, stream>>>(step, arrived, slots, arrays,
      static_cast<int32_t>(slots.ids.cols()), static_cast<int32_t>(slots.block_tables.cols()),
      batch.num_single);
  check_cuda(cudaGetLastError(), "begin_step");
}

}  // namespace millrace::cuda
