#include "launch/bench/http_load.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <boost/json/monotonic_resource.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <chrono>
#include <deque>
#include <limits>
#include <random>
#include <regex>

#include "engine/base/status.h"

namespace millrace {

namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
namespace json = boost::json;
using asio::use_awaitable;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;

constexpr size_t kErrorBytes = 300;
constexpr size_t kEventBytes = 1 << 20;  // one line of a stream
constexpr size_t kReadBytes = 16 << 10;

struct Url {
  std::string host, port, prefix;  // no slash at the prefix' end
};

Url parse_url(const std::string& url) {
  static const std::regex form(R"(http://(?:\[([^\]]+)\]|([^/:]+))(?::(\d+))?(/.*)?)");
  std::smatch match;
  if (!std::regex_match(url, match, form))
    throw Error(ExitCode::kUsage, "--base-url {}: write it as http://HOST:PORT", url);
  Url parts{match[1].str() + match[2].str(), match[3].matched ? match[3].str() : "80", match[4]};
  while (parts.prefix.ends_with('/')) parts.prefix.pop_back();
  return parts;
}

// Boost's own words name its source files.
std::string words_of(const std::exception& error) {
  const auto* failed = dynamic_cast<const boost::system::system_error*>(&error);
  return failed != nullptr ? failed->code().message() : error.what();
}

// A stream's bytes as lines, and what its events say.
class EventReader {
 public:
  bool done() const { return done_; }

  // Takes the whole lines off the front of `bytes`. Throws std::runtime_error for what is no event
  // of a completion, and with the words of an event that is an error.
  void take(std::string& bytes, double now, HttpOutcome& outcome) {
    size_t begin = 0;
    for (size_t end; (end = bytes.find('\n', begin)) != std::string::npos; begin = end + 1) {
      std::string_view line(bytes.data() + begin, end - begin);
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (!line.empty() && line.front() != ':') take_line(line, now, outcome);
    }
    bytes.erase(0, begin);
    if (bytes.size() > kEventBytes) throw std::runtime_error("an event without end");
  }

 private:
  void take_line(std::string_view line, double now, HttpOutcome& outcome) {
    if (!line.starts_with("data:")) throw std::runtime_error("a line of the stream is no data");
    line.remove_prefix(line.starts_with("data: ") ? 6 : 5);
    if (done_) throw std::runtime_error("data follow [DONE]");
    done_ = line == "[DONE]";
    if (done_) return;
    json::monotonic_resource memory(buffer_.data(), buffer_.size());
    const json::value event = json::parse(json::string_view(line.data(), line.size()), &memory);
    const json::object& object = event.as_object();
    if (const json::value* error = object.if_contains("error"); error != nullptr)
      throw std::runtime_error(json::serialize(*error));
    if (const json::array& choices = object.at("choices").as_array(); !choices.empty()) {
      outcome.event_s.push_back(now);
      const json::value* ids = choices[0].as_object().if_contains("token_ids");
      const bool has_ids = ids != nullptr && ids->is_array();
      if (!counted_) outcome.output_tokens += has_ids ? std::ssize(ids->get_array()) : 1;
    }
    const json::value* usage = object.if_contains("usage");
    if (usage == nullptr || usage->is_null()) return;
    outcome.output_tokens = usage->as_object().at("completion_tokens").to_number<int64_t>();
    counted_ = true;
  }

  std::array<unsigned char, 4096> buffer_;
  bool counted_ = false;  // by `usage`
  bool done_ = false;
};

class Client {
 public:
  Client(HttpTarget target, const std::vector<Arrival>& arrivals)
      : target_(std::move(target)),
        url_(parse_url(target_.base_url)),
        arrivals_(arrivals),
        random_(target_.seed) {
    load_.outcomes.resize(arrivals.size());
    if (target_.max_open == 0) target_.max_open = std::numeric_limits<size_t>::max();
  }

  HttpLoad run() {
    std::exception_ptr failure;
    const auto then = [&](std::exception_ptr thrown) { failure = std::move(thrown); };
    asio::co_spawn(io_, prepare(), then);
    io_.run();
    if (failure) std::rethrow_exception(failure);
    io_.restart();
    begin_ = Clock::now();
    asio::co_spawn(io_, dispatch(), then);
    io_.run();
    if (failure) std::rethrow_exception(failure);
    return std::move(load_);
  }

 private:
  using Request = http::request<http::string_body>;

  double now_s() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }

  Request make_request(http::verb verb, const std::string& path) const {
    Request request(verb, url_.prefix + path, 11);
    request.set(http::field::host, url_.host + ":" + url_.port);
    if (!target_.api_key.empty())
      request.set(http::field::authorization, "Bearer " + target_.api_key);
    return request;
  }

  Request completion(const Arrival& arrival) {
    Request request = make_request(http::verb::post, target_.endpoint);
    request.set(http::field::content_type, "application/json");
    std::string& body = request.body();
    body =
        fmt::format(R"({{"model":{},"max_tokens":{},"temperature":0,"ignore_eos":{},"stream":true,)"
                    R"("stream_options":{{"include_usage":true}},"prompt":[)",
            json::serialize(json::value(target_.model)), arrival.output_tokens, target_.ignore_eos);
    std::uniform_int_distribution<int32_t> id(0, target_.vocab_size - 1);
    for (int32_t i = 0; i < arrival.prompt_tokens; ++i)
      fmt::format_to(std::back_inserter(body), "{}{}", i > 0 ? "," : "", id(random_));
    body += "]}";
    request.prepare_payload();
    return request;
  }

  asio::awaitable<tcp::socket> connect() {
    tcp::socket socket(io_);
    co_await asio::async_connect(socket, endpoints_, use_awaitable);
    socket.set_option(tcp::no_delay(true));
    co_return socket;
  }

  // Who is asked, and for which model: what fails here would fail every request.
  asio::awaitable<void> prepare() {
    try {
      endpoints_ = co_await tcp::resolver(io_).async_resolve(url_.host, url_.port, use_awaitable);
      tcp::socket socket = co_await connect();
      if (!target_.model.empty()) co_return;
      co_await http::async_write(
          socket, make_request(http::verb::get, "/v1/models"), use_awaitable);
      boost::beast::flat_buffer buffer;
      http::response<http::string_body> answer;
      co_await http::async_read(socket, buffer, answer, use_awaitable);
      if (answer.result() != http::status::ok) throw std::runtime_error(describe(answer));
      target_.model = json::parse(answer.body()).at("data").at(0).at("id").as_string();
    } catch (const std::exception& error) {
      throw Error(ExitCode::kAddress,
          "{}: {}; give the server's --base-url (or --host and --port), a key it knows, and "
          "--model where /v1/models lists none",
          target_.base_url, words_of(error));
    }
  }

  static std::string describe(const http::response<http::string_body>& answer) {
    return fmt::format("{} {}", answer.result_int(), answer.body().substr(0, kErrorBytes));
  }

  asio::awaitable<void> dispatch() {
    asio::steady_timer timer(io_);
    for (size_t i = 0; i < arrivals_.size(); ++i) {
      const double at_s = arrivals_[i].at_s;
      if (at_s > now_s()) {
        timer.expires_at(begin_ + std::chrono::duration_cast<Clock::duration>(
                                      std::chrono::duration<double>(at_s)));
        co_await timer.async_wait(use_awaitable);
      }
      load_.most_late_s = std::max(load_.most_late_s, now_s() - at_s);
      waiting_.push_back(i);
      if (open_ == target_.max_open) continue;
      load_.most_open = std::max(load_.most_open, ++open_);
      asio::co_spawn(io_, send_waiting(), asio::detached);
    }
  }

  // The oldest that waits, and while others wait at its end, these.
  asio::awaitable<void> send_waiting() {
    while (!waiting_.empty()) {
      const size_t i = waiting_.front();
      waiting_.pop_front();
      try {
        co_await ask(completion(arrivals_[i]), load_.outcomes[i]);
      } catch (const std::exception& error) {
        load_.outcomes[i].error = words_of(error);
      }
      load_.duration_s = now_s();
    }
    --open_;
  }

  // A connection for each request, opened before its time runs: clients keep theirs.
  asio::awaitable<void> ask(Request request, HttpOutcome& outcome) {
    tcp::socket socket = co_await connect();
    outcome.sent_s = now_s();
    co_await http::async_write(socket, request, use_awaitable);
    http::response_parser<http::string_body> parser;
    parser.body_limit(boost::none);
    parser.eager(true);
    const auto& answer = parser.get();
    const auto streams = [&] { return answer.result() == http::status::ok; };
    EventReader events;
    boost::beast::flat_buffer buffer;
    // Not Beast's own loop, which holds a chunk back until the next begins.
    while (!parser.is_done()) {
      boost::system::error_code error;
      buffer.commit(co_await socket.async_read_some(
          buffer.prepare(kReadBytes), asio::redirect_error(use_awaitable, error)));
      if (error == asio::error::eof) parser.put_eof(error = {});
      while (buffer.size() > 0 && !parser.is_done() && !error)
        buffer.consume(parser.put(buffer.data(), error));
      if (error && error != http::error::need_more) throw boost::system::system_error(error);
      if (parser.is_header_done() && streams()) events.take(parser.get().body(), now_s(), outcome);
    }
    if (!streams()) throw std::runtime_error(describe(answer));
    if (!events.done()) throw std::runtime_error("the stream ended without [DONE]");
    if (outcome.event_s.empty()) throw std::runtime_error("the stream had no token");
  }

  HttpTarget target_;
  const Url url_;
  const std::vector<Arrival>& arrivals_;
  std::mt19937_64 random_;
  asio::io_context io_{1};
  tcp::resolver::results_type endpoints_;
  std::deque<size_t> waiting_;  // their time has come
  size_t open_ = 0;
  Clock::time_point begin_;
  HttpLoad load_;
};

}  // namespace

HttpLoad run_http_load(HttpTarget target, const std::vector<Arrival>& arrivals) {
  // A descriptor for each stream: as many as this user may have.
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  return Client(std::move(target), arrivals).run();
}

}  // namespace millrace
