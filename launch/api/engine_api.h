// The engine as the ways in see it: submit a request, get tokens on a callback. An interface, so
// that the gateway and the batch runner are tested without workers. Thread-safe.
#pragma once

#include <functional>

#include "engine/coordinator/coordinator.h"

namespace millrace {

// Called on the coordinator's thread, in order, for one request: tokens, and at last one emission
// with finish != kNone (none after a cancel). Must be quick and must not throw.
using EmissionCallback = std::function<void(const Emission&)>;

class EngineApi {
 public:
  virtual ~EngineApi() = default;

  // Never blocks. The callback gets an error emission when the scheduler refuses; it may be called
  // before submit returns.
  virtual RequestId submit(Request request, EmissionCallback callback) = 0;
  // The request gets no further emission once the coordinator has seen this. Unknown ids are
  // ignored.
  virtual void cancel(RequestId id) = 0;
  virtual CoordinatorStats stats() const = 0;
  virtual bool healthy() const = 0;
};

}  // namespace millrace
