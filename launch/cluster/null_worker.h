// A rank without a model: every step gives pseudorandom tokens. With the true coordinator above it,
// it measures all of the server but the computing. On the worker's thread of mode 1.
#pragma once

#include <chrono>

#include "comm/link.h"

namespace millrace {

// Obeys plans until the link ends. A step takes `step_time`; 0: none.
void run_null_worker(CoordinatorLink& link, std::chrono::microseconds step_time);

}  // namespace millrace
