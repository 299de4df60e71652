// `millrace serve`: the HTTP server until a signal asks it to stop or the replica is lost.
#include <fmt/format.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <optional>

#include "engine/base/log.h"
#include "launch/cli/commands.h"
#include "launch/cli/session.h"
#include "launch/gateway/origin.h"

namespace millrace {

namespace {

// What ends a server, awaited on the main thread.
class End {
 public:
  // While the model loads there is nobody to wait for: the workers see this process end.
  static void leave_on_signal() {
    for (const int number : {SIGTERM, SIGINT}) {
      std::signal(number, [](int) { _exit(static_cast<int>(ExitCode::kOk)); });
    }
  }
  // SIGTERM and Ctrl-C stop it; so does SIGUSR1, which mpirun hands on without ending the job.
  void watch_signals() {
    signals_.add(SIGTERM);
    signals_.add(SIGINT);
    signals_.add(SIGUSR1);
    signals_.async_wait([this](const boost::system::error_code& error, int number) {
      if (error) return;
      log::info("{}: no new requests, running ones may end", number == SIGTERM  ? "SIGTERM"
                                                             : number == SIGINT ? "SIGINT"
                                                                                : "SIGUSR1");
      io_.stop();
    });
  }
  // Any thread.
  void lost(const Finished& finished) {
    boost::asio::post(io_, [this, finished] {
      lost_ = finished;
      io_.stop();
    });
  }
  // The loss, or nothing after a signal.
  std::optional<Finished> wait() {
    const auto work = boost::asio::make_work_guard(io_);
    io_.run();
    // A second Ctrl-C does not wait for anybody.
    signals_.remove(SIGINT);
    return lost_;
  }

 private:
  boost::asio::io_context io_{1};
  boost::asio::signal_set signals_{io_};
  std::optional<Finished> lost_;
};

}  // namespace

ExitCode run_serve(const Options& options) {
  End end;
  std::optional<Session> session;  // ends after the server, which calls it
  Server server(options.server);   // binds before the model is loaded: a taken port is told at once
  server.start();
  const ServerConfig& config = options.server;
  const std::string url = fmt::format(
      "{}://{}:{}", config.ssl_certfile.empty() ? "http" : "https", config.host, server.port());
  log::info("listening on {}, /health says when the model is loaded", url);
  if (config.api_key.empty() && config.api_key_file.empty() && !is_loopback(config.host))
    log::warning("no --api-key-file: whoever reaches {} may ask", config.host);
  End::leave_on_signal();
  session.emplace(
      options, Session::Text::kNeeded, [&end](const Finished& finished) { end.lost(finished); });
  ModelContext model = session->model();
  model.allow_priority = options.allow_priority;
  model.strict_fields = options.strict_fields;
  server.set_engine(session->engine(), model);
  end.watch_signals();
  log::info("serving {} at {}/v1", session->model().name, url);
  const auto lost = end.wait();
  if (lost) server.fail({ErrorCode::kUnavailable, lost->message, ""});
  server.drain_and_stop();
  if (lost) throw Error(lost->exit_code, lost->message);
  return ExitCode::kOk;
}

}  // namespace millrace
