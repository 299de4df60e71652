#include "engine/worker/kv_cache.h"

namespace millrace {

KvCache::KvCache(Device& device, int num_layers, const AttentionShape& shape, int block_size,
    uint32_t num_blocks) {
  for (int i = 0; i < num_layers; ++i) {
    KvCacheView view;
    for (TensorView* half : {&view.k, &view.v}) {
      tensors_.push_back(device.tensor(device.activation_dtype(),
          {num_blocks, shape.num_kv_heads, block_size, shape.head_dim}, "the KV cache"));
      *half = tensors_.back().view;
    }
    views_.push_back(view);
  }
}

int64_t KvCache::bytes_per_block(
    DType dtype, int num_layers, const AttentionShape& shape, int block_size) {
  return int64_t{2} * num_layers * shape.num_kv_heads * block_size * shape.head_dim *
         dtype_bytes(dtype, 1);
}

}  // namespace millrace
