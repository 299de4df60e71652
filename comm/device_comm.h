// The data plane's two shapes: collectives in a tensor-parallel group and transfers between
// pipeline stages. MPI on the CPU; NCCL on GPUs. One compute thread per rank.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/core/tensor.h"

namespace millrace {

// A tensor-parallel group. Every rank calls the same verbs in the same order. This class itself is
// a group of one: nothing to do.
class DeviceComm {
 public:
  virtual ~DeviceComm() = default;
  virtual int rank() const { return 0; }
  virtual int size() const { return 1; }
  // x (contiguous; f32, on GPUs f16 or bf16 as well) = sum over ranks: the same bits on every rank,
  // and on the CPU, where it is added in rank order, in every batch.
  virtual void all_reduce_sum(const TensorView& /*x*/) {}
  // How so many bytes are summed, for people.
  virtual const char* sum_method(int64_t /*bytes*/) const { return "in rank order"; }
  // residual += sum over ranks of x, then out = rms_norm(residual) · weight (f32 [H]), in one
  // launch; x, residual, out: act [T, H], contiguous. False, and nothing is done, where there is no
  // such launch for this size; the same answer on every rank.
  virtual bool all_reduce_add_norm(const TensorView& /*x*/, const TensorView& /*residual*/,
      const TensorView& /*weight*/, float /*eps*/, const TensorView& /*out*/) {
    return false;
  }
  // out [T, sum of cols]: row t is the ranks' rows t side by side; `cols` has each rank's width.
  // mine: f32 [T, cols[rank]], contiguous; out contiguous.
  virtual void all_gather_cols(
      const TensorView& /*mine*/, std::span<const int64_t> /*cols*/, const TensorView& /*out*/) {
    CHECK(false, "who is alone has nothing to gather");
  }
};

// Device memory of a GPU's own small sums among `size` ranks.
constexpr int64_t one_shot_inbox_bytes(int size) { return int64_t{8 << 20} * size; }

// Ordered messages between ranks. A send returns at once and keeps reading its buffer until
// wait_send(token); a receive blocks. Tags keep kinds apart.
class PeerComm {
 public:
  virtual ~PeerComm() = default;
  using SendToken = int64_t;
  virtual SendToken send(std::span<const uint8_t> bytes, int to, int tag) = 0;
  virtual void wait_send(SendToken token) = 0;
  // Blocks until exactly `bytes.size()` bytes came; CHECKs that the message had that size.
  virtual void receive(std::span<uint8_t> bytes, int from, int tag) = 0;
};

}  // namespace millrace
