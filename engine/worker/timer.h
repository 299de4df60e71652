// Times what is enqueued on a device, by its own events. Compute thread.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "engine/core/device.h"

namespace millrace {

class Timer {
 public:
  explicit Timer(Device& device)
      : device_(device), begin_(device.make_event()), end_(device.make_event()) {}

  // Seconds of one call: call(0) .. call(calls - 1) are enqueued behind each other, once to set up
  // what is set up on first use, then `rounds` times, of which the median counts. `captured`: as
  // one graph, where the device has graphs, so that no launch is waited for.
  double seconds(int calls, int rounds, bool captured, const std::function<void(int)>& call) {
    const auto all = [&] {
      for (int i = 0; i < calls; ++i) call(i);
    };
    all();
    device_.synchronize();
    const int64_t graph = next_graph_++;
    if (captured) device_.capture(graph, all);
    std::vector<double> ms;
    for (int round = 0; round < rounds; ++round) {
      begin_->record();
      if (!captured || !device_.replay(graph)) all();
      end_->record();
      device_.synchronize();
      ms.push_back(end_->ms_since(*begin_));
    }
    const auto middle = ms.begin() + rounds / 2;
    std::nth_element(ms.begin(), middle, ms.end());
    return *middle * 1e-3 / calls;
  }

 private:
  Device& device_;
  std::unique_ptr<DeviceEvent> begin_, end_;
  int64_t next_graph_ = 0;
};

}  // namespace millrace
