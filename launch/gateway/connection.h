// One client's connection: requests in, answers and streams out, one after the other. Everything
// runs on its strand but the parsing of calls (the text pool) and the hand-over of emissions (the
// engine's thread). It lives as long as an operation of its own is under way.
#pragma once

#include <array>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <memory>
#include <string>

#include "launch/api/open_call.h"
#include "launch/gateway/hub.h"
#include "launch/gateway/request_reader.h"
#include "launch/gateway/router.h"
#include "launch/gateway/stream.h"

namespace millrace {

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Stream::Socket socket, Hub& hub, boost::asio::thread_pool& text_pool);
  ~Connection();

  // These three from any thread.
  void start();
  void end_call(const Status& status);  // an open call gets this error
  void shut();                          // at once

 private:
  // kReading: a request comes in. kAnswering: it is being worked on or answered; what comes in
  // waits. kLingering: the last answer is out, what comes in is dropped. kClosed: nothing more.
  enum class Phase { kReading, kAnswering, kLingering, kClosed };
  using Clock = std::chrono::steady_clock;

  // Reading.
  void read_more();
  void on_read(size_t size);
  void on_end_of_input();
  void advance();
  void set_deadline(Clock::time_point when);
  void on_deadline();
  // Calls.
  bool admit(const HttpRequest& head, bool body_follows);
  bool hold_body(size_t size);
  bool is_figures() const;
  void dispatch(HttpRequest request);
  void answer_get(const Serving& serving);
  void begin_call(HttpRequest request);
  void submit(std::shared_ptr<const Serving> serving, ApiCall call);
  void on_emission(uint64_t serial, size_t choice, const Emission& emission);
  void stream(std::string events, bool ended);
  void fail_call(const Status& status);
  // Answering.
  void begin_exchange(const std::string& request_id);
  void log_exchange(std::string_view event) const;
  void answer(AnswerHead head, std::string body);
  void answer_error(
      int status, const std::string& message, const std::string& code, bool close = false);
  void answer_refusal(const Hub::Refusal& refusal, bool close = false);
  void answer_status(const Status& status);
  void flush_soon();
  void flush();
  void write_some();
  void on_written(size_t size);
  void end_exchange();
  void close();

  // A handler that runs on the strand and keeps the connection alive.
  template <typename F>
  auto bound(F f) {
    return [self = shared_from_this(), f = std::move(f)](auto&&... args) mutable {
      if (self->phase_ != Phase::kClosed) f(args...);
    };
  }

  Hub& hub_;
  boost::asio::thread_pool& text_pool_;
  Stream stream_;
  boost::asio::steady_timer deadline_;     // of reading, and of lingering
  boost::asio::steady_timer write_stall_;  // of the write under way
  Phase phase_ = Phase::kReading;

  RequestReader reader_;
  std::array<char, 8192> input_;
  bool reading_ = false;
  bool input_ended_ = false;
  RequestReader::State reader_state_ = RequestReader::State::kIdle;
  Clock::time_point body_started_;
  std::shared_ptr<BodyShare> body_;  // until it is parsed

  // Of the request being answered.
  std::string request_id_, method_, path_, cors_origin_;
  int status_ = 0;  // answered
  Clock::time_point began_;
  RouteMatch route_;
  std::optional<size_t> key_;  // its number
  bool keep_alive_ = false;
  bool http_1_1_ = false;
  Hub::Ticket ticket_;
  std::shared_ptr<const Serving> serving_;  // of call_
  std::unique_ptr<OpenCall> call_;
  CallTimes times_;           // of call_
  uint64_t call_serial_ = 0;  // emissions of an earlier call are dropped
  bool stream_begun_ = false;

  std::string events_;  // of a stream, not yet framed
  std::string queue_;   // not yet given to the socket
  std::string output_;  // being written, from written_ on
  size_t written_ = 0;
  bool writing_ = false;
  Clock::time_point write_began_;  // of output_
  bool flush_posted_ = false;
  bool answered_ = false;  // the answer's last byte is in the queue
};

}  // namespace millrace
