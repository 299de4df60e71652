// The KV blocks of one rank: for each layer of the stage, keys and values of every block. Owned by
// the worker; which block belongs to whom is the scheduler's knowledge alone.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/core/device.h"
#include "engine/kernels/ops.h"

namespace millrace {

class KvCache {
 public:
  // k, v per layer: act [num_blocks, Hkv, block_size, D]. Throws Error(kOutOfMemory).
  KvCache(Device& device, int num_layers, const AttentionShape& shape, int block_size,
      uint32_t num_blocks);
  std::span<const KvCacheView> views() const { return views_; }

  // Of all layers together.
  static int64_t bytes_per_block(
      DType dtype, int num_layers, const AttentionShape& shape, int block_size);

 private:
  std::vector<Tensor> tensors_;
  std::vector<KvCacheView> views_;
};

}  // namespace millrace
