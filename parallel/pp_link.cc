#include "parallel/pp_link.h"

#include <utility>

namespace millrace {

using Clock = std::chrono::steady_clock;

namespace {

enum Tag : int { kHidden = 1, kIds = 2 };

std::span<uint8_t> bytes_of(const TensorView& view) {
  CHECK(view.contiguous());
  return {view.data, static_cast<size_t>(dtype_bytes(view.dtype, view.count()))};
}

}  // namespace

PpLink::PpLink(const Topology& topology, PeerComm* peers)
    : topology_(topology), peers_(peers), lanes_(static_cast<size_t>(topology.num_lanes())) {}

void PpLink::send_hidden(int lane, const TensorView& hidden) {
  wait_lane(lane);
  lanes_[static_cast<size_t>(lane)].hidden_token =
      peers_->send(bytes_of(hidden), topology_.next(), Tag::kHidden);
}

void PpLink::receive_hidden(const TensorView& hidden) {
  const auto begin = Clock::now();
  peers_->receive(bytes_of(hidden), topology_.previous(), Tag::kHidden);
  waited_ += Clock::now() - begin;
}

void PpLink::wait_lane(int lane) {
  auto& token = lanes_[static_cast<size_t>(lane)].hidden_token;
  if (token < 0) return;
  const auto begin = Clock::now();
  peers_->wait_send(std::exchange(token, -1));
  waited_ += Clock::now() - begin;
}

void PpLink::send_ids(int lane, std::span<const int32_t> ids) {
  Lane& mine = lanes_[static_cast<size_t>(lane)];
  if (mine.ids_token >= 0) peers_->wait_send(std::exchange(mine.ids_token, -1));
  mine.ids_token = peers_->send({reinterpret_cast<const uint8_t*>(ids.data()), ids.size_bytes()},
      topology_.rank_of_stage(0), Tag::kIds);
}

void PpLink::receive_ids(std::span<int32_t> ids) {
  const auto begin = Clock::now();
  peers_->receive({reinterpret_cast<uint8_t*>(ids.data()), ids.size_bytes()},
      topology_.rank_of_stage(topology_.pp() - 1), Tag::kIds);
  waited_ += Clock::now() - begin;
}

std::chrono::nanoseconds PpLink::take_wait_time() {
  return std::exchange(waited_, std::chrono::nanoseconds(0));
}

}  // namespace millrace
