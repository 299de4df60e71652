#include "launch/gateway/connection.h"

#include <fmt/format.h>

#include <boost/asio/post.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

#include "engine/base/log_event.h"

namespace millrace {

namespace asio = boost::asio;
using boost::system::error_code;

namespace {

constexpr std::chrono::seconds kLingerTime{2};
constexpr size_t kMaxPipelined = 64 << 10;  // bytes that may wait while a request is answered

}  // namespace

Connection::Connection(Stream::Socket socket, Hub& hub, asio::thread_pool& text_pool)
    : hub_(hub),
      text_pool_(text_pool),
      stream_(std::move(socket), hub.tls.get()),
      deadline_(stream_.get_executor()),
      write_stall_(stream_.get_executor()),
      reader_(hub.config.limits) {}

Connection::~Connection() { hub_.remove(this); }

void Connection::start() {
  asio::post(stream_.get_executor(), bound([this] {
    set_deadline(Clock::now() + hub_.config.limits.head_time);
    stream_.async_start(bound([this](error_code error) { error ? close() : read_more(); }));
  }));
}

void Connection::end_call(const Status& status) {
  asio::post(stream_.get_executor(), bound([this, status] {
    if (phase_ == Phase::kAnswering && ticket_ != nullptr && !answered_) fail_call(status);
  }));
}

void Connection::shut() {
  asio::post(stream_.get_executor(), bound([this] { close(); }));
}

// --- reading

// At most one read is under way, also while a request is answered: that is how a client's going
// away is seen when nothing is written to it.
void Connection::read_more() {
  const bool ending = phase_ == Phase::kLingering && !stream_.ended();
  if (reading_ || input_ended_ || ending) return;
  if (phase_ != Phase::kLingering && reader_.unread() >= kMaxPipelined) {
    // Unread, its going away would not be seen. An answer that is on its way goes out first.
    if (!answered_) close();
    return;
  }
  reading_ = true;
  stream_.async_read_some(asio::buffer(input_), bound([this](error_code error, size_t size) {
    reading_ = false;
    if (phase_ == Phase::kLingering && !stream_.ended()) return;  // async_end goes on
    error ? on_end_of_input() : on_read(size);
  }));
}

void Connection::on_read(size_t size) {
  if (phase_ == Phase::kLingering) return read_more();
  reader_.append({input_.data(), size});
  if (phase_ == Phase::kReading) advance();
  if (phase_ != Phase::kClosed) read_more();
}

void Connection::on_end_of_input() {
  input_ended_ = true;
  // An answer that is already on its way is still written: some clients close their side early.
  const bool leaving = phase_ == Phase::kAnswering && answered_;
  if (!leaving) close();
}

void Connection::advance() {
  using State = RequestReader::State;
  const State before = std::exchange(reader_state_, reader_.advance());
  const HttpLimits& limits = hub_.config.limits;
  if (reader_state_ == State::kHead && before != State::kHead)
    set_deadline(Clock::now() + limits.head_time);
  if (reader_state_ == State::kBody) {
    if (before != State::kBody) {
      body_started_ = Clock::now();
      phase_ = Phase::kAnswering;
      if (!admit(reader_.head(), /*body_follows=*/true)) return;
      phase_ = Phase::kReading;
    }
    if (!hold_body(reader_.body_received())) return;
    // Slow is fine, slower than the least rate is not.
    const std::chrono::milliseconds earned(reader_.body_received() * 1000 / limits.body_rate);
    set_deadline(body_started_ + limits.body_grace + earned);
    if (reader_.take_expect_continue()) {
      queue_ += "HTTP/1.1 100 Continue\r\n\r\n";
      flush_soon();
    }
  }
  if (reader_state_ != State::kDone && reader_state_ != State::kRefused) return;
  deadline_.cancel();
  phase_ = Phase::kAnswering;
  if (reader_state_ == State::kRefused) {
    const HttpRefusal refusal = reader_.refusal();
    begin_exchange("");
    return answer_error(refusal.status, refusal.message, "", /*close=*/true);
  }
  reader_state_ = State::kIdle;
  dispatch(reader_.take());
}

void Connection::set_deadline(Clock::time_point when) {
  deadline_.expires_at(when);
  deadline_.async_wait(bound([this](error_code error) {
    if (!error && deadline_.expiry() <= Clock::now()) on_deadline();
  }));
}

void Connection::on_deadline() {
  if (phase_ == Phase::kAnswering) return;
  if (phase_ == Phase::kLingering || reader_state_ == RequestReader::State::kIdle) return close();
  phase_ = Phase::kAnswering;
  if (reader_state_ == RequestReader::State::kHead) begin_exchange("");
  answer_error(408, "The request did not come in time.", "", /*close=*/true);
}

// --- answering

void Connection::begin_exchange(const std::string& request_id) {
  request_id_ = request_id.empty() ? "req-" + random_id() : request_id;
  began_ = Clock::now();
  times_ = {};
  method_ = path_ = "-";
  cors_origin_.clear();
  status_ = 0;
}

// One line a request, without a word of its prompt: probes that went well only for debugging.
void Connection::log_exchange(std::string_view event) const {
  const bool probe = status_ == 200 && route_.route != Route::kCall;
  log::event(probe ? log::Level::kDebug : log::Level::kInfo, event,
      {{"request_id", request_id_}, {"client", stream_.client()}, {"method", method_},
          {"path", path_}, {"status", int64_t{status_}},
          {"seconds", std::chrono::duration<double>(Clock::now() - began_).count()},
          {"prompt_tokens", times_.prompt_tokens()}, {"output_tokens", times_.output_tokens()}});
}

void Connection::answer(AnswerHead head, std::string body) {
  if (head.close) keep_alive_ = false;
  head.close = !keep_alive_;
  head.request_id = request_id_;
  head.content_length = body.size();
  head.cors_origin = cors_origin_;
  hub_.metrics.count_answer(status_ = head.status);
  queue_ += write_head(head);
  queue_ += body;
  answered_ = true;
  flush_soon();
}

void Connection::answer_error(
    int status, const std::string& message, const std::string& code, bool close) {
  answer({.status = status, .close = close}, error_json(status, message, "", code));
}

void Connection::answer_refusal(const Hub::Refusal& refusal, bool close) {
  answer({.status = refusal.status, .close = close, .retry_after_s = refusal.retry_after_s},
      error_json(refusal.status, refusal.message, "", refusal.code));
}

void Connection::answer_status(const Status& status) {
  const int http = http_status(status.code);
  answer(
      {.status = http, .retry_after_s = http == 503 ? Hub::kRetryAfterS : 0}, error_json(status));
}

// After the handlers that already wait on the strand, so that the choices of one step and the
// tokens of a burst leave in one write.
void Connection::flush_soon() {
  if (writing_ || std::exchange(flush_posted_, true)) return;
  asio::post(stream_.get_executor(), bound([this] {
    flush_posted_ = false;
    flush();
  }));
}

void Connection::flush() {
  if (writing_) return;
  if (!events_.empty()) queue_ += http_1_1_ ? chunk(std::exchange(events_, {})) : events_;
  events_.clear();
  if (answered_ && std::exchange(stream_begun_, false) && http_1_1_) queue_ += "0\r\n\r\n";
  if (queue_.empty()) return;
  output_ = std::exchange(queue_, {});
  written_ = 0;
  writing_ = true;
  write_began_ = Clock::now();
  write_some();
}

void Connection::write_some() {
  // Nearly always the kernel takes all at once: no timer then, and no way through the reactor.
  error_code error;
  const auto rest = [this] {
    return asio::buffer(output_.data() + written_, output_.size() - written_);
  };
  written_ += stream_.write_some(rest(), error);
  if (error && error != asio::error::would_block) return close();
  if (written_ == output_.size()) return on_written(0);
  // A reader that takes a little now and then must not keep its place for ever.
  const HttpLimits& limits = hub_.config.limits;
  const std::chrono::milliseconds earned(written_ * 1000 / limits.body_rate);
  write_stall_.expires_at(std::min(Clock::now(), write_began_ + earned) + limits.write_stall);
  write_stall_.async_wait(bound([this](error_code error) {
    if (!error && writing_ && write_stall_.expiry() <= Clock::now()) close();
  }));
  stream_.async_write_some(
      rest(), bound([this](error_code error, size_t size) { error ? close() : on_written(size); }));
}

void Connection::on_written(size_t size) {
  written_ += size;
  if (written_ < output_.size()) return write_some();
  writing_ = false;
  write_stall_.cancel();
  flush();
  if (!writing_ && answered_) end_exchange();
}

void Connection::end_exchange() {
  log_exchange("request");
  answered_ = false;
  ticket_.reset();
  body_.reset();
  phase_ = Phase::kReading;
  if (input_ended_) return close();
  if (!keep_alive_) {
    // Closing with bytes unread would make the kernel throw the answer away at the client's side.
    phase_ = Phase::kLingering;
    set_deadline(Clock::now() + kLingerTime);
    return stream_.async_end(bound([this] { read_more(); }));
  }
  set_deadline(Clock::now() + hub_.config.limits.idle_time);
  advance();
  if (phase_ != Phase::kClosed) read_more();
}

void Connection::close() {
  if (phase_ == Phase::kAnswering) log_exchange("request_cut");
  phase_ = Phase::kClosed;
  times_.abandon(hub_.metrics);
  call_.reset();
  ticket_.reset();
  body_.reset();
  stream_.close();
  deadline_.cancel();
  write_stall_.cancel();
}

}  // namespace millrace
