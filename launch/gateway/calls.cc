// What a connection does with a request once its head is there.
#include <fmt/format.h>

#include <boost/asio/post.hpp>

#include "engine/base/log.h"
#include "launch/gateway/connection.h"

namespace millrace {

namespace asio = boost::asio;

namespace {

constexpr size_t kMaxLoggedPath = 100;

bool is_for_engine(ApiKind kind) { return kind == ApiKind::kChat || kind == ApiKind::kCompletion; }

}  // namespace

// What the head alone decides, before a body is waited for. False: refused and answered.
bool Connection::admit(const HttpRequest& head, bool body_follows) {
  begin_exchange(head.request_id);
  method_ = head.method;
  path_ = head.target.substr(0, std::min(head.target.find('?'), kMaxLoggedPath));
  if (hub_.origins.origin_named(head.origin)) cors_origin_ = head.origin;
  keep_alive_ = head.keep_alive && !hub_.draining() && !body_follows;
  http_1_1_ = head.http_1_1;
  route_ = find_route(head.method, head.target);
  key_ = hub_.keys.find(head.authorization);
  if (!hub_.origins.host_allowed(head.host)) {
    answer_error(403, "This server does not answer for that Host: --allowed-hosts names others.",
        "host_not_allowed");
  } else if (!head.origin.empty() && !hub_.origins.origin_allowed(head.origin, head.host)) {
    answer_error(403, "Pages of that Origin may not ask here: --cors-origins names those that may.",
        "origin_not_allowed");
  } else if (!cors_origin_.empty() && head.method == "OPTIONS" && !head.cors_method.empty()) {
    answer({.cors_headers = head.cors_headers.empty() ? "content-type" : head.cors_headers}, "");
  } else if (!hub_.keys.empty() && !key_ && !route_.open) {
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
  } else if (route_.route == Route::kCall && is_for_engine(route_.kind)) {
    if (const auto full = hub_.overloaded()) answer_refusal(*full);
  }
  return !answered_;
}

// The body has `size` bytes now. False: there is no memory for it, which is answered.
bool Connection::hold_body(size_t size) {
  if (body_ == nullptr) body_ = std::make_shared<BodyShare>(hub_.body_bytes);
  if (body_->grow_to(size, hub_.config.limits.body_memory)) return true;
  phase_ = Phase::kAnswering;
  answer_refusal({503, "The bodies of other requests take all the memory for them.", "overloaded"},
      /*close=*/true);
  return false;
}

// Told while draining or failed, too: the figures are wanted then most of all.
bool Connection::is_figures() const {
  return (route_.route == Route::kMetrics || route_.route == Route::kLoad) &&
         hub_.serving() != nullptr;
}

void Connection::dispatch(HttpRequest request) {
  if (!admit(request, /*body_follows=*/false)) return;
  if (!request.body.empty() && !hold_body(request.body.size())) return;
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
  // Parsing, template and tokenizer take milliseconds that other streams must not wait for. Nobody
  // waits for those of a client that has gone.
  asio::post(text_pool_,
      [weak = weak_from_this(), kind = route_.kind, serial, serving = hub_.serving(),
          body = std::move(request.body), share = std::exchange(body_, nullptr)]() mutable {
        const auto self = weak.lock();
        if (self == nullptr) return;
        ApiCall call;
        std::string text;  // the answer, where no engine is needed
        Status status;
        try {
          if (!is_for_engine(kind)) text = text_answer(kind, body, serving->model);
          else call = parse_call(kind, body, serving->model);
        } catch (const RequestError& error) {
          status = error.status();
        } catch (const std::exception& error) {
          log::error("a request could not be read: {}", error.what());
          status = {ErrorCode::kInternal, "The request could not be read.", ""};
        }
        body = {};
        share.reset();
        asio::post(self->stream_.get_executor(),
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
        asio::post(self->stream_.get_executor(), self->bound([self, serial, choice, emission] {
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
    hub_.metrics.count_answer(status_ = 200);
    queue_ += write_head({.content_type = "text/event-stream",
        .request_id = request_id_,
        .close = !keep_alive_,
        .event_stream = true,
        .chunked = http_1_1_,
        .cors_origin = cors_origin_});
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

}  // namespace millrace
