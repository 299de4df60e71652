// `millrace chat`: a conversation in the terminal, or the lines of a pipe.
#include <fmt/format.h>
#include <unistd.h>

#include <boost/json/array.hpp>
#include <iostream>
#include <string>

#include "engine/base/log.h"
#include "launch/cli/answer.h"
#include "launch/cli/commands.h"

namespace millrace {

namespace {

class Conversation {
 public:
  Conversation(const Options& options, Session& session) : options_(options), session_(session) {
    clear();
  }

  void clear() {
    messages_.clear();
    if (!options_.system.empty()) add("system", options_.system);
  }

  // Streams the answer to standard output and keeps both; keeps neither when the question fails.
  void say(const std::string& text) {
    add("user", text);
    try {
      boost::json::object body = call_body(options_, session_.model());
      body["messages"] = messages_;
      const ApiCall call = parse_call(ApiKind::kChat, body, session_.model());
      const Answer answer = ask(session_, call, write_stdout);
      write_stdout("\n");
      add("assistant", answer.piece.text);
      log::info("{}", answer.speed());
    } catch (const RequestError&) {
      messages_.pop_back();
      throw;
    }
  }

 private:
  void add(const char* role, const std::string& text) {
    messages_.push_back({{"role", role}, {"content", text}});
  }

  const Options& options_;
  Session& session_;
  boost::json::array messages_;
};

// Prompts belong to a person, and not to standard output.
bool next_line(bool interactive, std::string& line) {
  if (interactive) std::cerr << "> " << std::flush;
  return static_cast<bool>(std::getline(std::cin, line));
}

}  // namespace

ExitCode run_chat(const Options& options) {
  Session session(options, Session::Text::kNeeded);
  Conversation conversation(options, session);
  if (options.message) {
    conversation.say(*options.message);
    return ExitCode::kOk;
  }
  const bool interactive = isatty(STDIN_FILENO) != 0;
  if (interactive) std::cerr << "/exit ends, /clear begins anew\n";
  for (std::string line; next_line(interactive, line);) {
    if (line == "/exit" || line == "/quit") break;
    if (line.empty()) continue;
    if (line == "/clear") {
      conversation.clear();
      continue;
    }
    try {
      conversation.say(line);
    } catch (const RequestError& error) {
      if (!interactive) throw;
      std::cerr << error.what() << "\n";
    }
  }
  return ExitCode::kOk;
}

}  // namespace millrace
