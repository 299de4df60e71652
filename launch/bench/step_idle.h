// How long the devices stand idle between decode steps. Thread-safe.
#pragma once

#include <map>
#include <mutex>

#include "engine/protocol/trace.h"

namespace millrace {

class StepIdle {
 public:
  // Each rank's steps in their order.
  void add(int rank, const StepTrace& step);
  // Forgets what was counted.
  void reset();
  // From the end of a decode step to when the next one's layers began, over the time from end to
  // end: of decode steps that follow one, the mean over ranks. 0 when there were none.
  double fraction() const;

 private:
  mutable std::mutex mutex_;
  std::map<int, int64_t>
      decoded_until_;  // by rank: end of its last step; 0: it did not only decode
  double idle_ = 0;    // ns
  double total_ = 0;
};

}  // namespace millrace
