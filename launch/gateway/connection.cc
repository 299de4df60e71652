#include "launch/gateway/connection.h"

#include <fmt/format.h>

#include <boost/asio/post.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

#include "engine/base/log.h"

namespace millrace {

namespace asio = boost::asio;
using boost::system::error_code;

namespace {

constexpr std::chrono::seconds kLingerTime{2};
constexpr size_t kMaxPipelined = 64 << 10;  // bytes that may wait while a request is answered

}  // namespace

Connection::Connection(Socket socket, Hub& hub, asio::thread_pool& text_pool)
    : hub_(hub),
      text_pool_(text_pool),
      socket_(std::move(socket)),
      deadline_(socket_.get_executor()),
      write_stall_(socket_.get_executor()),
      reader_(hub.config.limits) {}

Connection::~Connection() { hub_.remove(this); }

void Connection::start() {
  asio::post(socket_.get_executor(), bound([this] {
    error_code ignored;
    socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    socket_.non_blocking(true, ignored);
    set_deadline(Clock::now() + hub_.config.limits.head_time);
    read_more();
  }));
}

void Connection::end_call(const Status& status) {
  asio::post(socket_.get_executor(), bound([this, status] {
    if (phase_ == Phase::kAnswering && ticket_ != nullptr && !answered_) fail_call(status);
  }));
}

void Connection::shut() {
  asio::post(socket_.get_executor(), bound([this] { close(); }));
}

// --- reading

// At most one read is under way, also while a request is answered: that is how a client's going
// away is seen when nothing is written to it.
void Connection::read_more() {
  const bool full = phase_ != Phase::kLingering && reader_.unread() >= kMaxPipelined;
  if (reading_ || input_ended_ || full) return;
  reading_ = true;
  socket_.async_read_some(asio::buffer(input_), bound([this](error_code error, size_t size) {
    reading_ = false;
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
    request_id_ = "req-" + random_id();
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
  request_id_ = "req-" + random_id();
  answer_error(408, "The request did not come in time.", "", /*close=*/true);
}

// --- calls

// What the head alone decides, before a body is waited for. False: refused and answered.
bool Connection::admit(const HttpRequest& head, bool body_follows) {
  request_id_ = head.request_id.empty() ? "req-" + random_id() : head.request_id;
  keep_alive_ = head.keep_alive && !hub_.draining() && !body_follows;
  http_1_1_ = head.http_1_1;
  route_ = find_route(head.method, head.target);
  key_ = hub_.keys.find(head.authorization);
  if (!hub_.keys.empty() && !key_ && !route_.open) {
    answer_error(401, "There is no such API key here: send Authorization: Bearer and a key.",
        "invalid_api_key");
  } else if (route_.status == 404) {
    answer_error(404, "There is no such route.", "unknown_route");
  } else if (route_.status == 405) {
    answer({.status = 405, .allow = route_.allow},
        error_json(405, "This route takes another method.", "", ""));
  } else if (const auto why = is_figures() ? std::nullopt : hub_.unavailable();
             why && route_.route != Route::kLive) {
    answer_refusal(*why);
  } else if (route_.route == Route::kCall && !is_json(head.content_type)) {
    answer_error(415, "The request must have Content-Type: application/json.", "");
  }
  return !answered_;
}

// Told while draining or failed, too: the figures are wanted then most of all.
bool Connection::is_figures() const {
  return (route_.route == Route::kMetrics || route_.route == Route::kLoad) &&
         hub_.serving() != nullptr;
}

void Connection::dispatch(HttpRequest request) {
  if (!admit(request, /*body_follows=*/false)) return;
  log::debug("{} {} {}", request_id_, request.method, request.target.substr(0, 100));
  if (route_.route == Route::kLive) return answer({}, R"({"status":"live"})");
  if (route_.route == Route::kCall) return begin_call(std::move(request));
  answer_get(*hub_.serving());
}

void Connection::answer_get(const Serving& serving) {
  const ModelContext& model = serving.model;
  if (route_.route == Route::kMetrics)
    return answer({.content_type = "text/plain; version=0.0.4; charset=utf-8"},
        hub_.metrics.text(serving, hub_.open_calls(), hub_.num_connections()));
  if (route_.route == Route::kLoad)
    return answer({}, fmt::format(R"({{"server_load":{}}})", hub_.open_calls()));
  if (route_.route == Route::kHealth) return answer({}, R"({"status":"ok"})");
  if (route_.route == Route::kVersion) return answer({}, R"({"version":")" MILLRACE_VERSION "\"}");
  if (route_.route == Route::kOpenApi) return answer({}, std::string(openapi_json()));
  if (route_.route == Route::kModels) return answer({}, models_json(model));
  if (route_.model == model.name) return answer({}, model_json(model));
  answer_error(404, "There is no model of that name here.", "model_not_found");
}

void Connection::begin_call(HttpRequest request) {
  Hub::Refusal why;
  ticket_ = hub_.begin_call(key_, why);
  if (ticket_ == nullptr) return answer_refusal(why);
  const uint64_t serial = ++call_serial_;
  times_.arrive();
  // Parsing, template and tokenizer take milliseconds that other streams must not wait for.
  asio::post(text_pool_, [self = shared_from_this(), kind = route_.kind, serial,
                             serving = hub_.serving(), body = std::move(request.body)] {
    ApiCall call;
    std::string text;  // the answer, where no engine is needed
    Status status;
    try {
      if (kind == ApiKind::kTokenize || kind == ApiKind::kDetokenize)
        text = text_answer(kind, body, serving->model);
      else call = parse_call(kind, body, serving->model);
    } catch (const RequestError& error) {
      status = error.status();
    } catch (const std::exception& error) {
      log::error("a request could not be read: {}", error.what());
      status = {ErrorCode::kInternal, "The request could not be read.", ""};
    }
    asio::post(self->socket_.get_executor(),
        self->bound([self, serial, serving, status, call = std::move(call),
                        text = std::move(text)]() mutable {
          if (serial != self->call_serial_ || self->answered_) return;
          if (!status.ok()) return self->answer_status(status);
          if (!text.empty()) return self->answer({}, std::move(text));
          self->submit(std::move(serving), std::move(call));
        }));
  });
}

void Connection::submit(std::shared_ptr<const Serving> serving, ApiCall call) {
  call_.reset();
  serving_ = std::move(serving);
  times_.begin(call, hub_.metrics);
  call_ = std::make_unique<OpenCall>(*serving_->engine, serving_->model, std::move(call));
  call_->submit([&](size_t choice) -> EmissionCallback {
    return [gate = hub_.gate, weak = weak_from_this(), serial = call_serial_, choice](
               const Emission& emission) {
      const std::lock_guard lock(gate->mutex);
      if (!gate->open) return;
      if (const auto self = weak.lock())
        asio::post(self->socket_.get_executor(), self->bound([self, serial, choice, emission] {
          self->on_emission(serial, choice, emission);
        }));
    };
  });
}

void Connection::on_emission(uint64_t serial, size_t choice, const Emission& emission) {
  if (serial != call_serial_ || call_ == nullptr) return;
  OpenCall::Progress progress;
  try {
    progress = call_->take(choice, emission);
  } catch (const std::exception& error) {
    log::error("{}: an answer could not be written: {}", request_id_, error.what());
    progress.failed = Status{ErrorCode::kInternal, "The answer could not be written.", ""};
  }
  times_.note(choice, emission.tokens.size(), progress.finish, hub_.metrics);
  if (progress.failed) return fail_call(*progress.failed);
  if (call_->streams()) return stream(std::move(progress.text), progress.ended);
  if (!progress.ended) return;
  call_.reset();
  answer({}, std::move(progress.text));
}

void Connection::stream(std::string events, bool ended) {
  if (events.empty() && !ended) return;
  if (!stream_begun_) {
    stream_begun_ = true;
    keep_alive_ = keep_alive_ && http_1_1_;
    hub_.metrics.count_answer(200);
    queue_ += write_head({.content_type = "text/event-stream",
        .request_id = request_id_,
        .close = !keep_alive_,
        .event_stream = true,
        .chunked = http_1_1_});
  }
  events_ += events;
  if (ended) {
    call_.reset();
    answered_ = true;
  }
  if (writing_ && events_.size() + queue_.size() > hub_.config.limits.stream_queue) {
    log::debug("{}: the reader of a stream is too slow", request_id_);
    return close();
  }
  flush_soon();
}

void Connection::fail_call(const Status& status) {
  times_.abandon(hub_.metrics);
  call_.reset();
  ++call_serial_;
  if (!stream_begun_) return answer_status(status);
  // The head said 200: the error goes as an event, and no [DONE] follows.
  keep_alive_ = false;
  stream("data: " + error_json(status) + "\n\n", /*ended=*/true);
}

// --- answering

void Connection::answer(AnswerHead head, std::string body) {
  if (head.close) keep_alive_ = false;
  head.close = !keep_alive_;
  head.request_id = request_id_;
  head.content_length = body.size();
  hub_.metrics.count_answer(head.status);
  queue_ += write_head(head);
  queue_ += body;
  answered_ = true;
  flush_soon();
}

void Connection::answer_error(
    int status, const std::string& message, const std::string& code, bool close) {
  answer({.status = status, .close = close}, error_json(status, message, "", code));
}

void Connection::answer_refusal(const Hub::Refusal& refusal) {
  answer({.status = refusal.status, .retry_after_s = refusal.retry_after_s},
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
  asio::post(socket_.get_executor(), bound([this] {
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
  write_some();
}

void Connection::write_some() {
  // Nearly always the kernel takes all at once: no timer then, and no way through the reactor.
  error_code error;
  written_ +=
      socket_.write_some(asio::buffer(output_.data() + written_, output_.size() - written_), error);
  if (error && error != asio::error::would_block) return close();
  if (written_ == output_.size()) return on_written(0);
  write_stall_.expires_after(hub_.config.limits.write_stall);
  write_stall_.async_wait(bound([this](error_code error) {
    if (!error && writing_ && write_stall_.expiry() <= Clock::now()) close();
  }));
  socket_.async_write_some(asio::buffer(output_.data() + written_, output_.size() - written_),
      bound([this](error_code error, size_t size) { error ? close() : on_written(size); }));
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
  answered_ = false;
  ticket_.reset();
  if (input_ended_) return close();
  if (!keep_alive_) {
    // Closing with bytes unread would make the kernel throw the answer away at the client's side.
    error_code ignored;
    socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
    phase_ = Phase::kLingering;
    set_deadline(Clock::now() + kLingerTime);
    return read_more();
  }
  phase_ = Phase::kReading;
  set_deadline(Clock::now() + hub_.config.limits.idle_time);
  advance();
  if (phase_ != Phase::kClosed) read_more();
}

void Connection::close() {
  phase_ = Phase::kClosed;
  times_.abandon(hub_.metrics);
  call_.reset();
  ticket_.reset();
  error_code ignored;
  socket_.close(ignored);
  deadline_.cancel();
  write_stall_.cancel();
}

}  // namespace millrace
