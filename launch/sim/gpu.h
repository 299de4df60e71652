// The GPUs that can be planned with: what their datasheets promise, and how much of it our kernels
// get. Values; any thread.
#pragma once

#include <string_view>

namespace millrace {

// Datasheet figures of one GPU.
struct Gpu {
  std::string_view name;
  double read_bytes_per_s;  // of its memory
  double flops;             // dense bf16 products per second
  double memory_bytes;
  double link_bytes_per_s;  // to a GPU of the same host, one way
};

// By its name in lower case. Throws Error(kUsage) with the names there are.
const Gpu& find_gpu(std::string_view name);

// What the engine gets of a datasheet figure, fitted to the H200 figures of docs/performance.md:
// every decode and prefill time of the 8B shape comes out within 4 % (tests/launch/sim holds it).
// Other GPUs are taken to lose the same fractions and the same times.
struct Efficiency {
  double narrow_read = 0.862;   // of bandwidth: weights, products of up to 16 rows
  double wide_read = 0.762;     // weights, products of more rows
  double cache_read = 0.86;     // keys and values, decode attention
  double products = 0.632;      // of flops: products of many rows, with what lies between them
  double attention = 0.2135;    // of flops: attention of prompts
  double link = 0.82;           // of the link: a transfer between stages
  double reduce = 0.42;         // of the link: an all-reduce
  double layer_s = 25e-6;       // small kernels and gaps, each layer
  double head_s = 60e-6;        // sampling, each step
  double sampled_row_s = 5e-7;  // sampling, each row
  double reduce_s = 5.3e-6;     // an all-reduce of few bytes within a host
  double transfer_s = 10e-6;    // until a transfer between stages begins to arrive
  double control_s = 40e-6;     // a frame between the coordinator and a rank, one way
};

}  // namespace millrace
