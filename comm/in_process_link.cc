#include <boost/asio/post.hpp>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "comm/link.h"

namespace millrace {

namespace {

// Shared by both ends and by what waits in the io_context.
class Channel : public std::enable_shared_from_this<Channel> {
 public:
  Channel(boost::asio::io_context& io, int rank, LinkEvents events)
      : io_(io), rank_(rank), events_(std::make_shared<const LinkEvents>(std::move(events))) {}

  // --- the coordinator's thread

  void push(std::shared_ptr<const Bytes> frame) {
    const std::lock_guard lock(mutex_);
    if (closing_ || ended_) return;
    queue_.push_back(std::move(frame));
    ready_.notify_one();
  }

  void close() {
    const std::lock_guard lock(mutex_);
    if (std::exchange(closing_, true)) return;
    ready_.notify_all();
    post_end("closed by the coordinator");
  }

  // No callback from here on, and nothing more for the io_context.
  void abandon() {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    events_ = nullptr;
    queue_.clear();
    ready_.notify_all();
  }

  // --- the worker's threads

  bool pop(Bytes* frame) {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [this] { return ended_ || closing_ || !queue_.empty(); });
    if (ended_ || queue_.empty()) return false;
    *frame = *queue_.front();
    queue_.pop_front();
    return true;
  }

  bool send(const Bytes& frame) {
    const std::lock_guard lock(mutex_);
    if (closing_ || ended_) return false;
    boost::asio::post(io_, [self = shared_from_this(), frame] {
      if (const auto events = self->listener()) events->on_frame(self->rank_, frame);
    });
    return true;
  }

  void end() {
    const std::lock_guard lock(mutex_);
    if (std::exchange(ended_, true)) return;
    ready_.notify_all();
    if (events_ != nullptr) post_end("the worker ended");
  }

 private:
  // Who hears of the worker, if anybody; `last`: nobody does after this.
  std::shared_ptr<const LinkEvents> listener(bool last = false) {
    const std::lock_guard lock(mutex_);
    return last ? std::exchange(events_, nullptr) : events_;
  }

  void post_end(const char* reason) {
    boost::asio::post(io_, [self = shared_from_this(), reason] {
      if (const auto events = self->listener(/*last=*/true)) events->on_closed(self->rank_, reason);
    });
  }

  boost::asio::io_context& io_;  // alive until abandon()
  const int rank_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::shared_ptr<const Bytes>> queue_;
  std::shared_ptr<const LinkEvents> events_;  // null once on_closed was called or nobody listens
  bool closing_ = false;                      // the coordinator has closed: the queue runs dry
  bool ended_ = false;                        // the worker has ended
};

class WorkerEnd final : public WorkerLink {
 public:
  explicit WorkerEnd(std::shared_ptr<Channel> channel) : channel_(std::move(channel)) {}
  ~WorkerEnd() override { channel_->abandon(); }
  void send(std::shared_ptr<const Bytes> frame) override { channel_->push(std::move(frame)); }
  void close() override { channel_->close(); }

 private:
  std::shared_ptr<Channel> channel_;
};

class CoordinatorEnd final : public CoordinatorLink {
 public:
  explicit CoordinatorEnd(std::shared_ptr<Channel> channel) : channel_(std::move(channel)) {}
  ~CoordinatorEnd() override { channel_->end(); }
  bool receive(Bytes* frame) override { return channel_->pop(frame); }
  bool send(const Bytes& frame) override { return channel_->send(frame); }
  void shutdown() override { channel_->end(); }

 private:
  std::shared_ptr<Channel> channel_;
};

}  // namespace

InProcessLink make_in_process_link(boost::asio::io_context& io, int rank, LinkEvents events) {
  auto channel = std::make_shared<Channel>(io, rank, std::move(events));
  return {std::make_unique<WorkerEnd>(channel), std::make_unique<CoordinatorEnd>(channel)};
}

}  // namespace millrace
